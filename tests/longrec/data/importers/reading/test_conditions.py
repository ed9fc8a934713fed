"""Conditions: equality of texts and numbers, comparisons of size, names, and misdescriptions."""

from __future__ import annotations

import pyarrow as pa
import pytest

from longrec.data.importers.reading.conditions import is_condition, parse_condition
from longrec.errors import DataError


@pytest.mark.parametrize(
    ("text", "column", "holds"),
    [
        ("x=buy", ["buy", " buy ", "Buy", None], [1, 1, 0, None]),
        ("x!=buy", ["buy", "view", None], [0, 1, None]),
        ("x==1", ["1", "1.0", "01", "one"], [1, 1, 1, 0]),
        ("x>=4", ["4", "3.9", " 5 ", None], [1, 0, 1, None]),
        ("x>-1", [0, -1, None], [1, 0, None]),
        ("x<1e3", [999.0, 1000.0], [1, 0]),
        ("x=true", [True, False], [1, 0]),
    ],
)
def test_a_condition_holds_by_text_or_number(
    text: str,
    column: list[object],
    holds: list[int | None],
) -> None:
    array = pa.array(column)
    assert parse_condition(text).evaluate(array).values.to_pylist() == holds
    assert parse_condition(text).evaluate(array.dictionary_encode()).values.to_pylist() == holds


def test_a_value_that_is_no_number_cannot_be_compared_by_size() -> None:
    converted = parse_condition("x>0").evaluate(pa.array(["1", "many"]))
    assert converted.values.to_pylist() == [1, None]
    assert converted.faults["is not a number"].tolist() == [False, True]


def test_a_name_may_come_first() -> None:
    liked = parse_condition("liked=rating>=4", may_have_name=True)
    assert (liked.name, liked.column, liked.operator, liked.value) == ("liked", "rating", ">=", "4")
    unnamed = parse_condition("event=purchase", may_have_name=True)
    assert (unnamed.name, unnamed.column, unnamed.value) == ("", "event", "purchase")
    assert not is_condition("clicked")


@pytest.mark.parametrize("text", ["rating", "=4", "rating>=four", "", ">3"])
def test_a_misdescribed_condition_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_condition(text)
