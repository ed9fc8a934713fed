"""Whole numbers: every int64 survives every type, and a larger one is refused by name."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading.values.converted import plain_column
from longrec.data.importers.reading.values.integers import (
    BEYOND_INT64,
    INEXACT,
    NOT_WHOLE,
    to_int64,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def columns_of(values: list[int | None]) -> list[pa.Array]:
    """Return the values in every type that holds them exactly."""
    texts = [None if value is None else str(value) for value in values]
    decimals = [None if value is None else Decimal(value) for value in values]
    as_bytes = [None if text is None else text.encode() for text in texts]
    columns = [
        pa.array(values, pa.int64()),
        pa.array(decimals, pa.decimal128(20, 0)),
        pa.array(decimals, pa.decimal256(40, 3)),
        pa.array(as_bytes, pa.binary()),
        *(pa.array(texts, dtype) for dtype in (pa.string(), pa.large_string(), pa.string_view())),
    ]
    if all(value is None or value >= 0 for value in values):
        columns.append(pa.array(values, pa.uint64()))
    return columns


@given(st.lists(st.one_of(INT64, st.none()), max_size=10))
@settings(max_examples=40, deadline=None)
def test_every_int64_survives_every_type(values: list[int | None]) -> None:
    for column in columns_of(values):
        is_view = pa.types.is_string_view(column.type)  # Arrow encodes no views
        encoded = column if is_view else column.dictionary_encode()
        for each in (column, encoded):
            converted = to_int64(plain_column(each))
            assert converted.values.to_pylist() == values, each.type
            assert not converted.is_bad.any()


@given(st.lists(INT64, min_size=1, max_size=10), st.sampled_from(["oops", "1.5", "1e99", "0x1"]))
@settings(max_examples=40, deadline=None)
def test_one_bad_value_spoils_no_other(values: list[int], bad: str) -> None:
    converted = to_int64(pa.array([*map(str, values), bad]))
    assert converted.values.to_pylist() == [*values, None]
    assert converted.is_bad.tolist() == [False] * len(values) + [True]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([5, 2**63], pa.uint64()),
        pa.array([Decimal(5), Decimal(2**63)], pa.decimal128(30, 0)),
        pa.array(["5", str(2**63)]),
        pa.array(["5", "1" * 400]),
        pa.array(["5", "1e999"]),
    ],
)
def test_a_number_beyond_int64_is_refused_by_name(column: pa.Array) -> None:
    converted = to_int64(column)
    assert converted.values.to_pylist() == [5, None]
    assert converted.faults[BEYOND_INT64].tolist() == [False, True]


@pytest.mark.parametrize(
    ("dtype", "first_inexact"),
    [(pa.float32(), 2.0**24), (pa.float64(), 2.0**53)],
)
def test_a_float_that_may_stand_for_another_number_is_refused(
    dtype: pa.DataType,
    first_inexact: float,
) -> None:
    column = pa.array([first_inexact - 1, first_inexact, 1.5, None], dtype)
    converted = to_int64(column)
    assert converted.values.to_pylist() == [int(first_inexact) - 1, None, None, None]
    assert converted.faults[INEXACT].tolist() == [False, True, False, False]
    assert converted.faults[NOT_WHOLE].tolist() == [False, False, True, False]
