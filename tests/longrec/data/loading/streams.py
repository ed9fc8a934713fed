"""Streams and comparisons of batches for the tests of loading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longrec.config import LengthConfig
from longrec.data.batch import RequestBatch
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream

FULL = LengthSampler(LengthConfig("full"))
SHORT = LengthSampler(LengthConfig("beta", 0, 16, 64), seed=3)

RequestKey = tuple[int, ...]


def training_stream(
    encoded: EncodedHistories,
    length_sampler: LengthSampler,
    **options: Any,
) -> RequestStream:
    """Return an epoch of small batches."""
    defaults = {
        "token_budget": 100,
        "max_requests": 8,
        "seed": 1,
    }
    return RequestStream.for_training(encoded, length_sampler, **(defaults | options))


def by_request(batches: Iterable[RequestBatch]) -> dict[RequestKey, list[list[Any]]]:
    """Return the content of each request, by its time and targets, which are unique."""
    content: dict[RequestKey, list[list[Any]]] = {}
    for batch in batches:
        batch.validate()
        for request in range(batch.num_requests):
            events = events_of(batch, request)
            targets = targets_of(batch, request)
            time = int(batch.request_timestamps[request])
            key = (time, *batch.target_items[targets].tolist())
            assert key not in content
            assert batch.labels is not None
            content[key] = [
                batch.event_items[events].tolist(),
                batch.event_features[events].tolist(),
                batch.event_timestamps[events].tolist(),
                batch.user_features[request].tolist(),
                batch.labels[targets].tolist(),
            ]
    return content


def events_of(batch: RequestBatch, request: int) -> slice:
    start, end = batch.event_offsets[request : request + 2].tolist()
    return slice(start, end)


def targets_of(batch: RequestBatch, request: int) -> slice:
    start, end = batch.target_offsets[request : request + 2].tolist()
    return slice(start, end)
