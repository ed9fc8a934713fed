"""Dates and times as text: ISO 8601 and its common variants, converted to int64 milliseconds."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.importers.reading.values.converted import Converted, matches, null_outside
from longrec.data.importers.reading.values.numbers import to_text
from longrec.times import datetime_to_ms

NOT_A_DATE = (
    "is not a date such as 2023-11-14 22:13:21 UTC, 2023/11/14 or 2023-11-14T22:13:21+02:00"
)
VARIANTS = (
    (r"\s+", " "),
    (r"^ | $", ""),
    (r"^([0-9]{4})/([0-9]{1,2})/([0-9]{1,2})\b", r"\1-\2-\3"),
    (r"^([0-9]{4})-([0-9])-", r"\1-0\2-"),
    (r"^([0-9]{4}-[0-9]{2})-([0-9])( |T|$)", r"\1-0\2\3"),
    (r"^(.{10})t", r"\1T"),
    (r"(:[0-9]{2}(\.[0-9]+)?) ?(UTC|GMT|utc|gmt|Z|z)$", r"\1Z"),
    (r"(:[0-9]{2}(\.[0-9]+)?) ([+-][0-9]{2}(:?[0-9]{2})?)$", r"\1\3"),
    (r"(:[0-9]{2}\.[0-9]{3})[0-9]+", r"\1"),
)
"""Patterns of variants of ISO 8601 and what to put in their place, in this order."""
WITH_ZONE = r"[T ].*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"


def parse_dates(column: pa.Array) -> Converted:
    """Convert dates to int64 ms; without a zone they are UTC."""
    texts, faults = to_text(column)
    for pattern, replacement in VARIANTS:
        texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=replacement)
    has_zone = matches(texts, WITH_ZONE)
    with_zone = _cast(null_outside(texts, has_zone), pa.timestamp("ms", tz="UTC"))
    without_zone = _cast(null_outside(texts, ~has_zone), pa.timestamp("ms"))
    values = pc.coalesce(with_zone, without_zone)
    is_bad = np.asarray(pc.is_null(values)) & np.asarray(pc.is_valid(texts))
    for mask in faults.values():
        is_bad &= ~mask
    return Converted(values, {**faults, NOT_A_DATE: is_bad})


def _cast(texts: pa.Array, time_type: pa.DataType) -> pa.Array:
    """Return texts as int64 ms, null for those that are no dates."""
    try:
        return texts.cast(time_type).cast(pa.int64())
    except pa.ArrowInvalid:  # one text is enough: read them one by one
        numbers = [None if text is None else _to_ms(text) for text in texts.to_pylist()]
        return pa.array(numbers, pa.int64())


def _to_ms(text: str) -> int | None:
    try:
        return datetime_to_ms(datetime.datetime.fromisoformat(text))
    except ValueError:
        return None
