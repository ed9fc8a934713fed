"""Batching: which requests form a batch, and how their arrays become one RequestBatch.

Shape letters: R requests, N packed targets, A event features, U user features, K tasks, B batches.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longrec.data.batch import RequestBatch
from longrec.data.columns import Int64
from longrec.data.feature_encoders import Int32
from longrec.errors import DataError

EncodedEvents = tuple[Int32, Int32, Int64]
"""(item rows [n], event features [n, A], timestamps [n] in ms) of one history."""


def pack_batch(
    histories: Sequence[EncodedEvents],
    targets: Sequence[Int32],
    user_features: Int32,
    request_timestamps: Int64,
    labels: npt.NDArray[np.float32] | None = None,
    *,
    target_rates: npt.NDArray[np.float32] | None = None,
    pin: bool = False,
) -> RequestBatch:
    """Return the batch of R requests; every RequestBatch is made here.

    Args:
        histories: encoded events of each request, oldest first.
        targets: item rows of each request's targets.
        user_features: int32 [R, U].
        request_timestamps: int64 [R], ms.
        labels: float32 [N, K] in the order of the targets, or None.
        target_rates: float32 [N, C, S] in the order of the targets, or None.
        pin: whether to pack straight into page-locked memory.

    Raises:
        DataError: there is no request, or one has no target.
    """
    if not len(histories):
        raise DataError("the batch is empty", expected="at least one request")
    items, features, timestamps = zip(*histories, strict=True)
    batch = RequestBatch(
        event_items=_concatenate(items, pin=pin),
        event_features=_concatenate(features, pin=pin),
        event_timestamps=_concatenate(timestamps, pin=pin),
        event_offsets=_offsets(items),
        target_items=torch.from_numpy(np.concatenate(targets)),
        target_offsets=_offsets(targets),
        user_features=torch.from_numpy(np.ascontiguousarray(user_features)),
        request_timestamps=torch.from_numpy(np.ascontiguousarray(request_timestamps)),
        labels=None if labels is None else torch.from_numpy(labels),
        target_rates=None if target_rates is None else torch.from_numpy(target_rates),
    )
    batch.validate()
    return batch.pin_memory() if pin else batch


def batch_bounds(
    num_events: Int64,
    *,
    token_budget: int,
    max_requests: int,
) -> Int64:
    """Return the bounds of greedily filled batches, int64 [B+1].

    Batch b is the requests bounds[b]:bounds[b+1], in the given order. A batch ends before the
    request that would exceed a limit. A request above the token budget forms its own batch.

    Args:
        num_events: int64 [R], events of each request.
        token_budget: largest number of events in a batch.
        max_requests: largest number of requests in a batch.
    """
    num_requests = len(num_events)
    cumulative = np.concatenate([[0], np.cumsum(num_events)])
    bounds = [0]
    while bounds[-1] < num_requests:
        start = bounds[-1]
        limit = cumulative[start] + token_budget
        end = int(np.searchsorted(cumulative, limit, side="right")) - 1
        end = min(end, start + max_requests, num_requests)
        bounds.append(max(start + 1, end))
    return np.array(bounds, np.int64)


def balance_events(num_events: Int64, num_ranks: int) -> Int64:
    """Return the rank of each request, int64 [R], with nearly equal numbers of events per rank.

    Requests are assigned from the longest to the shortest, each to the rank with the fewest events
    so far. Ties go to the rank with the fewest requests, then to the first rank. Two ranks differ
    by at most the longest request. No rank is empty when there are enough requests.

    Args:
        num_events: int64 [R], events of each request.
        num_ranks: number of processes.

    Source: Graham 1969, longest processing time first.
    """
    ranks = np.zeros(len(num_events), np.int64)
    loads = [(0, 0, rank) for rank in range(num_ranks)]
    longest_first = np.argsort(-num_events, kind="stable").tolist()
    for request in longest_first:
        events, requests, rank = heapq.heappop(loads)
        ranks[request] = rank
        events += int(num_events[request])
        heapq.heappush(loads, (events, requests + 1, rank))
    return ranks


def most_recent(
    starts: Int64,
    ends: Int64,
    length: int,
) -> tuple[Int64, Int64]:
    """Return (starts, ends) of at most `length` most recent events of each request.

    Serving and evaluation read these; training draws a length instead.
    """
    return np.maximum(starts, ends - length), ends


def _concatenate(parts: Sequence[npt.NDArray[Any]], *, pin: bool) -> torch.Tensor:
    """Concatenate arrays. This is the only time that the events of a history are copied."""
    if not pin:
        return torch.from_numpy(np.concatenate(parts))
    num_rows = sum(map(len, parts))
    # torch has no function from a numpy dtype to its own; the copy is writable, as torch asks.
    dtype = torch.from_numpy(parts[0][:0].copy()).dtype
    pinned = torch.empty(
        (num_rows, *parts[0].shape[1:]),
        dtype=dtype,
        pin_memory=True,
    )
    np.concatenate(parts, out=pinned.numpy())
    return pinned


def _offsets(parts: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
    lengths = map(len, parts)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return torch.from_numpy(offsets)
