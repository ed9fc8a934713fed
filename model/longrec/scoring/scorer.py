"""Scorer: rows in, probabilities out; evaluation, parity checks and the service all score through
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from longrec.data import loader
from longrec.data.batch import RequestBatch
from longrec.data.encoder import int64_column
from longrec.data.loader import EncodedEvents
from longrec.errors import ConfigError, DataError
from longrec.nn.fused_stca import StackedWeights
from longrec.nn.target_attention.cached import SMALL, DuplicateEvents
from longrec.schema import TIMESTAMP, Feature, Schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.cuda_graphs import Asked, CudaGraphScorer

Scores = npt.NDArray[np.float32]
TOKEN_BUDGET = 65_536
MAX_REQUESTS = 64
MAX_CUDA_GRAPH_REQUESTS = 4
"""Requests up to which captured graphs score one after another on a CUDA device; eight are as fast
as a batch (docs/engine.md).
"""
MAX_DISTINCT_SHARE = 0.8
"""Share of distinct events up to which finding the equal ones pays."""
_ARROW_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}


@dataclasses.dataclass(frozen=True, slots=True)
class RequestRows:
    """One request as the feature store answers it.

    Args:
        history: the history codec's columns, oldest event first; no rows for an unknown user.
            Events at or after the moment are not used.
        user_features: value of each user feature by name (None or left out: missing); None for an
            unknown user.
        request_time_ms: the request's time, ms since 1970 UTC.
        candidates: int64 [m], item ids in the order of the scores wanted.
    """

    history: pa.RecordBatch
    user_features: Mapping[str, Any] | None
    request_time_ms: int
    candidates: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class CachedEvents:
    """The events of one request as the model attends to them; `Scorer.keys_values` makes them, a
    cache may keep and join them.

    Args:
        layers: M of [L, 2 D] on the scorer's device, keys and values of each event, oldest first.
        encoded: int32 [L, 1 + F] on the scorer's device, row of the item table and features of each
            event.
        timestamps: int64 [L] on the scorer's device, ms.
    """

    layers: Sequence[torch.Tensor]
    encoded: torch.Tensor
    timestamps: torch.Tensor

    def __len__(self) -> int:
        return int(self.timestamps.shape[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Scorer:
    """Scores requests with a bundle.

    Args:
        bundle: what is served.
        device: where its ranker is.
        token_budget, max_requests: bounds of one batch, in events and requests; they change the
            speed, not the scores.
        precision: of the matrix products; float32, or bfloat16 for a GPU that serves.
        replays: requests up to which a call scores them one after another in fixed buffers
            (longrec.scoring.cuda_graphs) where they fit, rather than
            as a batch; None for REPLAYS on a CUDA device and for none elsewhere.
    """

    bundle: Bundle
    device: torch.device
    token_budget: int = TOKEN_BUDGET
    max_requests: int = MAX_REQUESTS
    precision: torch.dtype = torch.float32
    max_cuda_graph_requests: int | None = None
    cuda_graphs: CudaGraphScorer | None = dataclasses.field(
        init=False,
        repr=False,
        compare=False,
    )
    _weights: StackedWeights | None = dataclasses.field(
        init=False,
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        ranker, cuda_graphs = self.bundle.ranker, None
        with torch.no_grad():
            weights = ranker.stack_weights() if self.is_separable else None
        if self._num_replays and self.is_separable and not self.bundle.config.matches:
            cuda_graphs = CudaGraphScorer(
                ranker,
                weights,
                self.device,
                precision=self.precision,
                max_events=self.bundle.served_length,
            )
        object.__setattr__(self, "_weights", weights)
        object.__setattr__(self, "captured", cuda_graphs)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        *,
        schema: Schema | None = None,
        token_budget: int = TOKEN_BUDGET,
        max_requests: int = MAX_REQUESTS,
        precision: torch.dtype = torch.float32,
    ) -> Scorer:
        """Returns the scorer of the bundle in a directory.

        Raises:
            ConfigError: `device` is a GPU and there is none.
            DataError, SchemaMismatch: see Bundle.load.
        """
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "no GPU is available",
                found=f"device {device}",
                expected="cpu",
                fix="Ask for device cpu.",
            )
        return cls(
            Bundle.load(directory, device, schema), device, token_budget, max_requests, precision
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the K columns of the scores."""
        return self.bundle.schema.task_names

    def score(self, requests: Sequence[RequestRows], length: int | None = None) -> list[Scores]:
        """Returns the probabilities of each request, float32 [m, K] in the order of its candidates.

        Items that the encoder does not know are scored as the unknown item. Scores do not depend on
        the other requests.

        Args:
            requests: any number, in any order.
            length: most recent events used; None for the length that the bundle is served at.

        Raises:
            DataError: a history is not in time order, lacks a column, or has one of the wrong type.
        """
        length = self.bundle.served_length if length is None else length
        if length < 0:
            raise ConfigError("the served length must not be negative", found=length)
        asked = [position for position, request in enumerate(requests) if len(request.candidates)]
        answers = [np.zeros((0, len(self.task_names)), np.float32) for _ in requests]
        if asked:
            for position, part in zip(
                asked, self._scored([requests[position] for position in asked], length), strict=True
            ):
                answers[position] = part
        return answers

    def warm_up(self) -> None:
        """Captures all graphs that requests of the served length will need; without a CUDA device
        there is nothing to do.
        """
        if self.cuda_graphs is not None and self.device.type == "cuda":
            self.cuda_graphs.warm_up()

    def score_batches(self, batches: Iterable[RequestBatch]) -> Iterator[Scores]:
        """Yields the probabilities of each batch, float32 [N, K] in the order of its targets;
        labels are not looked at.
        """
        for batch in batches:
            with torch.inference_mode(), self._autocast():
                logits = self.bundle.ranker(
                    dataclasses.replace(batch, labels=None).to(self.device)
                ).logits
                scores: Scores = torch.sigmoid(logits.float()).cpu().numpy()
            yield scores

    @property
    def is_cacheable(self) -> bool:
        """Whether an event's keys and values stay the same for ever; with `recency: token` they
        depend on the request's moment.
        """
        return self.is_separable and self.bundle.config.recency != "token"

    @property
    def is_separable(self) -> bool:
        """Whether histories are encoded apart from their targets: `keys_values` and what takes its
        results work.
        """
        return self.bundle.config.kind == "stca"

    def keys_values(
        self, histories: Sequence[pa.RecordBatch], request_times_ms: Sequence[int]
    ) -> list[CachedEvents]:
        """Returns the keys and values of histories that are in time order and before their moments;
        rows do not depend on each other.

        Args:
            histories: the history codec's columns, oldest event first.
            moments_ms: of the requests; they matter only where the model is not `is_cacheable`.
        """
        entries = [
            self.bundle.encoder.events(events)
            if events.num_rows
            else _no_events(self.bundle.schema)
            for events in histories
        ]
        lengths = [events.num_rows for events in histories]
        if cuda_graphs := self._captured(lengths, [0] * len(lengths)):
            return [
                CachedEvents(*cuda_graphs.keys_values(*part))
                for part in zip(entries, request_times_ms, strict=True)
            ]
        batch = _events_only(entries, lengths, request_times_ms)
        with torch.inference_mode(), self._autocast():
            batch = batch if self.device.type == "cpu" else batch.to(self.device)
            layers = self.bundle.ranker.keys_values(batch, self._weights)
        encoded = torch.cat([batch.event_items[:, None], batch.event_features], dim=1)
        if len(entries) == 1:
            return [CachedEvents(layers, encoded, batch.event_timestamps)]
        parts = zip(*(layer.split(lengths) for layer in layers), strict=True)
        columns = zip(encoded.split(lengths), batch.event_timestamps.split(lengths), strict=True)
        return [CachedEvents(part, *column) for part, column in zip(parts, columns, strict=True)]

    def score_cached(
        self, requests: Sequence[RequestRows], kept: Sequence[CachedEvents]
    ) -> list[Scores]:
        """Returns the probabilities of each request over kept events, float32 [m, K]: what `score`
        returns for the same events.

        Args:
            requests: at least one, each with candidates; their histories are not looked at.
            kept: events of each.
        """
        if cuda_graphs := self._captured(
            [len(part) for part in kept], [len(request.candidates) for request in requests]
        ):
            return [
                cuda_graphs.score_cached(part.layers, part.timestamps, self._asked(request))
                for request, part in zip(requests, kept, strict=True)
            ]
        batch = self._without_events(requests, kept)
        with torch.inference_mode(), self._autocast():
            repeats = [
                self._repeats(part, len(request.candidates))
                for part, request in zip(kept, requests, strict=True)
            ]
            memories = self.bundle.ranker.kept(
                [part.layers for part in kept],
                [part.timestamps for part in kept],
                batch,
                repeats=repeats,
            )
            logits = self.bundle.ranker.score(batch, memories).logits
            scores: Scores = torch.sigmoid(logits.float()).cpu().numpy()
        return np.split(scores, np.cumsum([len(request.candidates) for request in requests])[:-1])

    def attention(self, request: RequestRows, kept: CachedEvents) -> npt.NDArray[np.float32]:
        """Returns how much each candidate attends to each event, float32 [M, H, m, L], rows that
        sum to 1: the softmax that scores it.
        """
        batch = self._without_events([request], [kept])
        with torch.inference_mode(), self._autocast():
            seen: list[list[torch.Tensor]] = []
            memories = self.bundle.ranker.kept([kept.layers], [kept.timestamps], batch)
            self.bundle.ranker.score(
                batch, [dataclasses.replace(memory, seen=seen) for memory in memories]
            )
            weights: npt.NDArray[np.float32] = (
                torch.stack([layer[0] for layer in seen]).cpu().numpy()
            )
        return weights

    def _repeats(self, events: CachedEvents, num_targets: int) -> DuplicateEvents | None:
        """Returns which events are equal, where it pays to attend to them once: on a CPU, for many
        targets, where enough of them are.
        """
        is_exact = (
            self.device.type == "cpu" and self.precision == torch.float32 and self.is_cacheable
        )
        if not is_exact or len(events) * num_targets * self.bundle.config.width < SMALL:
            return None
        encoded = np.ascontiguousarray(events.encoded.numpy())
        rows = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(encoded[0].nbytes), len(events), [None, pa.py_buffer(encoded)]
        )
        found = rows.dictionary_encode()
        if len(found.dictionary) > MAX_DISTINCT_SHARE * len(events):
            return None
        kinds, first = (
            found.indices.to_numpy().astype(np.int64),
            np.empty(len(found.dictionary), np.int64),
        )
        first[kinds[::-1]] = np.arange(len(events) - 1, -1, -1)
        return DuplicateEvents(torch.from_numpy(first), torch.from_numpy(kinds))

    @property
    def _num_replays(self) -> int:
        return (
            (MAX_CUDA_GRAPH_REQUESTS if self.device.type == "cuda" else 0)
            if self.max_cuda_graph_requests is None
            else self.max_cuda_graph_requests
        )

    def _captured(
        self, num_events: Sequence[int], num_targets: Sequence[int]
    ) -> CudaGraphScorer | None:
        """Returns what scores requests of these sizes one after another, None where they are scored
        as a batch.
        """
        cuda_graphs = self.cuda_graphs
        if (
            cuda_graphs is None
            or len(num_events) > self._num_replays
            or not all(map(cuda_graphs.fits, num_events, num_targets))
        ):
            return None
        return cuda_graphs

    def _scored(self, requests: Sequence[RequestRows], length: int) -> Sequence[Scores]:
        """Returns the probabilities of requests that all have candidates."""
        sizes = [len(request.candidates) for request in requests]
        if self.cuda_graphs is not None and len(requests) <= self._num_replays:
            histories = [self._history(request, length) for request in requests]
            if cuda_graphs := self._captured([len(events[0]) for events in histories], sizes):
                return [
                    cuda_graphs.score(events, self._asked(request))
                    for events, request in zip(histories, requests, strict=True)
                ]
        scores = np.concatenate(list(self.score_batches(self._batches(requests, length))))
        return np.split(scores, np.cumsum(sizes)[:-1])

    def _asked(self, request: RequestRows) -> Asked:
        encoder = self.bundle.encoder
        return Asked(
            request.request_time_ms,
            encoder.users(_user_table(encoder.schema, [request.user_features or {}])),
            encoder.item_rows(np.asarray(request.candidates, np.int64)),
        )

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _without_events(
        self, requests: Sequence[RequestRows], kept: Sequence[CachedEvents]
    ) -> RequestBatch:
        """Returns the batch of requests that all have candidates, as if their histories were empty,
        but for what a model of
        `matches` reads of the events: items and times."""
        batch = self._pack(requests, [_no_events(self.bundle.schema)] * len(requests)).to(
            self.device
        )
        if not self.bundle.config.matches:
            return batch
        counts = [len(events) for events in kept]
        return dataclasses.replace(
            batch,
            event_items=torch.cat([events.encoded[:, 0] for events in kept]),
            event_timestamps=torch.cat([events.timestamps for events in kept]),
            event_features=batch.event_features.new_zeros(
                (sum(counts), batch.event_features.shape[1])
            ),
            event_offsets=torch.tensor([0, *counts]).cumsum(0).to(self.device),
            host_counts=(counts, [len(request.candidates) for request in requests]),
        )

    def _batches(self, requests: Sequence[RequestRows], length: int) -> Iterator[RequestBatch]:
        """Yields batches of requests with candidates; encodes one batch at a time, so that memory
        does not grow with their number.
        """
        num_events = np.array(
            [min(request.history.num_rows, length) for request in requests], np.int64
        )
        bounds = loader.fill(
            num_events, token_budget=self.token_budget, max_requests=self.max_requests
        )
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield self.to_batch(requests[start:end], length)

    def to_batch(self, requests: Sequence[RequestRows], length: int) -> RequestBatch:
        """Returns the batch of requests that all have candidates, with at most `length` events
        each.
        """
        return self._pack(requests, [self._history(request, length) for request in requests])

    def _pack(
        self, requests: Sequence[RequestRows], histories: Sequence[EncodedEvents]
    ) -> RequestBatch:
        encoder = self.bundle.encoder
        request_times = np.array([request.request_time_ms for request in requests], np.int64)
        return loader.pack(
            histories,
            [encoder.item_rows(np.asarray(request.candidates, np.int64)) for request in requests],
            encoder.users(
                _user_table(encoder.schema, [request.user_features or {} for request in requests])
            ),
            request_times,
        )

    def _history(self, request: RequestRows, length: int) -> EncodedEvents:
        """Returns the encoded events strictly before the moment, the last `length` of them."""
        if not request.history.num_rows:
            return _no_events(self.bundle.schema)
        timestamps = int64_column(request.history, TIMESTAMP)
        if (timestamps[1:] < timestamps[:-1]).any():
            raise DataError("a history is not in time order", expected="the oldest event first")
        end = int(np.searchsorted(timestamps, request.request_time_ms, side="left"))
        start = max(0, end - length)
        return self.bundle.encoder.events(request.history.slice(start, end - start))


