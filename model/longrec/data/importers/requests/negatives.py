"""Requests of a log of actions: positives are the log's items, negatives are drawn.

Shape letters: E events of a part, sorted by (user, time, sequence); R requests; P positives;
I items of the catalogue.

A pair of a request and an item is one number: `request * I + row of the item`. A set of pairs is
a sorted array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, int64_column, timestamp_column
from longrec.data.dataset import target_schema
from longrec.data.importers.requests.catalogue import ItemCatalogue
from longrec.data.importers.requests.grouping import (
    RequestGrouping,
    RequestGroups,
    group_events,
    ranks_in_runs,
    sample_requests,
)
from longrec.data.timelines import Mask, history_lengths
from longrec.errors import DataError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

MAX_DRAWS = 32
"""Largest number of draws for one negative; each draw may be rejected."""
MAX_PER_POSITIVE = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class NegativeSampling:
    """Options of the negative sampling for a log without exposures.

    Args:
        per_positive: number of uniform draws without replacement for each positive. There are
            fewer negatives when there are not enough items.
        within: item column with the same value for a negative and its positive; None for any.
        keep_new: whether positives that nobody touched before the request are used. Negatives are
            items that existed before, so a model could tell such positives: they alone are new.
    """

    per_positive: int = 4
    within: str | None = None
    keep_new: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.per_positive <= MAX_PER_POSITIVE:
            raise DataError(
                "negatives is out of range",
                found=self.per_positive,
                expected=f"1 to {MAX_PER_POSITIVE:,} for each positive",
            )

    def require_within(self, columns: Collection[str], expected: str) -> None:
        """Raise a DataError when `within` is not one of the item columns of a log.

        Args:
            columns: item columns that negatives may share with their positives.
            expected: the columns in words.
        """
        if self.within is not None and self.within not in columns:
            raise DataError(
                f"negatives cannot be drawn within '{self.within}'",
                expected=expected,
            )


@dataclasses.dataclass(frozen=True, slots=True)
class ImplicitRequests:
    """Targets of requests with drawn negatives.

    Args:
        targets: the targets, sorted like a part of targets/.
        num_new_positives: number of positives left out because nobody touched them before.
        num_cut: number of positives beyond the `max_targets` of their request.
    """

    targets: pa.Table
    num_new_positives: int
    num_cut: int


class NegativeSampler:
    """Sampler of negatives for the positives of a log.

    Args:
        schema: its one task is 1 for a positive and 0 for a negative.
        grouping: how events are grouped into requests.
        negatives: how negatives are drawn.
        catalogue: the items that they are drawn from.
    """

    def __init__(
        self,
        schema: Schema,
        grouping: RequestGrouping,
        negatives: NegativeSampling,
        catalogue: ItemCatalogue,
    ) -> None:
        self.schema = schema
        self.grouping = grouping
        self.negatives = negatives
        self.catalogue = catalogue
        self._num_items = max(catalogue.num_items, 1)  # a divisor, also for an empty catalogue

    def requests(
        self,
        events: pa.Table,
        first_id: int,
        rng: np.random.Generator,
    ) -> ImplicitRequests:
        """Return the targets of the requests of one part.

        A request is a basket, or a window in a log without baskets, at the time of its first
        event. Its positives are its different items. Its negatives were first seen strictly
        before the request, share the group of a positive and are no items of the request.
        Targets are in the order of item ids, so the order gives no hint of the label.

        Args:
            events: whole users, sorted by (user_id, timestamp, event_seq).
            first_id: id of the first request.
            rng: generator of all draws.
        """
        # All positives of a window first. `_limit` then samples `max_targets` of them.
        whole_windows = dataclasses.replace(self.grouping, max_targets=max(events.num_rows, 1))
        groups = group_events(events, self.schema, whole_windows)
        pairs = self._pairs_of_log(groups, int64_column(events, ITEM_ID))
        positives = pairs
        if not self.negatives.keep_new:
            positives = pairs[self._was_seen_before(pairs, groups.request_times)]
        num_new = len(pairs) - len(positives)
        num_before = len(positives)
        positives = self._limit(positives, rng)
        negatives = self._draw(positives, pairs, groups.request_times, rng)
        targets = self._targets(positives, negatives, groups, first_id)
        return ImplicitRequests(targets, num_new, num_before - len(positives))

    def _pairs_of_log(self, groups: RequestGroups, items: Int64) -> Int64:
        """Return the different (request, item) pairs of the chosen requests, sorted."""
        is_chosen_request = sample_requests(groups.users, self.grouping)
        is_chosen = is_chosen_request[groups.request_of_event]
        item_rows = np.searchsorted(self.catalogue.ids, items[is_chosen])
        requests = groups.request_of_event[is_chosen]
        return np.unique(requests * self._num_items + item_rows)

    def _was_seen_before(self, pairs: Int64, request_times: Int64) -> Mask:
        request, item = np.divmod(pairs, self._num_items)
        was_seen: Mask = self.catalogue.first_times[item] < request_times[request]
        return was_seen

    def _limit(self, pairs: Int64, rng: np.random.Generator) -> Int64:
        """Return a random choice of at most `max_targets` pairs of each request, sorted."""
        requests = pairs // self._num_items
        order = np.lexsort((rng.random(len(pairs)), requests))
        is_chosen = ranks_in_runs(requests[order]) < self.grouping.max_targets
        return np.sort(pairs[order][is_chosen])

    def _draw(
        self,
        positives: Int64,
        excluded: Int64,
        request_times: Int64,
        rng: np.random.Generator,
    ) -> Int64:
        """Return the pairs of the negatives, sorted, without repetition.

        Args:
            positives: int64 [P], pairs.
            excluded: int64, sorted pairs that are no negatives.
            request_times: int64 [R], ms.
            rng: generator of the draws.
        """
        request, start, count = self._candidate_ranges(positives, request_times)
        drawn = np.zeros(0, np.int64)
        pending = np.flatnonzero(count > 0)
        for _ in range(MAX_DRAWS):
            if not len(pending):
                break
            uniform = np.floor(rng.random(len(pending)) * count[pending]).astype(np.int64)
            item = self.catalogue.order[start[pending] + uniform]
            pairs = request[pending] * self._num_items + item
            is_taken = _is_among(pairs, excluded) | _is_among(pairs, drawn)
            is_accepted = _is_first(pairs) & ~is_taken
            drawn = np.sort(np.concatenate([drawn, pairs[is_accepted]]))
            pending = pending[~is_accepted]
        return drawn

    def _candidate_ranges(
        self,
        positives: Int64,
        request_times: Int64,
    ) -> tuple[Int64, Int64, Int64]:
        """Return the range of candidates of each negative, int64 [P * per_positive] each.

        The arrays are the request, the first candidate in the order of the catalogue and the
        number of candidates. Candidates are the items of the positive's group that were seen before
        the request.
        """
        catalogue = self.catalogue
        request, item = np.divmod(positives, self._num_items)
        group = catalogue.groups[item]
        count = history_lengths(
            catalogue.sorted_groups,
            catalogue.sorted_times,
            group,
            request_times[request],
        )
        start = np.searchsorted(catalogue.sorted_groups, group)
        repeats = self.negatives.per_positive
        return np.repeat(request, repeats), np.repeat(start, repeats), np.repeat(count, repeats)

    def _targets(
        self,
        positives: Int64,
        negatives: Int64,
        groups: RequestGroups,
        first_id: int,
    ) -> pa.Table:
        pairs = np.concatenate([positives, negatives])
        labels = np.repeat(np.array([1, 0], np.int8), [len(positives), len(negatives)])
        order = np.argsort(pairs, kind="stable")
        request, item = np.divmod(pairs[order], self._num_items)
        is_next_request = np.diff(request, prepend=-1) > 0
        ids = first_id + np.cumsum(is_next_request) - 1
        columns = {
            REQUEST_ID: ids.astype(np.int64),
            USER_ID: groups.users[request],
            TIMESTAMP: timestamp_column(groups.request_times[request]),
            ITEM_ID: self.catalogue.ids[item],
            self.schema.task_names[0]: labels[order],
        }
        return pa.table(columns).cast(target_schema(self.schema))


def _is_first(values: Int64) -> Mask:
    """Return whether no earlier element has the same value, bool."""
    is_first = np.zeros(len(values), bool)
    is_first[np.unique(values, return_index=True)[1]] = True
    return is_first


def _is_among(values: Int64, sorted_values: Int64) -> Mask:
    if not len(sorted_values):
        return np.zeros(len(values), bool)
    last_row = len(sorted_values) - 1
    rows = np.searchsorted(sorted_values, values)
    nearest = sorted_values[np.minimum(rows, last_row)]
    return np.asarray(nearest == values)
