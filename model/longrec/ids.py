"""The rule of ids: an id is an int64; a log that names things by text has the hash of the text.

The schema says which ids are text (`Schema.text_ids`). A log with text ids never parses a text as
a number: `007` is the name of something. Every other log reads a text as decimal digits, because
many callers cannot write a number beyond 2^53.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.errors import DataError

ID_MASK = (1 << 63) - 1
MIN_ID = -(2**63)
MAX_ID = 2**63 - 1
_DECIMAL = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_MAX_SHOWN_CHARACTERS = 40


def text_id(text: str) -> int:
    """Return the id of a text: the last 8 bytes of its MD5 as a little-endian number, 63 bits."""
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") & ID_MASK


def from_decimal(text: str) -> int | None:
    """Return the integer of decimal digits; None for another text, or one beyond int64."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = int(text)
    return number if MIN_ID <= number <= MAX_ID else None


def to_id(name: str, value: int | str, *, is_text: bool) -> int:
    """Return an id as int64.

    Args:
        name: name of the field, for the error.
        value: a number, or a text.
        is_text: whether the log names such things by text. A number then is the id of a text.

    Raises:
        DataError: the value is a text without digits in a log with numbers, or beyond int64.
    """
    if isinstance(value, str):
        if is_text:
            return text_id(value)
        if not _DECIMAL.fullmatch(value):
            raise DataError(
                f"{name}: not an integer",
                found=repr(value[:_MAX_SHOWN_CHARACTERS]),
                expected="an integer: this log has numbers as ids",
            )
        value = int(value)
    if not MIN_ID <= value <= MAX_ID:
        raise DataError(f"{name}: beyond int64", found=value, expected=f"{MIN_ID} to {MAX_ID}")
    return value


def to_ids(
    name: str, values: Sequence[int | str] | npt.NDArray[np.int64], *, is_text: bool
) -> npt.NDArray[np.int64]:
    """Return ids as an int64 array.

    Args, Raises: see `to_id`.
    """
    if isinstance(values, np.ndarray):
        return values
    if not any(isinstance(value, str) for value in values):
        return np.array(values, np.int64)
    ids = [
        to_id(f"{name}[{position}]", value, is_text=is_text)
        for position, value in enumerate(values)
    ]
    return np.array(ids, np.int64)


def hash_texts(column: pa.Array) -> pa.Array:
    """Return the ids of a column of texts, int64; other columns as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    encoded = pc.dictionary_encode(column)
    ids = pa.array([text_id(text) for text in encoded.dictionary.to_pylist()], pa.int64())
    return ids.take(encoded.indices)