def _events_only(
    entries: Sequence[EncodedEvents], lengths: Sequence[int], request_times_ms: Sequence[int]
) -> RequestBatch:
    """Returns a batch that is only fit for encoding: no targets, and nothing is checked, for one
    new event is worth less than that.
    """
    items, features, timestamps = (
        torch.from_numpy(np.concatenate(parts)) for parts in zip(*entries, strict=True)
    )
    ends, (targets, users) = torch.from_numpy(np.array([0, *lengths]).cumsum()), _nothing()
    return RequestBatch(
        items,
        features,
        timestamps,
        ends,
        targets,
        ends,
        users,
        torch.from_numpy(np.array(request_times_ms, np.int64)),
        host_counts=(list(lengths), [0] * len(lengths)),
    )


@functools.cache
def _nothing() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns no targets, and users without features."""
    return torch.zeros(0, dtype=torch.int32), torch.zeros((0, 0), dtype=torch.int32)


def _no_events(schema: Schema) -> EncodedEvents:
    return np.zeros(0, np.int32), np.zeros((0, len(schema.event)), np.int32), np.zeros(0, np.int64)


def _user_table(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns the user features of the rows as a table; what a row leaves out is null."""
    columns = {
        feature.name: _user_column(feature, [row.get(feature.name) for row in rows])
        for feature in schema.user
    }
    return pa.table(columns) if columns else pa.table({"row": np.arange(len(rows))})


def _user_column(feature: Feature, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, _ARROW_TYPES[feature.dtype])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(
            f"user feature '{feature.name}' has a value of the wrong type",
            found=str(error),
            expected=feature.dtype,
        ) from error
