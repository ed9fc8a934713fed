"""Converted columns: values with their faults by name, and the plain form of any Arrow column.

A value is converted alike whatever values are beside it in its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.undecodable import UNDECODABLE_ERRORS
from longrec.data.timelines import Mask


class Converted(NamedTuple):
    """A converted column.

    Args:
        values: the values, null where one is missing or bad.
        faults: reason to reject a value -> bool [N], which values have it. No value has two.
    """

    values: pa.Array
    faults: dict[str, Mask]

    @property
    def is_bad(self) -> Mask:
        """Whether a value cannot be converted, bool [N]."""
        is_bad = np.zeros(len(self.values), bool)
        for mask in self.faults.values():
            is_bad |= mask
        return is_bad


def all_bad(column: pa.Array, dtype: pa.DataType, reason: str) -> Converted:
    """Return a column of which no value can be converted."""
    return Converted(pa.nulls(len(column), dtype), {reason: np.asarray(pc.is_valid(column))})


def plain_column(column: pa.Array) -> pa.Array:
    """Return a column without dictionary encoding, with bytes and every kind of text as string."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_float16(column.type):
        return column.cast(pa.float64())
    if pa.types.is_string_view(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    return _decode(column) if _is_binary(column.type) else column


def is_text(column: pa.Array) -> bool:
    """Return whether a plain column holds text."""
    return bool(pa.types.is_string(column.type))


def matches(column: pa.Array, pattern: str) -> Mask:
    """Return whether each text matches a regular expression, bool [N]; a null does not."""
    return np.asarray(pc.fill_null(pc.match_substring_regex(column, pattern), False))


def null_outside(column: pa.Array, mask: Mask) -> pa.Array:
    """Return the column with null outside the mask."""
    return pc.if_else(
        pa.array(mask),
        column,
        pa.scalar(None, column.type),
    )


def _is_binary(dtype: pa.DataType) -> bool:
    is_variable = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)
    return bool(
        is_variable or pa.types.is_binary_view(dtype) or pa.types.is_fixed_size_binary(dtype)
    )


def _decode(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [None if value is None else _text(value) for value in column.to_pylist()]
        return pa.array(texts, pa.string())


def _text(value: bytes) -> str:
    return value.decode("utf-8", UNDECODABLE_ERRORS)
