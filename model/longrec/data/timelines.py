"""Arithmetic on sorted timelines: groups of equal keys, known times, history lengths, quantiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.columns import Int64, int64_column
from longrec.schema import CREATED, TIMESTAMP, USER_ID

Mask = npt.NDArray[np.bool_]

_QUANTILES_PER_MILLE = {
    "p10": 100,
    "p50": 500,
    "p90": 900,
    "p99": 990,
    "max": 1_000,
}


def equals_previous(*keys: npt.NDArray[Any]) -> Mask:
    """Return whether each row but the first equals the row before in all keys, bool [n - 1]."""
    num_steps = max(len(keys[0]) - 1, 0)
    is_equal = np.ones(num_steps, bool)
    for key in keys:
        is_equal &= key[1:] == key[:-1]
    return is_equal


def steps_back(*keys: npt.NDArray[Any]) -> Mask:
    """Return whether each row but the first is below the row before, bool [n - 1].

    Args:
        keys: columns of equal length; rows are compared in lexical order.
    """
    num_steps = max(len(keys[0]) - 1, 0)
    is_back = np.zeros(num_steps, bool)
    is_tied = np.ones(num_steps, bool)
    for key in keys:
        is_lower = key[1:] < key[:-1]
        is_back |= is_tied & is_lower
        is_tied &= equals_previous(key)
    return is_back


def group_starts(*keys: npt.NDArray[Any]) -> Int64:
    """Return the first row of each run of equal keys, int64; empty for no rows."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    is_start = np.append(True, ~equals_previous(*keys))
    return np.flatnonzero(is_start).astype(np.int64)


def group_spans(*keys: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of each run of equal keys."""
    starts = group_starts(*keys).tolist()
    ends = [*starts[1:], len(keys[0])]
    return zip(starts, ends, strict=False)  # without rows there is no start but one end


def group_lengths(*keys: npt.NDArray[Any]) -> Int64:
    """Return the number of rows of each run of equal keys, int64."""
    starts = group_starts(*keys)
    bounds = np.append(starts, len(keys[0]))
    return np.diff(bounds)


def find_split_basket(
    users: Int64,
    baskets: Int64,
    times: Int64,
) -> tuple[int, str] | None:
    """Return how often the time changes within a basket, with an example, or None for never.

    A history could split such a basket.

    Args:
        users, baskets, times: int64 [E], of each event.

    Returns:
        Number of steps between different times and an example, or None.
    """
    order = np.lexsort((times, baskets, users))
    users = users[order]
    baskets = baskets[order]
    is_split = equals_previous(users, baskets)
    is_split &= ~equals_previous(times[order])
    if not is_split.any():
        return None
    row = int(is_split.argmax())
    example = f"basket {baskets[row]} of user {users[row]}"
    return int(is_split.sum()), example


def known_times(events: pa.Table | pa.RecordBatch) -> Int64:
    """Return the time at which each event became known, int64 ms.

    That is its timestamp, or `created` where the events have this column and it is later.
    """
    times = int64_column(events, TIMESTAMP)
    if CREATED not in events.schema.names:
        return times
    return np.maximum(times, int64_column(events, CREATED))


def sorted_known_times(events: pa.Table) -> tuple[Int64, Int64]:
    """Return users and `known_times` of the events of a part, sorted by (user, known time).

    Args:
        events: one part of a dataset, sorted by (user, timestamp).

    Returns:
        Two int64 [E] arrays.
    """
    users = int64_column(events, USER_ID)
    times = known_times(events)
    if CREATED not in events.schema.names:
        return users, times
    order = np.lexsort((times, users))
    return users[order], times[order]


def history_lengths(
    event_users: Int64,
    event_times: Int64,
    request_users: Int64,
    request_times: Int64,
) -> Int64:
    """Return the number of events of its user strictly before each request, int64 [R].

    Args:
        event_users, event_times: int64 [E], sorted by (user, time).
        request_users, request_times: int64 [R], in any order; sorted ones are found faster.
    """
    starts = np.searchsorted(event_users, request_users)
    low = starts.copy()
    high = np.searchsorted(event_users, request_users, side="right")
    last_event = len(event_times) - 1
    # One binary search for all requests at once.
    is_open = low < high
    while np.any(is_open):
        middle = (low + high) // 2
        middle_times = event_times[np.minimum(middle, last_event)]
        is_earlier = is_open & (middle_times < request_times)
        high = np.where(is_open & ~is_earlier, middle, high)
        low = np.where(is_earlier, middle + 1, low)
        is_open = low < high
    return (low - starts).astype(np.int64)


def quantiles(lengths: npt.NDArray[Any]) -> dict[str, int]:
    """Return p10, p50, p90, p99 and max of some lengths; all are 0 for no lengths."""
    if not len(lengths):
        return dict.fromkeys(_QUANTILES_PER_MILLE, 0)
    result = {}
    for name, per_mille in _QUANTILES_PER_MILLE.items():
        value = np.quantile(lengths, per_mille / 1_000, method="inverted_cdf")
        result[name] = int(value)
    return result


def quantiles_of_counts(counts: Int64) -> dict[str, int]:
    """Return `quantiles` of a histogram of lengths.

    Args:
        counts: int64, counts[n] is how many histories have length n; its size is the largest length
            + 1.
    """
    cumulative = np.cumsum(counts)
    if not len(counts) or not cumulative[-1]:
        return quantiles(counts[:0])
    total = cumulative[-1]
    result = {}
    for name, per_mille in _QUANTILES_PER_MILLE.items():
        rank = max(-(-total * per_mille // 1_000), 1)  # rounded up
        result[name] = int(np.searchsorted(cumulative, rank))
    return result
