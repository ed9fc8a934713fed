"""Conversion of columns to numbers, labels and text, whole batches at a time.

A value that cannot be converted is bad; it comes out as null and is marked. Arrow's cast
handles most columns. Only a column with bad values takes a slower path.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.text_files import UNDECODABLE
from longrec.data.timelines import Mask

# At most 18 digits, or 19 below 9e18: int64 holds all of these.
INTEGER = r"^\s*[+-]?([0-9]{1,18}|[0-8][0-9]{18})(\.0*)?\s*$"
NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*$"
AROUND_DIGITS = r"^\s*\+?|(\.0*)?\s*$"
"""Space, a plus sign and `.0` around the digits of a whole number."""
MAX_EXACT = 2**53
"""Largest whole number up to which float64 holds every whole number."""


class Converted(NamedTuple):
    """A converted column.

    Args:
        values: the values, null where one is missing or bad.
        is_bad: bool [N], whether a value cannot be converted.
    """

    values: pa.Array
    is_bad: Mask


def to_int64(column: pa.Array) -> Converted:
    """Convert whole numbers to int64; `7.0` is one."""
    try:
        return Converted(column.cast(pa.int64()), _nothing_bad(column))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if not _is_text(column):
        return _whole_numbers(to_float64(column))
    is_integer = _matches(column, INTEGER)
    digits = pc.replace_substring_regex(
        null_outside(column, is_integer),
        pattern=AROUND_DIGITS,
        replacement="",
    )
    others = _whole_numbers(to_float64(null_outside(column, ~is_integer)))
    return Converted(pc.coalesce(digits.cast(pa.int64()), others.values), others.is_bad)


def to_float64(column: pa.Array) -> Converted:
    """Convert numbers to float64; NaN comes out as null."""
    try:
        values = column.cast(pa.float64(), safe=False)  # large integers may be rounded
        is_nan = np.asarray(pc.fill_null(pc.is_nan(values), False))
        return Converted(null_outside(values, ~is_nan), _nothing_bad(column))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if not _is_text(column):
        return _all_bad(column, pa.float64())
    is_number = _matches(column, NUMBER)
    texts = pc.utf8_trim_whitespace(null_outside(column, is_number))
    is_bad = ~is_number & np.asarray(pc.is_valid(column))
    return Converted(texts.cast(pa.float64()), is_bad)


def to_text(column: pa.Array) -> Converted:
    """Convert values to text; text that is not in the encoding of the file is bad."""
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _all_bad(column, pa.string())
    is_undecodable = pc.match_substring(texts, UNDECODABLE)
    return Converted(texts, np.asarray(pc.fill_null(is_undecodable, False)))


def to_label(column: pa.Array) -> Converted:
    """Convert labels to int8; everything but 0 and 1 is bad."""
    values, is_bad = to_int64(column)
    is_label = pc.is_in(values, pa.array([0, 1], pa.int64()))
    is_other = ~np.asarray(pc.fill_null(is_label, True)) & np.asarray(pc.is_valid(values))
    is_bad = is_bad | is_other
    return Converted(null_outside(values, ~is_bad).cast(pa.int8()), is_bad)


def null_outside(column: pa.Array, mask: Mask) -> pa.Array:
    """Return the column with null outside the mask."""
    return pc.if_else(
        pa.array(mask),
        column,
        pa.scalar(None, column.type),
    )


def _whole_numbers(converted: Converted) -> Converted:
    """Convert float64 to int64; numbers that are not whole or not exact are bad."""
    numbers = np.asarray(pc.fill_null(converted.values, 0.0))
    is_whole = np.isfinite(numbers) & (np.floor(numbers) == numbers)
    is_exact = np.abs(numbers) <= MAX_EXACT
    is_bad = converted.is_bad | ~(is_whole & is_exact)
    return Converted(null_outside(converted.values, ~is_bad).cast(pa.int64()), is_bad)


def _matches(column: pa.Array, pattern: str) -> Mask:
    return np.asarray(pc.fill_null(pc.match_substring_regex(column, pattern), False))


def _nothing_bad(column: pa.Array) -> Mask:
    return np.zeros(len(column), bool)


def _all_bad(column: pa.Array, dtype: pa.DataType) -> Converted:
    return Converted(pa.nulls(len(column), dtype), np.asarray(pc.is_valid(column)))


def _is_text(column: pa.Array) -> bool:
    return bool(
        pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or pa.types.is_string_view(column.type)
    )
