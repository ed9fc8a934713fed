"""Requests: which targets were ranked together, for whom, at which moment.

A log of exposures says it itself: `exposure_requests` groups one user's exposures within a short
window; the moment is that of the
first, so nothing that was shown together is in the history (histories are strictly before the
moment). A log without exposures
has positives only: `implicit_requests` takes a basket (or a window) as one request and draws
negatives for it.

Shape letters: E events of a part, sorted by (user, time, sequence); R requests; P positives; K
negatives for each.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.dataset import group_starts, history_lengths, int64_of, target_schema
from longrec.data.encoder import splitmix64
from longrec.errors import DataError
from longrec.schema import BASKET_ID, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

MAX_ROUNDS = 32
"""Times that a rejected draw of a negative is repeated before it is given up."""

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class RequestRule:
    """How requests are cut out of a log.

    Args:
        window_ms: exposures of one user no later than this after the first belong to one request.
        max_targets: most targets of one request; the next exposure begins a new one. For a log
            without exposures it is
            the number of positives that is bounded, by a seeded choice.
        max_requests_per_user: a seeded choice of each user's requests; 0 for all.
        seed: of every choice.
    """

    window_ms: int = 300_000
    max_targets: int = 64
    max_requests_per_user: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("window_ms", 0), ("max_targets", 1), ("max_requests_per_user", 0)):
            if getattr(self, name) < least:
                raise DataError(
                    f"{name} is out of its bounds",
                    found=getattr(self, name),
                    expected=f"at least {least}",
                )


def window_starts(users: Int64, times: Int64, rule: RequestRule) -> Int64:
    """Returns the index of the first event of each request, int64 [R], rising.

    Greedy: a request takes its first event and those of the same user up to `window_ms` later,
    `max_targets` at most.

    Args:
        users, times: int64 [E], sorted by (user, time).
    """
    first = group_starts(users)
    ends = np.append(first[1:], len(users))
    reach = np.repeat(first, ends - first) + history_lengths(
        users, times, users, times + rule.window_ms + 1
    )
    following = np.minimum(reach, np.arange(len(users)) + rule.max_targets)
    found, current = [], first
    while len(current):
        found.append(current)
        alive = following[current] < ends
        current, ends = following[current][alive], ends[alive]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)


def exposure_requests(
    events: pa.Table, schema: Schema, rule: RequestRule, first_id: int
) -> pa.Table:
    """Returns the targets of the requests of one part of a log of exposures, sorted as a part of
    targets/ is.

    Args:
        events: whole users, sorted by (user_id, timestamp, event_seq), with one 0/1 column per
            task.
        schema: names the tasks; with baskets, a request is a basket (its first `max_targets` rows)
            and no window.
        rule: window and bounds.
        first_id: request ids count from here.
    """
    users, request_times, request, _ = _groups(events, schema, rule)
    kept = _sample(users, rule)
    rows = np.argsort(request, kind="stable")
    rows = rows[kept[request[rows]] & (_ranks(request[rows]) < rule.max_targets)]
    ids = first_id + np.cumsum(kept)[request[rows]] - 1
    chosen = events.take(pa.array(rows))
    columns = {
        REQUEST_ID: pa.array(ids),
        USER_ID: chosen[USER_ID],
        TIMESTAMP: _times(request_times[request[rows]]),
        ITEM_ID: chosen[ITEM_ID],
        **{task: chosen[task] for task in schema.task_names},
    }
    return pa.table(columns).cast(target_schema(schema))


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that negatives are drawn from, sorted by (group, first time), and the row of each
    item id.

    Args:
        ids: int64 [I], sorted item ids that occur in the log.
        order: int64 [I], rows of `ids` sorted by (group, first time).
        groups: int64 [I], group of each id; one group for all where negatives may be any item.
        sorted_groups, sorted_times: int64 [I], group and first time (ms) in the sorted order.
        first_times: int64 [I], first time of each id in the log, ms.
    """

    ids: Int64
    order: Int64
    groups: Int64
    sorted_groups: Int64
    sorted_times: Int64
    first_times: Int64

    @classmethod
    def of(
        cls,
        ids: Int64,
        first_times: Int64,
        groups: Int64 | None = None,
    ) -> Catalogue:
        """Returns the catalogue of sorted `ids` first seen at `first_times`, negatives drawn within
        equal `groups`.
        """
        groups = np.zeros(len(ids), np.int64) if groups is None else groups
        order = np.lexsort((first_times, groups))
        return cls(ids, order, groups, groups[order], first_times[order], first_times)


@dataclasses.dataclass(frozen=True, slots=True)
class NegativeRule:
    """How negatives are drawn for a log without exposures.

    Args:
        per_positive: K, uniform draws without replacement for each positive; fewer where there are
            not enough items.
        within: item column whose value a negative shares with its positive; None for any item.
        keep_new: whether a positive that nobody touched before the request stays. Negatives are
            items that were there
            before, so with True a model can tell such positives by their being new.
    """

    per_positive: int = 4
    within: str | None = None
    keep_new: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.per_positive <= 10_000:
            raise DataError(
                "negatives is out of its bounds",
                found=self.per_positive,
                expected="1 to 10,000 for each positive",
            )


