"""Drawn negatives: no future, no item of the request itself, uniform over earlier items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.requests.catalogue import ItemCatalogue
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampler, NegativeSampling
from tests.longrec.data.importers.requests.events import (
    BASKETS,
    GROUPINGS,
    LOGS,
    WINDOWS,
    LogRow,
    event_table,
    rows_by_request,
    timestamps,
)


@given(LOGS, GROUPINGS, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_requests_know_no_future_and_no_basket_sibling(
    log: list[LogRow],
    grouping: RequestGrouping,
    per_positive: int,
    keep_new: bool,
    has_groups: bool,
    has_baskets: bool,
) -> None:
    events = event_table(log, has_baskets=has_baskets)
    times = events["timestamp"].cast(pa.int64()).to_pylist()
    items = events["item_id"].to_pylist()
    history = list(zip(events["user_id"].to_pylist(), times, items, strict=True))
    first = {
        item: min(time for _, time, other in history if other == item) for _, _, item in history
    }
    ids = np.array(sorted(first))
    first_times = np.array([first[item] for item in ids])
    catalogue = ItemCatalogue.of(ids, first_times, ids % 2 if has_groups else None)
    negatives = NegativeSampling(per_positive, "parity" if has_groups else None, keep_new)
    schema = BASKETS if has_baskets else WINDOWS
    sampler = NegativeSampler(schema, grouping, negatives, catalogue)
    found = sampler.requests(events, 100, np.random.default_rng(grouping.seed))
    requests = rows_by_request(found.targets)
    assert list(requests) == list(range(100, 100 + len(requests)))
    keys = [(rows[0]["user_id"], rows[0]["timestamp"]) for rows in requests.values()]
    assert keys == sorted(keys)
    for rows in requests.values():
        user = rows[0]["user_id"]
        request_time = rows[0]["timestamp"]
        end = request_time if has_baskets else request_time + grouping.window_ms
        basket = {
            item for owner, time, item in history if owner == user and request_time <= time <= end
        }
        positives = {row["item_id"] for row in rows if row["label"] == 1}
        drawn = {row["item_id"] for row in rows if row["label"] == 0}
        assert len(positives) + len(drawn) == len(rows), "an item is at most once in a request"
        assert positives
        assert positives <= basket
        assert len(positives) <= grouping.max_targets
        assert keep_new or all(first[item] < request_time for item in positives)
        assert all(first[item] < request_time for item in drawn), "a negative from the future"
        assert not drawn & basket, "an item of the basket as a negative"
        if has_groups:
            assert {item % 2 for item in drawn} <= {item % 2 for item in positives}
        past = {item for item in first if first[item] < request_time and item not in basket}
        for group in (0, 1) if has_groups else (None,):
            candidates = [item for item in past if _is_in(group, item)]
            num_wanted = per_positive * sum(_is_in(group, item) for item in positives)
            num_drawn = sum(_is_in(group, item) for item in drawn)
            has_few = len(candidates) < 4 * num_wanted or not candidates
            assert num_drawn <= min(num_wanted, len(candidates))
            assert num_drawn == num_wanted or has_few
        if has_baskets:
            owners = list(zip(events["basket_id"].to_pylist(), history, strict=True))
            now = {basket for basket, row in owners if row[:2] == (user, request_time)}
            before = {basket for basket, row in owners if row[0] == user and row[1] < request_time}
            assert len(now) == 1
            assert not now & before, "a sibling of the basket in the history"
    if keep_new:
        assert found.num_new_positives == 0
    if not grouping.max_requests_per_user and keep_new and has_baskets:
        assert len(requests) == len({(user, time) for user, time, _ in history})


def _is_in(group: int | None, item: int) -> bool:
    return group is None or item % 2 == group


def test_negatives_are_uniform_over_earlier_items() -> None:
    items = np.arange(20)
    users = np.arange(4_000)
    events = pa.table(
        {
            "user_id": users,
            "item_id": np.full(4_000, 3),
            "timestamp": timestamps(np.full(4_000, 105)),
            "event_seq": users,
            "basket_id": users,
        }
    )
    sampler = NegativeSampler(
        BASKETS,
        RequestGrouping(),
        NegativeSampling(2),
        ItemCatalogue.of(items, items * 10),
    )
    targets = sampler.requests(events, 0, np.random.default_rng(0)).targets
    drawn = targets.filter(pc.equal(targets["label"], 0))["item_id"].to_numpy()
    counts = np.bincount(drawn, minlength=20)
    assert counts[3] == 0
    assert not counts[11:].any()
    assert counts.sum() == 8_000
    earlier = counts[[0, 1, 2, 4, 5, 6, 7, 8, 9, 10]]
    assert np.all(np.abs(earlier - 800) < 4 * np.sqrt(800))
