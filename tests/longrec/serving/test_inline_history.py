"""Histories that come with a request, as columns or packed."""

from __future__ import annotations

import pytest

from longrec.data import history
from longrec.errors import DataError
from longrec.serving.inline_history import read_inline_history
from tests.longrec import small_histories
from tests.longrec.serving.small_scorer import User

SCHEMA = small_histories.SCHEMA


@pytest.fixture
def timeline():
    user = User(0)
    user.append(9)
    return user.timeline()


def columns_of(events) -> dict[str, list]:
    names = ("item_id", "timestamp", "event_seq", "action", "seconds")
    return {name: events.column(name).to_pylist() for name in names}


def test_columns_in_any_order_give_the_timeline(timeline) -> None:
    columns = columns_of(timeline)
    backwards = {name: values[::-1] for name, values in columns.items()}
    for given in (columns, backwards):
        assert columns_of(read_inline_history(given, SCHEMA)) == columns


def test_a_packed_history_gives_the_timeline(timeline) -> None:
    packed = history.pack(timeline, SCHEMA)
    assert columns_of(read_inline_history(packed, SCHEMA)) == columns_of(timeline)


def test_missing_features_are_null_and_the_given_order_is_kept() -> None:
    events = read_inline_history({"item_id": [5, 4], "timestamp": [1, 1]}, SCHEMA)
    assert events.column("item_id").to_pylist() == [5, 4]
    assert events.column("action").to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"item_id": [1]}, "timestamp"),
        ({"item_id": [1, 2], "timestamp": [1]}, "timestamp"),
        ({"item_id": [1], "timestamp": [1], "colour": [1]}, "colour"),
        ({"item_id": ["x"], "timestamp": [1]}, "item_id"),
        ({"item_id": [2**70], "timestamp": [1]}, "item_id"),
        ({"item_id": [None], "timestamp": [1]}, "item_id"),
        ({"item_id": [1], "timestamp": [1], "action": [[1]]}, "action"),
        (b"damaged", "not readable"),
    ],
)
def test_a_bad_history_is_an_error_that_names_the_column(columns, named: str) -> None:
    with pytest.raises(DataError, match=f"^history: .*{named}"):
        read_inline_history(columns, SCHEMA)
