"""Grouping of events into requests, by time window or by basket.

Shape letters: E events of a part, sorted by (user, time, sequence); R requests.

    events      e e e . e e . . . e      of one user, in the order of time
    requests    r---- . r-- . . . r      a window each, at the time of its first event
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, int64_column
from longrec.data.hashing import splitmix64
from longrec.data.timelines import Mask, group_lengths, group_starts, history_lengths
from longrec.errors import DataError
from longrec.schema import BASKET_ID, TIMESTAMP, USER_ID, Schema

SEED_FACTOR = 1_000_003
"""Factor that spreads seeds, so that neighbouring seeds choose different requests."""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestGrouping:
    """Options that decide how events are grouped into requests.

    Args:
        window_ms: longest time from the first event of a request to its last, in ms.
        max_targets: largest number of targets of one request. The next exposure begins a new
            request. In a log without exposures, a seeded sample of the positives is used.
        max_requests_per_user: size of a seeded sample of each user's requests; 0 for all.
        seed: seed of both samples and of drawn negatives.
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
    first_rows = window_starts(users, times, grouping)
    sizes = np.diff(np.append(first_rows, len(users)))
    return RequestGroups(
        users=users[first_rows],
        request_times=times[first_rows],
        request_of_event=np.repeat(np.arange(len(first_rows)), sizes),
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
    user_starts = group_starts(users)
    user_ends = np.append(user_starts[1:], len(users))
    # The events of the user up to `window_ms` after each event; + 1, since a history ends before
    # its time.
    num_until_window_end = history_lengths(
        users,
        times,
        users,
        times + grouping.window_ms + 1,
    )
    window_ends = np.repeat(user_starts, user_ends - user_starts) + num_until_window_end
    next_starts = np.minimum(window_ends, np.arange(len(users)) + grouping.max_targets)
    starts = [np.zeros(0, np.int64)]
    # Each round adds one window of every user. Users without more events leave both arrays.
    current = user_starts
    ends = user_ends
    while len(current):
        starts.append(current)
        following = next_starts[current]
        has_more = following < ends
        current = following[has_more]
        ends = ends[has_more]
    return np.sort(np.concatenate(starts))


def _group_baskets(
    users: Int64,
    times: Int64,
    baskets: Int64,
) -> RequestGroups:
    """Return one request per basket of a user, numbered by (user, time, basket)."""
    by_basket = np.lexsort((times, baskets, users))
    sorted_users = users[by_basket]
    sorted_baskets = baskets[by_basket]
    # Baskets, in the order of their ids, and the first event of each.
    first_rows = by_basket[group_starts(sorted_users, sorted_baskets)]
    sizes = group_lengths(sorted_users, sorted_baskets)
    # The number of the request of each basket is its rank by time.
    by_time = np.lexsort((baskets[first_rows], times[first_rows], users[first_rows]))
    request_of_basket = np.empty(len(first_rows), np.int64)
    request_of_basket[by_time] = np.arange(len(first_rows))
    request_of_event = np.empty(len(users), np.int64)
    request_of_event[by_basket] = np.repeat(request_of_basket, sizes)
    request_rows = first_rows[by_time]
    return RequestGroups(users[request_rows], times[request_rows], request_of_event)


def sample_requests(users: Int64, grouping: RequestGrouping) -> Mask:
    """Return which requests belong to the seeded sample of each user's requests, bool [R].

    The sample depends on a hash of (seed, user, rank among the user's requests), so it is the
    same in any partition of the users.

    Args:
        users: int64 [R], sorted.
        grouping: size and seed of the sample.
    """
    if not grouping.max_requests_per_user:
        return np.ones(len(users), bool)
    rank = ranks_in_runs(users)
    seeded_rank = rank + np.int64(grouping.seed) * SEED_FACTOR
    user_hash = splitmix64(users).view(np.int64)
    rank_hash = splitmix64(seeded_rank).view(np.int64)
    order = np.lexsort((splitmix64(user_hash ^ rank_hash), users))
    # `order` shuffles within the users, which are sorted. A user therefore has the same rows in
    # `order` and in `rank`.
    is_chosen = np.zeros(len(users), bool)
    is_chosen[order[rank < grouping.max_requests_per_user]] = True
    return is_chosen


def ranks_in_runs(keys: Int64) -> Int64:
    """Return the rank of each row in its run of equal keys, int64, from 0."""
    return np.arange(len(keys)) - np.repeat(group_starts(keys), group_lengths(keys))