def implicit_requests(
    events: pa.Table,
    schema: Schema,
    rule: RequestRule,
    negatives: NegativeRule,
    catalogue: Catalogue,
    first_id: int,
    rng: np.random.Generator,
) -> tuple[pa.Table, int]:
    """Returns the targets of the requests of one part of a log without exposures, and how many
    positives were left out as new.

    A request is a basket, at the time of its first event; without baskets, a window. Its positives
    are its different items.
    Its negatives come from the items first seen strictly before the moment, within the group of a
    positive, and are never an
    item of the basket. Targets are in the order of item ids, so their places say nothing.

    Args:
        events: whole users, sorted by (user_id, timestamp, event_seq).
        schema: its one task is 1 for a positive, 0 for a negative.
        rule: bounds.
        negatives: how many.
        catalogue: what to draw from.
        first_id: request ids count from here.
        rng: of the draws.
    """
    users, request_times, request, items = _groups(
        events, schema, dataclasses.replace(rule, max_targets=max(events.num_rows, 1))
    )
    kept = _sample(users, rule)
    keys = np.unique(
        request[kept[request]] * len(catalogue.ids)
        + np.searchsorted(catalogue.ids, items[kept[request]])
    )
    positives = keys if negatives.keep_new else keys[_is_old(keys, request_times, catalogue)]
    num_new = len(keys) - len(positives)
    positives = _at_most(positives, len(catalogue.ids), rule, rng)
    drawn = _draw(positives, keys, request_times, negatives.per_positive, catalogue, rng)
    targets = np.concatenate([positives, drawn])
    labels = np.repeat(np.array([1, 0], np.int8), [len(positives), len(drawn)])
    order = np.argsort(targets, kind="stable")
    row, item = np.divmod(targets[order], max(len(catalogue.ids), 1))
    ids = first_id + np.cumsum(np.diff(row, prepend=-1) > 0) - 1
    return pa.table(
        {
            REQUEST_ID: ids.astype(np.int64),
            USER_ID: users[row],
            TIMESTAMP: _times(request_times[row]),
            ITEM_ID: catalogue.ids[item],
            schema.task_names[0]: labels[order],
        }
    ).cast(target_schema(schema)), num_new


def _groups(
    events: pa.Table, schema: Schema, rule: RequestRule
) -> tuple[Int64, Int64, Int64, Int64]:
    """Returns (user, moment) of each request by (user, moment), and (request, item) of each
    event.
    """
    users, times, items = (int64_of(events, name) for name in (USER_ID, TIMESTAMP, ITEM_ID))
    if schema.has_baskets:
        baskets = int64_of(events, BASKET_ID)
        order = np.lexsort((times, baskets, users))
        starts = group_starts(users[order], baskets[order])
        by_time = np.lexsort((baskets[order][starts], times[order][starts], users[order][starts]))
        rank = np.empty(len(starts), np.int64)
        rank[by_time] = np.arange(len(starts))
        request = np.empty(len(users), np.int64)
        request[order] = np.repeat(rank, np.diff(np.append(starts, len(users))))
        first = order[starts][by_time]
    else:
        first = window_starts(users, times, rule)
        request = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(users))))
    return users[first], times[first], request, items


def _is_old(keys: Int64, request_times: Int64, catalogue: Catalogue) -> Bools:
    row, item = np.divmod(keys, max(len(catalogue.ids), 1))
    old: Bools = catalogue.first_times[item] < request_times[row]
    return old


def _at_most(
    keys: Int64,
    num_items: int,
    rule: RequestRule,
    rng: np.random.Generator,
) -> Int64:
    """Returns a random choice of at most `max_targets` keys of each request, sorted."""
    order = np.lexsort((rng.random(len(keys)), keys // max(num_items, 1)))
    return np.sort(keys[order][_ranks(keys[order] // max(num_items, 1)) < rule.max_targets])


def _draw(
    positives: Int64,
    excluded: Int64,
    request_times: Int64,
    per_positive: int,
    catalogue: Catalogue,
    rng: np.random.Generator,
) -> Int64:
    """Returns the keys (request * I + item) of the negatives, different within a request and none
    in sorted `excluded`.
    """
    num_items = max(len(catalogue.ids), 1)
    row, item = np.divmod(positives, num_items)
    group = catalogue.groups[item]
    count = history_lengths(
        catalogue.sorted_groups, catalogue.sorted_times, group, request_times[row]
    )
    row, start, count = (
        np.repeat(column, per_positive)
        for column in (row, np.searchsorted(catalogue.sorted_groups, group), count)
    )
    taken, pending = np.zeros(0, np.int64), np.flatnonzero(count > 0)
    for _ in range(MAX_ROUNDS):
        if not len(pending):
            break
        place = start[pending] + np.floor(rng.random(len(pending)) * count[pending]).astype(
            np.int64
        )
        keys = row[pending] * num_items + catalogue.order[place]
        fresh = np.zeros(len(keys), bool)
        fresh[np.unique(keys, return_index=True)[1]] = True
        fresh &= ~_among(keys, excluded) & ~_among(keys, taken)
        taken, pending = np.sort(np.concatenate([taken, keys[fresh]])), pending[~fresh]
    return taken


def _among(keys: Int64, sorted_keys: Int64) -> Bools:
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    found: Bools = (
        sorted_keys[np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)] == keys
    )
    return found


def _sample(users: Int64, rule: RequestRule) -> Bools:
    """Returns which requests stay: a choice by hash of (seed, user, place in the user's requests),
    the same in any partition.
    """
    if not rule.max_requests_per_user:
        return np.ones(len(users), bool)
    place = _ranks(users)
    keys = splitmix64(
        splitmix64(users).view(np.int64)
        ^ splitmix64(place + np.int64(rule.seed) * 1_000_003).view(np.int64)
    )
    order = np.lexsort((keys, users))
    kept = np.zeros(len(users), bool)
    kept[order[place < rule.max_requests_per_user]] = True
    return kept


def _ranks(keys: Int64) -> Int64:
    """Returns the place of each row in its run of equal keys, from 0."""
    starts = group_starts(keys)
    return np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))


def _times(values: Int64) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("ms")).cast(pa.timestamp("ms", tz="UTC"))
