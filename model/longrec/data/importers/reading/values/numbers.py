"""Conversion of columns to float64, labels and text, whole batches at a time.

A value that cannot be converted is bad; it comes out as null and is marked. Arrow's cast
handles most columns. Only a column with bad values takes a slower path.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.undecodable import UNDECODABLE
from longrec.data.importers.reading.values.converted import (
    Converted,
    all_bad,
    is_text,
    matches,
    null_outside,
)
from longrec.data.importers.reading.values.integers import NUMBER, to_int64

NAN_TEXT = r"(?i)^\s*[+-]?nan\s*$"
TRUTH_TEXT = r"(?i)^\s*(true|false)\s*$"
TRUE_TEXT = r"(?i)^\s*true\s*$"
NOT_A_NUMBER = "is not a number"
NOT_A_LABEL = "is not 0 or 1"
NOT_A_VALUE = "is a list or an object, not a single value"
NOT_ENCODED = "is not in the encoding of the file"


def to_float64(column: pa.Array) -> Converted:
    """Convert numbers to float64; NaN comes out as null, and an infinite number is bad."""
    if is_text(column):
        return _parse_floats(column)
    try:
        values = column.cast(pa.float64(), safe=False)  # large integers may be rounded
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return all_bad(column, pa.float64(), NOT_A_NUMBER)
    is_infinite = np.asarray(pc.fill_null(pc.is_inf(values), False))
    is_finite = np.asarray(pc.fill_null(pc.is_finite(values), False))
    return Converted(null_outside(values, is_finite), {NOT_A_NUMBER: is_infinite})


def to_text(column: pa.Array) -> Converted:
    """Convert values to text; text that is not in the encoding of the file is bad."""
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return all_bad(column, pa.string(), NOT_A_VALUE)
    is_undecodable = pc.match_substring(texts, UNDECODABLE)
    return Converted(texts, {NOT_ENCODED: np.asarray(pc.fill_null(is_undecodable, False))})


def to_label(column: pa.Array) -> Converted:
    """Convert labels to int8; everything but 0 and 1, or true and false in text, is bad."""
    converted = to_int64(column)
    if is_text(column) and converted.is_bad.any():
        converted = to_int64(_with_digits_for_truth(column))
    values = converted.values
    is_label = pc.is_in(values, pa.array([0, 1], pa.int64()))
    is_other = ~np.asarray(is_label) & np.asarray(pc.is_valid(values))
    is_bad = converted.is_bad | is_other
    return Converted(null_outside(values, ~is_bad).cast(pa.int8()), {NOT_A_LABEL: is_bad})


def _parse_floats(column: pa.Array) -> Converted:
    try:
        values = column.cast(pa.float64())
        if pc.all(pc.is_finite(values)).as_py() is not False:
            return Converted(values, {})
    except pa.ArrowInvalid:
        pass
    is_number = matches(column, NUMBER)
    texts = pc.utf8_trim_whitespace(null_outside(column, is_number))
    values = texts.cast(pa.float64())
    is_finite = np.asarray(pc.fill_null(pc.is_finite(values), False))
    is_missing = np.asarray(pc.is_null(column)) | matches(column, NAN_TEXT)
    return Converted(null_outside(values, is_finite), {NOT_A_NUMBER: ~is_finite & ~is_missing})


def _with_digits_for_truth(column: pa.Array) -> pa.Array:
    digits = np.where(matches(column, TRUE_TEXT), "1", "0").tolist()
    is_truth = pa.array(matches(column, TRUTH_TEXT))
    return pc.if_else(is_truth, pa.array(digits, pa.string()), column.cast(pa.string()))
