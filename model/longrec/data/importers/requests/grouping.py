"""Grouping of events into requests, by time window or by basket.

Shape letters: E events of a part, sorted by (user, time, sequence); R requests.

    events      e e e . e e . . . e      of one user, in the order of time
    requests    r---- . r-- . . . r      a window each, at the time of its first event
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.columns import int64_column
from longrec.data.hashing import splitmix64
from longrec.data.timelines import group_starts, history_lengths
from longrec.errors import DataError
from longrec.schema import BASKET_ID, TIMESTAMP, USER_ID, Schema

SEED_FACTOR = 1_000_003
"""Factor that spreads seeds, so that neighbouring seeds choose different requests."""

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class RequestGrouping:
    """Options that decide how events are grouped into requests.

    Args:
        window_ms: longest time from the first event of a request to its last, in ms.
        max_targets: largest number of targets of one request. The next exposure begins a new
            request. In a log without exposures, a seeded choice of the positives stays.
        max_requests_per_user: size of a seeded choice of each user's requests; 0 for all.
        seed: seed of every choice.
    """

    window_ms: int = 300_000
    max_targets: int = 64
    max_requests_per_user: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("window_ms", 0), ("max_targets", 1), ("max_requests_per_user", 0)):
            value = getattr(self, name)
            if value < minimum:
                raise DataError(
                    f"{name} is out of range",
                    found=value,
                    expected=f"at least {minimum}",
                )


@dataclasses.dataclass(frozen=True, slots=True)
class RequestGroups:
    """Requests of one part, sorted by (user, time), and the request of each event.

    Args:
        users: int64 [R].
        request_times: int64 [R], time of the first event, ms.
        request_of_event: int64 [E].
    """

    users: Int64
    request_times: Int64
    request_of_event: Int64


def group_events(
    events: pa.Table,
    schema: Schema,
    grouping: RequestGrouping,
) -> RequestGroups:
    """Group the events of a part into requests: baskets where the schema has them, else windows."""
    users = int64_column(events, USER_ID)
    times = int64_column(events, TIMESTAMP)
    if schema.has_baskets:
        return _group_baskets(users, times, int64_column(events, BASKET_ID))
    first = window_starts(users, times, grouping)
    sizes = np.diff(np.append(first, len(users)))
    return RequestGroups(
        users=users[first],
        request_times=times[first],
        request_of_event=np.repeat(np.arange(len(first)), sizes),
    )


def window_starts(
    users: Int64,
    times: Int64,
    grouping: RequestGrouping,
) -> Int64:
    """Return the index of the first event of each window, int64 [R], ascending.

    Windows are greedy: a window takes its first event and the events of the same user up to
    `window_ms` later, at most `max_targets` of them.

    Args:
        users, times: int64 [E], sorted by (user, time).
        grouping: length and size of a window.
    """
    first = group_starts(users)
    ends = np.append(first[1:], len(users))
    num_in_window = history_lengths(
        users,
        times,
        users,
        times + grouping.window_ms + 1,
    )
    window_ends = np.repeat(first, ends - first) + num_in_window
    next_starts = np.minimum(window_ends, np.arange(len(users)) + grouping.max_targets)
    starts = [np.zeros(0, np.int64)]
    current = first
    while len(current):
        starts.append(current)
        has_more = next_starts[current] < ends
        current = next_starts[current][has_more]
        ends = ends[has_more]
    return np.sort(np.concatenate(starts))


def _group_baskets(
    users: Int64,
    times: Int64,
    baskets: Int64,
) -> RequestGroups:
    by_basket = np.lexsort((times, baskets, users))
    starts = group_starts(users[by_basket], baskets[by_basket])
    sizes = np.diff(np.append(starts, len(users)))
    first = by_basket[starts]
    by_time = np.lexsort((baskets[first], times[first], users[first]))
    rank = np.empty(len(starts), np.int64)
    rank[by_time] = np.arange(len(starts))
    request_of_event = np.empty(len(users), np.int64)
    request_of_event[by_basket] = np.repeat(rank, sizes)
    first = first[by_time]
    return RequestGroups(users[first], times[first], request_of_event)


def sample_requests(users: Int64, grouping: RequestGrouping) -> Bools:
    """Return which requests belong to the seeded choice of each user's requests, bool [R].

    The choice is a hash of (seed, user, place among the user's requests), so it is the same in
    any partition of the users.

    Args:
        users: int64 [R], sorted.
        grouping: size and seed of the choice.
    """
    if not grouping.max_requests_per_user:
        return np.ones(len(users), bool)
    place = ranks_in_runs(users)
    seeded_place = place + np.int64(grouping.seed) * SEED_FACTOR
    user_hash = splitmix64(users).view(np.int64)
    place_hash = splitmix64(seeded_place).view(np.int64)
    order = np.lexsort((splitmix64(user_hash ^ place_hash), users))
    is_chosen = np.zeros(len(users), bool)
    is_chosen[order[place < grouping.max_requests_per_user]] = True
    return is_chosen


def ranks_in_runs(keys: Int64) -> Int64:
    """Return the place of each row in its run of equal keys, int64, from 0."""
    starts = group_starts(keys)
    sizes = np.diff(np.append(starts, len(keys)))
    return np.arange(len(keys)) - np.repeat(starts, sizes)


def timestamp_column(times: Int64) -> pa.Array:
    """Return times in ms as an Arrow column of UTC timestamps."""
    without_zone = pa.array(times, pa.int64()).cast(pa.timestamp("ms"))
    return without_zone.cast(pa.timestamp("ms", tz="UTC"))
