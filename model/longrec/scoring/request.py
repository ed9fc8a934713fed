"""Input of the scorer, and how requests are packed into batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch
from longrec.data.columns import Int64, arrow_type, int64_column
from longrec.data.encoder import Encoder
from longrec.data.feature_encoders import Int32
from longrec.data.loading import batching
from longrec.data.loading.batching import EncodedEvents
from longrec.errors import DataError
from longrec.schema import TIMESTAMP, Feature, Schema

Features: TypeAlias = Mapping[str, Any]
"""Value of each user feature by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestRows:
    """One request with the rows that the feature store returned for it: the input of a Scorer.

    Serving adds cache key and deadline (longrec.serving.requests.EncodedRequest).

    Args:
        history: the history codec's columns, oldest event first; no rows for an unknown user.
            Events at or after the request time are not used.
        user_features: value of each user feature by name. A value that is None or left out is
            missing; None instead of the mapping for an unknown user.
        request_time_ms: the request's time, ms since 1970 UTC.
        candidates: int64 [m], item ids in the order of the returned scores.
    """

    history: pa.RecordBatch
    user_features: Features | None
    request_time_ms: int
    candidates: Int64


@dataclasses.dataclass(frozen=True, slots=True)
class CachedEvents:
    """Keys and values of one request's events; a cache may store and concatenate them.

    Args:
        layers: M of [L, 2 D] on the scorer's device, keys and values of each event, oldest first.
        encoded: int32 [L, 1 + F] on the scorer's device, the Encoder's output for each event: row
            of the item table, then features.
        timestamps: int64 [L] on the scorer's device, ms.
    """

    layers: Sequence[Tensor]
    encoded: Tensor
    timestamps: Tensor

    def __len__(self) -> int:
        return len(self.timestamps)


def encode_history(
    encoder: Encoder,
    request: RequestRows,
    length: int,
) -> EncodedEvents:
    """Encode the last `length` events strictly before the request time.

    Raises:
        DataError: the history is not in time order.
    """
    if not request.history.num_rows:
        return no_events(encoder.schema)
    timestamps = int64_column(request.history, TIMESTAMP)
    is_backwards = timestamps[1:] < timestamps[:-1]
    if is_backwards.any():
        raise DataError("a history is not in time order", expected="the oldest event first")
    end = np.searchsorted(
        timestamps,
        request.request_time_ms,
        side="left",
    )
    start = max(0, int(end) - length)
    used = request.history.slice(start, int(end) - start)
    return encoder.events(used)


def encode_events(encoder: Encoder, history: pa.RecordBatch) -> EncodedEvents:
    """Encode all events of a history, which may have none."""
    if not history.num_rows:
        return no_events(encoder.schema)
    return encoder.events(history)


def encode_users(encoder: Encoder, requests: Sequence[RequestRows]) -> Int32:
    """Encode the user features of requests, int32 [R, U].

    Raises:
        DataError: a value has the wrong type.
    """
    rows = [request.user_features or {} for request in requests]
    table = _user_table(encoder.schema, rows)
    return encoder.users(table)


def encode_candidates(encoder: Encoder, request: RequestRows) -> Int32:
    """Encode the candidates of a request as rows of the item table, int32 [m]."""
    ids = np.asarray(request.candidates, np.int64)
    return encoder.item_rows(ids)


def pack_requests(
    encoder: Encoder,
    requests: Sequence[RequestRows],
    histories: Sequence[EncodedEvents],
) -> RequestBatch:
    """Pack requests into a batch in host memory.

    Args:
        encoder: the encoder of the features.
        requests: at least one, each with candidates; their own histories are not used.
        histories: encoded events of each request.
    """
    candidates = [encode_candidates(encoder, request) for request in requests]
    users = encode_users(encoder, requests)
    request_times = [request.request_time_ms for request in requests]
    return batching.pack_batch(
        histories,
        candidates,
        users,
        np.array(request_times, np.int64),
    )


def pack_events(
    histories: Sequence[EncodedEvents],
    lengths: Sequence[int],
    request_times_ms: Sequence[int],
) -> RequestBatch:
    """Pack histories without targets into a batch that is fit for encoding only.

    Nothing is validated: a batch often holds a single new event.

    Args:
        histories: encoded events of each request.
        lengths: number of events of each.
        request_times_ms: time of each request.
    """
    items, features, timestamps = zip(*histories, strict=True)
    offsets = np.array([0, *lengths]).cumsum()
    event_offsets = torch.from_numpy(offsets)
    request_times = np.array(request_times_ms, np.int64)
    no_targets = [0] * len(lengths)
    return RequestBatch(
        event_items=_concatenate(items),
        event_features=_concatenate(features),
        event_timestamps=_concatenate(timestamps),
        event_offsets=event_offsets,
        target_items=_no_items(),
        target_offsets=event_offsets,  # a placeholder: encoding reads no targets
        user_features=_no_features(),
        request_timestamps=torch.from_numpy(request_times),
        host_counts=(list(lengths), no_targets),
    )


def add_cached_items(
    batch: RequestBatch,
    cached: Sequence[CachedEvents],
    num_targets: Sequence[int],
) -> RequestBatch:
    """Add items and times of cached events to a batch with empty histories.

    A model with `matches` compares items and times only, so the event features are zeros.

    Args:
        batch: requests on the device of the events.
        cached: events of each request.
        num_targets: number of candidates of each request.
    """
    num_events = [len(events) for events in cached]
    offsets = torch.tensor([0, *num_events]).cumsum(0)
    num_features = batch.event_features.shape[1]
    features = batch.event_features.new_zeros((sum(num_events), num_features))
    return dataclasses.replace(
        batch,
        event_items=torch.cat([events.encoded[:, 0] for events in cached]),
        event_timestamps=torch.cat([events.timestamps for events in cached]),
        event_features=features,
        event_offsets=offsets.to(batch.event_items.device),
        host_counts=(num_events, list(num_targets)),
    )


def no_events(schema: Schema) -> EncodedEvents:
    """Return the encoding of an empty history."""
    num_features = len(schema.event)
    return (
        np.zeros(0, np.int32),
        np.zeros((0, num_features), np.int32),
        np.zeros(0, np.int64),
    )


def _concatenate(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


@functools.cache
def _no_items() -> Tensor:
    return torch.zeros(0, dtype=torch.int32)


@functools.cache
def _no_features() -> Tensor:
    return torch.zeros((0, 0), dtype=torch.int32)


def _user_table(schema: Schema, rows: Sequence[Features]) -> pa.Table:
    """Return the user features of the rows as a table; a feature that a row leaves out is null."""
    if not schema.user:
        # A table without columns has no rows, so one is made up. The encoder does not read it.
        numbers = np.arange(len(rows))
        return pa.table({"row": numbers})
    columns = {}
    for feature in schema.user:
        values = [row.get(feature.name) for row in rows]
        columns[feature.name] = _user_column(feature, values)
    return pa.table(columns)


def _user_column(feature: Feature, values: list[Any]) -> pa.Array:
    """Return the values of a user feature as a column of its type."""
    try:
        return pa.array(values, arrow_type(feature))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(
            f"user feature '{feature.name}' has a value of the wrong type",
            found=str(error),
            expected=feature.dtype,
        ) from error
