"""The rule of ids: a text is hashed in a log with text ids, and read as digits in others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.ids import MAX_ID, MIN_ID, hash_texts, text_id, to_id, to_ids

INT64 = st.integers(MIN_ID, MAX_ID)


@given(INT64)
def test_a_number_and_its_digits_are_the_same_id_in_a_log_with_numbers(number: int) -> None:
    assert to_id("user_id", number, is_text=False) == number
    assert to_id("user_id", str(number), is_text=False) == number


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_log_with_text_ids_never_parses_numbers(text: str) -> None:
    assert to_id("user_id", text, is_text=True) == text_id(text)
    assert 0 <= text_id(text) <= MAX_ID


def test_leading_zeros_are_part_of_a_text_id() -> None:
    assert to_id("item", "007", is_text=True) != to_id("item", "7", is_text=True)


@pytest.mark.parametrize(
    "text", ["", "a", "1.0", "0x1f", "1e3", "١", " 1", "9" * 19, "-" + "9" * 19]
)
def test_a_text_that_is_no_int64_is_refused_in_a_log_with_numbers(text: str) -> None:
    with pytest.raises(DataError, match="user_id"):
        to_id("user_id", text, is_text=False)


@given(st.lists(INT64 | INT64.map(str)))
def test_ids_of_a_list_are_those_of_its_values(values: list[int | str]) -> None:
    expected = [to_id("item", value, is_text=False) for value in values]
    assert to_ids("item", values, is_text=False).tolist() == expected


@pytest.mark.parametrize(
    "dtype", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_column_of_texts_is_hashed_and_nulls_stay(dtype: pa.DataType) -> None:
    column = pa.array(["a", None, "007", "a"]).cast(dtype)
    expected = [text_id("a"), None, text_id("007"), text_id("a")]
    assert hash_texts(column).to_pylist() == expected


def test_a_column_of_numbers_stays() -> None:
    column = pa.array(np.arange(3))
    assert hash_texts(column).equals(column)
