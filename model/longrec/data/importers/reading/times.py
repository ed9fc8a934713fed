"""Conversion of times to int64 milliseconds since 1970 UTC."""

from __future__ import annotations

import datetime
import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.history import MAX_TIMESTAMP_MS
from longrec.data.importers.reading.numbers import Converted, to_float64, to_int64, to_text

EARLIEST_MS = 315_532_800_000
"""1980-01-01 UTC, the earliest time that is accepted.

Seconds read as milliseconds fall before it, milliseconds read as seconds after
`MAX_TIMESTAMP_MS`.
"""

Unit = Literal["s", "ms", "us", "ns", "iso"]
UNITS_PER_MS = {"us": 1_000, "ns": 1_000_000}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def to_time_ms(column: pa.Array, unit: str) -> Converted:
    """Convert times to int64 ms; times before 1980 or after 2099 are bad.

    Args:
        column: the times. A timestamp column has its own unit; without a zone it is UTC.
        unit: `s`, `ms`, `us`, `ns` or `iso`.
    """
    values, is_bad = to_any_time_ms(column, unit)
    numbers = np.asarray(pc.fill_null(values, EARLIEST_MS))
    is_outside = (numbers < EARLIEST_MS) | (numbers >= MAX_TIMESTAMP_MS)
    return Converted(values, is_bad | is_outside)


def to_any_time_ms(column: pa.Array, unit: str) -> Converted:
    """Convert times to int64 ms, whatever their year.

    Args:
        column, unit: as in `to_time_ms`.
    """
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        times = column.cast(pa.timestamp("ms"), safe=False)
        return Converted(times.cast(pa.int64()), np.zeros(len(column), bool))
    if unit == "iso":
        return _parse_iso(column)
    if unit == "s":
        return _parse_seconds(column)
    values, is_bad = to_int64(column)
    if unit == "ms":
        return Converted(values, is_bad)
    return Converted(pc.divide(values, UNITS_PER_MS[unit]), is_bad)


def _parse_seconds(column: pa.Array) -> Converted:
    values, is_bad = to_int64(column)
    if is_bad.any():  # seconds with decimals are bad as whole numbers
        seconds, is_bad = to_float64(column)
        milliseconds = pc.floor(pc.multiply(seconds, 1000.0))
        return Converted(milliseconds.cast(pa.int64(), safe=False), is_bad)
    # Clipped, so that the product cannot overflow. `to_time_ms` rejects the clipped values: they
    # are still out of range.
    below = pc.min_element_wise(values, MAX_TIMESTAMP_MS, skip_nulls=False)
    clipped = pc.max_element_wise(below, -1, skip_nulls=False)
    return Converted(pc.multiply(clipped, 1_000), is_bad)


def _parse_iso(column: pa.Array) -> Converted:
    texts, is_bad = to_text(column)
    # Arrow reads a column in which no time, or every time, has a zone. Others are read one by one.
    for time_type in (pa.timestamp("ms"), pa.timestamp("ms", tz="UTC")):
        try:
            return Converted(texts.cast(time_type).cast(pa.int64()), is_bad)
        except pa.ArrowInvalid:
            continue
    numbers = [None if text is None else _iso_to_ms(text) for text in texts.to_pylist()]
    values = pa.array(numbers, pa.int64())
    is_unparsed = np.asarray(pc.is_null(values)) & np.asarray(pc.is_valid(texts))
    return Converted(values, is_bad | is_unparsed)


def _iso_to_ms(text: str) -> int | None:
    try:
        time = datetime.datetime.fromisoformat(re.sub(r"\s+", " ", text.strip()))
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - EPOCH) // datetime.timedelta(milliseconds=1)
