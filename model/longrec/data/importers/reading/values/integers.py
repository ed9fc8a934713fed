"""Conversion of columns to int64: exact for every whole number, whatever type holds it."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.values.converted import (
    Converted,
    all_bad,
    is_text,
    matches,
    null_outside,
)
from longrec.data.timelines import Mask

INTEGER = r"^\s*[+-]?([0-9]{1,18}|[0-8][0-9]{18})(\.0*)?\s*$"
"""At most 18 digits, or 19 below 9e18: int64 holds all of these."""
NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*$"
AROUND_DIGITS = r"^\s*\+?|(\.0*)?\s*$"
"""Space, a plus sign and `.0` around the digits of a whole number."""
NOT_WHOLE = "is not a whole number"
BEYOND_INT64 = "is beyond int64, from -2^63 to 2^63 - 1"
INEXACT = "is a float too large to be exact, so it may stand for another whole number"
FIRST_INEXACT = {32: 2**24, 64: 2**53}
"""Bits of a float -> the smallest one that several whole numbers are rounded to."""
MIN_INT64 = -(2**63)
MAX_INT64 = 2**63 - 1
MAX_EXPONENT = 18
"""Power of ten of the largest int64."""


def to_int64(column: pa.Array) -> Converted:
    """Convert whole numbers to int64; `7.0` is one.

    Args:
        column: a plain column (`converted.plain_column`).
    """
    if is_text(column):
        return _parse(column)
    if pa.types.is_decimal(column.type):
        return _parse(column.cast(pa.string()))
    if pa.types.is_floating(column.type):
        return _whole_floats(column)
    if pa.types.is_uint64(column.type):
        is_larger = pc.greater(column, pa.scalar(MAX_INT64, pa.uint64()))
        is_beyond = np.asarray(pc.fill_null(is_larger, False))
        values = null_outside(column, ~is_beyond).cast(pa.int64())
        return Converted(values, {BEYOND_INT64: is_beyond})
    try:
        return Converted(column.cast(pa.int64()), {})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return all_bad(column, pa.int64(), NOT_WHOLE)


def _parse(column: pa.Array) -> Converted:
    """Convert text; Arrow's cast handles most columns, only others take slower paths."""
    if not _may_be_hexadecimal(column):  # the cast would read 0x1F as 31
        try:
            return Converted(column.cast(pa.int64()), {})
        except pa.ArrowInvalid:
            pass
    is_integer = matches(column, INTEGER)
    digits = pc.replace_substring_regex(
        null_outside(column, is_integer),
        pattern=AROUND_DIGITS,
        replacement="",
    )
    others = _parse_exactly(null_outside(column, ~is_integer))
    return Converted(pc.coalesce(digits.cast(pa.int64()), others.values), others.faults)


def _may_be_hexadecimal(column: pa.Array) -> bool:
    has_x = [pc.any(pc.match_substring(column, letter)).as_py() for letter in "xX"]
    return any(has_x)


def _parse_exactly(column: pa.Array) -> Converted:
    """Convert text one by one: nineteen digits from 9e18, exponents, and all that is bad."""
    is_number = matches(column, NUMBER)
    numbers: list[int | None] = [None] * len(column)
    is_beyond = np.zeros(len(column), bool)
    is_whole = np.zeros(len(column), bool)
    for row in np.flatnonzero(is_number):
        decimal = Decimal(column[row].as_py().strip())
        is_whole[row] = decimal == decimal.to_integral_value()
        is_beyond[row] = is_whole[row] and not _fits_int64(decimal)
        if is_whole[row] and not is_beyond[row]:
            numbers[row] = int(decimal)
    is_not_whole = np.asarray(pc.is_valid(column)) & ~is_whole
    faults = {NOT_WHOLE: is_not_whole, BEYOND_INT64: is_beyond}
    return Converted(pa.array(numbers, pa.int64()), faults)


def _fits_int64(decimal: Decimal) -> bool:
    # A number of a thousand digits is not made for the comparison.
    return decimal.adjusted() <= MAX_EXPONENT and MIN_INT64 <= int(decimal) <= MAX_INT64


def _whole_floats(column: pa.Array) -> Converted:
    """Convert floats; NaN comes out as null."""
    limit = FIRST_INEXACT[column.type.bit_width]
    column = column.cast(pa.float64())
    numbers = np.asarray(pc.fill_null(column, np.nan))
    is_whole = np.isfinite(numbers) & (np.floor(numbers) == numbers)
    is_inexact = is_whole & (np.abs(numbers) >= limit)
    is_not_whole: Mask = ~is_whole & ~np.isnan(numbers)
    values = null_outside(column, is_whole & ~is_inexact).cast(pa.int64())
    return Converted(values, {NOT_WHOLE: is_not_whole, INEXACT: is_inexact})
