"""Requests: windows, baskets, drawn negatives; nothing of a request is in its own history, nothing
comes from the future.
"""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.dataset import TIMESTAMP_TYPE
from longrec.data.importers.requests import (
    Catalogue,
    NegativeSampling,
    RequestGrouping,
    exposure_requests,
    implicit_requests,
    window_starts,
)
from longrec.errors import DataError
from longrec.schema import Feature, Schema, Task

EXPOSED = Schema(
    name="e",
    item=(Feature("item_id", "id"),),
    user=(),
    event=(),
    tasks=(Task("click"), Task("like")),
)
BASKETS = Schema(
    name="b",
    item=(Feature("item_id", "id"),),
    user=(),
    event=(),
    tasks=(Task("label"),),
    has_baskets=True,
)
LOG = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 9), st.integers(0, 1)),
    min_size=1,
    max_size=60,
)
RULES = st.builds(
    RequestGrouping,
    window_ms=st.integers(0, 4),
    max_targets=st.integers(1, 5),
    max_requests_per_user=st.integers(0, 3),
    seed=st.integers(0, 3),
)


def times(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("ms")).cast(TIMESTAMP_TYPE)


def table(rows: list[tuple[int, int, int, int]], baskets: bool = False) -> pa.Table:
    """Events (user, time, item, click); with baskets, one per (user, time)."""
    rows = sorted(rows, key=lambda row: row[:2])
    users, stamps, items, clicks = (
        np.array(column, np.int64) for column in zip(*rows, strict=True)
    )
    columns = {
        "user_id": users,
        "item_id": items,
        "timestamp": times(stamps),
        "event_seq": np.arange(len(rows)),
        "click": clicks.astype(np.int8),
        "like": (items % 2).astype(np.int8),
    }
    return pa.table({**columns, "basket_id": users * 100 + 50 - stamps} if baskets else columns)


def rows_of(targets: pa.Table) -> dict[int, list[dict[str, int]]]:
    out: dict[int, list[dict[str, int]]] = {}
    for row in targets.set_column(
        2, "timestamp", targets["timestamp"].cast(pa.int64())
    ).to_pylist():
        out.setdefault(row["request_id"], []).append(row)
    return out


@given(LOG, RULES)
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_a_plain_loop(
    log: list[tuple[int, int, int, int]], rule: RequestGrouping
) -> None:
    rows = sorted((user, time) for user, time, _, _ in log)
    starts: list[int] = []
    for place, (user, time) in enumerate(rows):
        first = rows[starts[-1]] if starts else (-1, 0)
        if (
            first[0] != user
            or time - first[1] > rule.window_ms
            or place - starts[-1] >= rule.max_targets
        ):
            starts.append(place)
    users, stamps = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    assert window_starts(users, stamps, rule).tolist() == starts


@given(LOG, RULES)
@settings(max_examples=100, deadline=None)
def test_exposures_become_targets_once_at_the_moment_of_the_first(
    log: list[tuple[int, int, int, int]], rule: RequestGrouping
) -> None:
    events = table(log)
    targets = exposure_requests(events, EXPOSED, rule, 10)
    stamps = dict(
        zip(
            events["event_seq"].to_pylist(),
            events["timestamp"].cast(pa.int64()).to_pylist(),
            strict=True,
        )
    )
    requests = rows_of(targets)
    assert list(requests) == list(range(10, 10 + len(requests)))
    for rows in requests.values():
        assert (
            len({(row["user_id"], row["timestamp"]) for row in rows}) == 1
            and len(rows) <= rule.max_targets
        )
    if rule.max_requests_per_user:
        counts = np.unique([rows[0]["user_id"] for rows in requests.values()], return_counts=True)[
            1
        ]
        assert counts.max() <= rule.max_requests_per_user
        return
    assert (
        targets["item_id"].to_pylist() == events["item_id"].to_pylist()
        and targets["click"].to_pylist() == events["click"].to_pylist()
    )
    for rows, seq in zip(
        requests.values(), np.cumsum([0, *(len(rows) for rows in requests.values())]), strict=False
    ):
        assert all(
            rows[0]["timestamp"]
            <= stamps[int(seq) + place]
            <= rows[0]["timestamp"] + rule.window_ms
            for place in range(len(rows))
        )


def test_a_basket_of_exposures_is_one_request() -> None:
    events = pa.table(
        {
            "user_id": [1] * 5,
            "item_id": [1, 2, 3, 4, 5],
            "timestamp": times(np.array([5, 5, 5, 5, 9])),
            "event_seq": [0, 1, 2, 3, 4],
            "basket_id": [8, 7, 8, 7, 6],
            "click": pa.array([1, 0, 0, 1, 1], pa.int8()),
            "like": pa.array([0] * 5, pa.int8()),
        }
    )
    schema = Schema(
        name="e", item=EXPOSED.item, user=(), event=(), tasks=EXPOSED.tasks, has_baskets=True
    )
    targets = exposure_requests(events, schema, RequestGrouping(), 0)
    assert targets["request_id"].to_pylist() == [0, 0, 1, 1, 2] and targets[
        "item_id"
    ].to_pylist() == [2, 4, 1, 3, 5]
    assert targets["click"].to_pylist() == [0, 1, 1, 0, 1]


