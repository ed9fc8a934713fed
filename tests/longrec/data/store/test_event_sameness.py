"""Sameness of events: no way into the store, and no order of ways, doubles or loses an event."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.store import push as pushing
from longrec.data.store.deduplication import FIRST_PUSHED_NUMBER
from longrec.schema import Feature, Schema, Task
from tests.longrec.data.random_log import START_MS
from tests.longrec.data.store.memory_store import Event, MemoryStore

SCHEMA = Schema(
    name="invoices",
    item=(Feature("item_id", "id"),),
    user=(),
    event=(
        Feature("action", "category", "string"),
        Feature("amount", "number", "float64"),
    ),
    tasks=(Task("label"),),
)
NUMBERED = dataclasses.replace(SCHEMA, has_event_numbers=True)
USERS = (1, 2)

event = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(USERS),
        "item_id": st.sampled_from([7, 2**60 + 1]),
        "timestamp": st.sampled_from([START_MS, START_MS + 1]),
        "action": st.sampled_from(["buy", None]),
        "amount": st.sampled_from([0.0, None]),
    }
)
pushes = st.lists(st.lists(event, min_size=1, max_size=6), max_size=4)


@dataclasses.dataclass(frozen=True)
class Story:
    """Steps of a work directory.

    Args:
        log: the events of the last log; each earlier log is a beginning of it.
        steps: a number is a refresh with so many events, a list of events a push.
    """

    log: list[Event]
    steps: list[int | list[Event]]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Draw a growing log and pushes of some of its events and of others, in any order."""
    log = draw(st.lists(event, min_size=1, max_size=8))
    lengths = sorted(draw(st.lists(st.integers(1, len(log)), max_size=3)))
    some_of_log = st.lists(st.sampled_from(log), min_size=1, max_size=6)
    other = st.lists(event, min_size=1, max_size=6)
    pushed = draw(st.lists(some_of_log | other, max_size=4))
    is_push = draw(st.permutations([True] * len(pushed) + [False] * len(lengths)))
    steps: list[int | list[Event]] = [
        pushed.pop() if is_one else lengths.pop(0) for is_one in is_push
    ]
    return Story(log, [1, *steps, len(log)])


def content(row: Event) -> tuple[Any, ...]:
    """Return the values of an event, in the order of the columns, without its number."""
    return tuple(row[name] for name in ("item_id", "timestamp", "action", "amount"))


