"""Conversion of times to int64 milliseconds since 1970 UTC, rounded down to the millisecond."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec import times as rule
from longrec.data.columns import Int64
from longrec.data.importers.reading.values.converted import (
    Converted,
    is_text,
    matches,
    null_outside,
)
from longrec.data.importers.reading.values.dates import parse_dates
from longrec.data.importers.reading.values.integers import NUMBER, to_int64
from longrec.data.timelines import Mask

Unit = Literal["s", "ms", "us", "ns", "iso"]
NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
NS_PER_MS = 10**6
NS_PER_US = 10**3
FRACTION = r"^\s*\+?(?P<whole>[0-9]{1,18})\.(?P<fraction>[0-9]+)\s*$"
MAX_SECONDS = 2**53
"""Largest number of seconds that is converted; it is large enough to look like microseconds."""
NEVER = -1
"""Stands for a time that is too far away for int64; it is out of range too."""
MAX_DIGITS = 40
FIRST_COARSE_FLOAT32 = 2**24
"""Smallest float32 that several whole numbers are rounded to."""
COARSE = "is a 32-bit float beyond 2^24, too coarse for a time"


def to_time_ms(
    column: pa.Array,
    unit: str,
    origin_ms: int = 0,
) -> Converted:
    """Convert times to int64 ms; times that the rule of time refuses are bad.

    Args:
        column: the times. A timestamp column has its own unit; without a zone it is UTC.
        unit: `s`, `ms`, `us`, `ns` or `iso`.
        origin_ms: time from which the log counts its times, 0 for 1970.
    """
    values, faults = to_any_time_ms(column, unit)
    times = np.asarray(pc.fill_null(values, 0))
    epoch_times = rule.to_epoch_ms(times, origin_ms)
    is_known = np.asarray(pc.is_valid(values))
    is_outside = is_known & rule.is_outside(epoch_times, origin_ms)
    outside_faults = _faults_outside(times, is_outside, unit)
    return Converted(pa.array(epoch_times, mask=~is_known), {**faults, **outside_faults})


def to_any_time_ms(column: pa.Array, unit: str) -> Converted:
    """Convert times to int64 ms, whatever their year.

    Args:
        column, unit: as in `to_time_ms`.
    """
    if pa.types.is_date(column.type):
        return Converted(column.cast(pa.timestamp("ms")).cast(pa.int64()), {})
    if pa.types.is_timestamp(column.type):
        return Converted(_scale(column.cast(pa.int64()), column.type.unit), {})
    if unit == "iso":
        return parse_dates(column)
    if pa.types.is_floating(column.type):
        return _convert_floats(column, unit)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())
    whole = to_int64(column)
    values = _scale(whole.values, unit)
    if not whole.is_bad.any():
        return Converted(values, {})
    if not is_text(column):
        return Converted(values, {_not_a_number(unit): whole.is_bad})
    others = _parse_fractions(null_outside(column, whole.is_bad), unit)
    return Converted(pc.coalesce(values, others.values), others.faults)


def _faults_outside(times: Int64, is_outside: Mask, unit: str) -> dict[str, Mask]:
    """Return the faults of times out of range, by the unit that they seem to have.

    Args:
        times: int64 [N], ms.
        is_outside: bool [N].
        unit: the unit that they were read in.
    """
    reason = f"is not a time {rule.VALID_RANGE}"
    if unit not in NANOSECONDS or not is_outside.any():
        return {reason: is_outside}
    faults = {}
    is_left = is_outside
    for other, nanoseconds in NANOSECONDS.items():
        in_other_unit = times * (nanoseconds / NANOSECONDS[unit])
        looks_like = is_left & (in_other_unit >= rule.EARLIEST_MS)
        looks_like &= in_other_unit < rule.END_MS
        faults[f"{reason}, it looks like {UNIT_NAMES[other]}"] = looks_like
        is_left = is_left & ~looks_like
    is_early = is_left & (times >= 0) & (times < rule.EARLIEST_MS)
    faults[f"{reason}, it may count from a start of its own (--time-origin)"] = is_early
    return {**faults, reason: is_left & ~is_early}


def _not_a_number(unit: str) -> str:
    return f"is not a time in {UNIT_NAMES[unit]}"


def _scale(values: pa.Array, unit: str) -> pa.Array:
    """Return whole numbers of a unit as ms, int64, rounded down."""
    numbers = np.asarray(pc.fill_null(values, 0))
    if unit == "s":
        # A product beyond int64 would come out as another time.
        can_multiply = np.abs(numbers.astype(np.float64)) < MAX_SECONDS
        numbers = np.where(can_multiply, numbers * 1_000, NEVER)
    else:
        numbers = numbers // (NS_PER_MS // NANOSECONDS[unit])
    return pa.array(numbers, pa.int64(), mask=np.asarray(pc.is_null(values)))


def _convert_floats(column: pa.Array, unit: str) -> Converted:
    """Convert floats, exact to the microsecond, which float64 holds in any unit."""
    numbers = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))
    is_missing = np.isnan(numbers)
    finite = np.nan_to_num(numbers)  # an infinite time becomes one that is too far away
    microseconds = np.rint(finite * (NANOSECONDS[unit] / NS_PER_US))
    milliseconds = microseconds // (NS_PER_MS // NS_PER_US)
    is_near = np.abs(milliseconds) < MAX_SECONDS * 1_000.0
    times = np.where(is_near, milliseconds, NEVER).astype(np.int64)
    is_coarse = np.abs(numbers) >= FIRST_COARSE_FLOAT32
    is_coarse &= pa.types.is_float32(column.type)
    return Converted(pa.array(times, mask=is_missing | is_coarse), {COARSE: is_coarse})


def _parse_fractions(column: pa.Array, unit: str) -> Converted:
    """Convert decimal text exactly; digits below the millisecond are cut."""
    parts = pc.extract_regex(column, FRACTION)
    whole = _scale(pc.struct_field(parts, "whole").cast(pa.int64()), unit)
    if unit == "s":
        digits = pc.utf8_rpad(pc.struct_field(parts, "fraction"), 3, padding="0")
        thousandths = pc.utf8_slice_codeunits(digits, 0, 3).cast(pa.int64())
        whole = pc.add(whole, thousandths)
    is_other = np.asarray(pc.is_null(whole))
    is_number = is_other & matches(column, NUMBER)
    others = [NEVER] * len(column)
    for row in np.flatnonzero(is_number):
        others[row] = _decimal_to_ms(column[row].as_py(), unit)
    values = pc.coalesce(whole, pa.array(others, pa.int64(), mask=~is_number))
    is_bad = np.asarray(pc.is_null(values)) & np.asarray(pc.is_valid(column))
    return Converted(values, {_not_a_number(unit): is_bad})


def _decimal_to_ms(text: str, unit: str) -> int:
    number = Decimal(text.strip())
    if number.adjusted() > MAX_DIGITS:
        return NEVER
    milliseconds = number * NANOSECONDS[unit] / NS_PER_MS
    whole = int(milliseconds.to_integral_value(ROUND_FLOOR))
    return whole if abs(whole) < MAX_SECONDS else NEVER