@given(LOG, RULES, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_drawn_requests_know_no_future_and_no_sibling(
    log: list[tuple[int, int, int, int]],
    rule: RequestGrouping,
    per_positive: int,
    keep_new: bool,
    grouped: bool,
    baskets: bool,
) -> None:
    events = table(log, baskets)
    schema = (
        BASKETS
        if baskets
        else Schema(name="w", item=BASKETS.item, user=(), event=(), tasks=BASKETS.tasks)
    )
    columns = (events["user_id"], events["timestamp"].cast(pa.int64()), events["item_id"])
    history = list(zip(*(column.to_pylist() for column in columns), strict=True))
    first = {
        item: min(time for _, time, other in history if other == item) for _, _, item in history
    }
    ids = np.array(sorted(first))
    groups = ids % 2 if grouped else np.zeros(len(ids), np.int64)
    catalogue = Catalogue.of(
        ids, np.array([first[item] for item in ids]), groups if grouped else None
    )
    negatives = NegativeSampling(per_positive, "parity" if grouped else None, keep_new)
    targets, num_new = implicit_requests(
        events, schema, rule, negatives, catalogue, 100, np.random.default_rng(rule.seed)
    )
    requests = rows_of(targets)
    assert list(requests) == list(range(100, 100 + len(requests)))
    assert [(rows[0]["user_id"], rows[0]["timestamp"]) for rows in requests.values()] == sorted(
        (rows[0]["user_id"], rows[0]["timestamp"]) for rows in requests.values()
    )
    for rows in requests.values():
        user, request_time = rows[0]["user_id"], rows[0]["timestamp"]
        end = request_time if baskets else request_time + rule.window_ms
        basket = {
            item for owner, time, item in history if owner == user and request_time <= time <= end
        }
        positives, drawn = (
            {row["item_id"] for row in rows if row["label"] == label} for label in (1, 0)
        )
        assert len(positives) + len(drawn) == len(rows), "an item is at most once in a request"
        assert positives and positives <= basket and len(positives) <= rule.max_targets
        assert keep_new or all(first[item] < request_time for item in positives)
        assert all(first[item] < request_time for item in drawn), "a negative from the future"
        assert not drawn & basket, "an item of the basket as a negative"
        if grouped:
            assert {item % 2 for item in drawn} <= {item % 2 for item in positives}
        past = {item for item in first if first[item] < request_time and item not in basket}
        for group in (0, 1) if grouped else (None,):
            pool = [item for item in past if group is None or item % 2 == group]
            wanted = per_positive * sum(group is None or item % 2 == group for item in positives)
            got = sum(group is None or item % 2 == group for item in drawn)
            assert got <= min(wanted, len(pool)) and (
                got == wanted or len(pool) < 4 * wanted or not pool
            )
        if baskets:
            mine = {
                sibling
                for sibling, row in zip(events["basket_id"].to_pylist(), history, strict=True)
                if row[:2] == (user, request_time)
            }
            past_baskets = {
                sibling
                for sibling, row in zip(events["basket_id"].to_pylist(), history, strict=True)
                if row[0] == user and row[1] < request_time
            }
            assert len(mine) == 1 and not mine & past_baskets, (
                "a sibling of the basket in the history"
            )
    if keep_new:
        assert num_new == 0
    if not rule.max_requests_per_user and keep_new and baskets:
        assert len(requests) == len({(user, time) for user, time, _ in history})


def test_negatives_are_uniform_over_what_was_there_before() -> None:
    items = np.arange(20)
    catalogue = Catalogue.of(items, items * 10)
    users = np.arange(4_000)
    events = pa.table(
        {
            "user_id": users,
            "item_id": np.full(4_000, 3),
            "timestamp": times(np.full(4_000, 105)),
            "event_seq": users,
            "basket_id": users,
        }
    )
    targets, _ = implicit_requests(
        events, BASKETS, RequestGrouping(), NegativeSampling(2), catalogue, 0, np.random.default_rng(0)
    )
    drawn = targets.filter(pa.compute.equal(targets["label"], 0))["item_id"].to_numpy()
    counts = np.bincount(drawn, minlength=20)
    assert counts[3] == 0 and not counts[11:].any() and counts.sum() == 8_000
    assert np.all(np.abs(counts[[0, 1, 2, 4, 5, 6, 7, 8, 9, 10]] - 800) < 4 * np.sqrt(800))


def test_the_choice_of_requests_does_not_depend_on_the_partition() -> None:
    rows = [(user, 10 * place, place % 7, 1) for user in range(6) for place in range(20)]
    rule = RequestGrouping(window_ms=0, max_requests_per_user=4, seed=3)
    whole = exposure_requests(table(rows), EXPOSED, rule, 0)
    halves = [
        exposure_requests(table([row for row in rows if row[0] % 2 == half]), EXPOSED, rule, 0)
        for half in (0, 1)
    ]
    pick = [
        sorted(zip(part["user_id"].to_pylist(), part["timestamp"].to_pylist(), strict=True))
        for part in (whole, pa.concat_tables(halves))
    ]
    assert pick[0] == pick[1] and len(pick[0]) == 24
    chosen = {
        user: [request_time for owner, request_time in pick[0] if owner == user]
        for user in range(6)
    }
    assert any(
        chosen[first] != chosen[second] for first, second in itertools.combinations(range(6), 2)
    ), "users get different places"


def test_bounds_of_the_rules() -> None:
    for build in (
        lambda: RequestGrouping(window_ms=-1),
        lambda: RequestGrouping(max_targets=0),
        lambda: RequestGrouping(max_requests_per_user=-1),
        lambda: NegativeSampling(0),
        lambda: NegativeSampling(10**6),
    ):
        with pytest.raises(DataError):
            build()