def contents(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return [content(row) for row in batch.to_pylist()]


def expected(log: list[Event], pushed: list[list[Event]], user: int) -> Counter[Any]:
    """Return how many of each event a history holds: the most of any one source."""
    counts = Counter[Any]()
    for source in (log, *pushed):
        counts |= Counter(content(row) for row in source if row["user_id"] == user)
    return counts


def play(directory: Path, story: Story) -> MemoryStore:
    """Take all steps of a story and compare the histories after each."""
    store = MemoryStore(directory, SCHEMA)
    log = []
    pushed = []
    for step in story.steps:
        if isinstance(step, int):
            log = story.log[:step]
            store.refresh(log)
        else:
            pushed.append(step)
            store.push(step)
        for user in USERS:
            served = Counter(contents(store.served(user)))
            assert served == expected(log, pushed, user)
    return store


@settings(max_examples=30)
@given(stories())
def test_any_order_of_pushes_and_refreshes_gives_each_event_once(story: Story) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(pushing, "MAX_TAIL_EVENTS", 3)
        play(Path(directory), story)


@settings(max_examples=15)
@given(stories(), st.randoms())
def test_events_of_equal_time_have_one_order_whichever_path_they_came_by(
    story: Story, shuffle: random.Random
) -> None:
    pushed = [step for step in story.steps if isinstance(step, list)]
    shuffle.shuffle(pushed)
    for rows in pushed:
        shuffle.shuffle(rows)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        store = play(Path(directory) / "one", story)
        patch.setattr(pushing, "MAX_TAIL_EVENTS", 3)  # some are compacted
        other = MemoryStore(Path(directory) / "other", SCHEMA)
        other.refresh(story.log)
        for rows in pushed:
            other.push(rows)
        for user in USERS:
            assert store.served(user).equals(other.served(user))


@settings(max_examples=15)
@given(stories())
def test_the_order_of_the_log_comes_before_the_pushed_events_of_a_time(story: Story) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = play(Path(directory), story)
        for user in USERS:
            rows = store.served(user).to_pylist()
            logged = [row for row in rows if row["event_seq"] < FIRST_PUSHED_NUMBER]
            own = [row for row in story.log if row["user_id"] == user]
            own.sort(key=lambda row: row["timestamp"])
            assert [content(row) for row in logged] == [content(row) for row in own]
            keys = [(row["timestamp"], row["event_seq"]) for row in rows]
            assert keys == sorted(set(keys))


LINE = {"user_id": 1, "item_id": 7, "timestamp": START_MS, "action": "buy", "amount": 2.5}


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore(tmp_path, SCHEMA)
    store.refresh([LINE])
    return store


def test_two_equal_lines_of_one_push_are_two_events_and_their_repetition_none(
    store: MemoryStore,
) -> None:
    assert store.push([LINE, LINE]) == 1
    assert store.push([LINE, LINE]) == 0
    assert store.push([LINE]) == 0
    store.refresh([LINE, LINE])
    assert store.served(1).num_rows == 2


def test_a_row_that_is_sent_twice_with_its_event_seq_is_one_event(store: MemoryStore) -> None:
    assert store.push([{**LINE, "event_seq": 5}, {**LINE, "event_seq": 5}]) == 0
    assert store.push([{**LINE, "event_seq": 5}, {**LINE, "event_seq": 6}]) == 1


def test_the_event_seq_of_a_producer_does_not_make_another_event(store: MemoryStore) -> None:
    assert store.push([{**LINE, "event_seq": 900}]) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"action": None}, {"action": ""}),
        ({"amount": None}, {"amount": float("nan")}),
        ({"amount": 0.0}, {"amount": -0.0}),
    ],
)
def test_missing_values_and_zeros_of_any_form_are_equal(
    store: MemoryStore,
    first: Event,
    second: Event,
) -> None:
    assert store.push([{**LINE, **first}]) == 1
    assert store.push([{**LINE, **second}]) == 0


def test_events_of_one_item_and_time_with_other_features_are_others(store: MemoryStore) -> None:
    assert store.push([{**LINE, "action": "view", "event_seq": 0}]) == 1
    assert store.push([{**LINE, "amount": 2.0, "event_seq": 0}]) == 1
    assert store.served(1).num_rows == 3


def test_numbers_of_the_log_tell_equal_events_apart(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, NUMBERED)
    store.refresh([LINE])
    assert store.push([{**LINE, "event_seq": 0}]) == 0
    assert store.push([{**LINE, "event_seq": 1}]) == 1
    store.refresh([LINE, LINE])
    assert store.served(1).num_rows == 2


def in_basket(row: Event, time_ms: int) -> Event:
    return {**row, "basket_id": 9, "timestamp": time_ms}


@pytest.mark.parametrize("schema", [SCHEMA, NUMBERED])
def test_a_pushed_line_moves_to_the_time_that_its_basket_has_in_the_next_log(
    tmp_path: Path, schema: Schema
) -> None:
    store = MemoryStore(tmp_path, dataclasses.replace(schema, has_baskets=True))
    earlier = {**LINE, "basket_id": 8}
    store.refresh([earlier])
    first = in_basket(LINE, START_MS + 1)
    lacking = in_basket({**LINE, "item_id": 2}, START_MS + 1)
    store.push([{**first, "event_seq": 1}, {**lacking, "event_seq": 7}])
    basket = [in_basket(row, START_MS + 5) for row in (LINE, {**LINE, "item_id": 3})]
    store.refresh([earlier, *basket])
    rows = store.served(1).to_pylist()
    assert [row["item_id"] for row in rows] == [7, 7, 3, 2]
    assert {row["timestamp"] for row in rows[1:]} == {START_MS + 5}
