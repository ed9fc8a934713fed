"""The rule of time: every time that enters longrec, from a log or a caller, is converted here.

A time is int64 milliseconds since 1970 UTC, from 1980 to 2099. Each other unit gives numbers of
its own size, so a wrong unit is refused by its name. A log may count its times from 0. Its schema
then holds the origin, and smaller numbers than those of 1980 are counted from that origin.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from longrec.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Times = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]

EARLIEST_MS = 315_532_800_000
"""1980-01-01 UTC, the earliest time."""
END_MS = 4_102_444_800_000
"""2100-01-01 UTC; times are before it."""
LATEST_ORIGIN_MS = END_MS - EARLIEST_MS
"""Latest origin of a log; a later one could take its times beyond `END_MS`."""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MILLISECOND = datetime.timedelta(milliseconds=1)
VALID_RANGE = "from 1980 to 2099"
_NANOSECONDS_PER_UNIT = {
    "seconds": 10**9,
    "microseconds": 10**3,
    "nanoseconds": 1,
}
_NANOSECONDS_PER_MS = 10**6
_MAX_SHOWN_DIGITS = 20


def to_epoch_ms(times: Times, origin_ms: int = 0) -> Times:
    """Return times as ms since 1970; a time since 1970 stays as it is.

    Args:
        times: int64 ms, counted from the origin (0 up to `EARLIEST_MS`) or since 1970.
        origin_ms: origin of the log (`Schema.time_origin_ms`), 0 for none.
    """
    if not origin_ms:
        return times
    is_counted = (times >= 0) & (times < EARLIEST_MS)
    return times + origin_ms * is_counted


def is_outside(times: Times, origin_ms: int = 0) -> Mask:
    """Return whether each time is before 1980 or the origin, or after 2099, bool.

    Args:
        times: int64 ms since 1970, as `to_epoch_ms` returns them.
        origin_ms: origin of the log, 0 for none.
    """
    return (times < max(EARLIEST_MS, origin_ms)) | (times >= END_MS)


def require_times(name: str, times: Times, origin_ms: int = 0) -> Times:
    """Return the times of events as ms since 1970.

    Args:
        name: of the column, for the error.
        times: int64 ms, counted from the origin or since 1970.
        origin_ms: origin of the log, 0 for none.

    Raises:
        DataError: a time is out of range; the message names the unit that it seems to have.
    """
    epoch_times = to_epoch_ms(times, origin_ms)
    is_wrong = is_outside(epoch_times, origin_ms)
    if not is_wrong.any():
        return epoch_times
    row = int(is_wrong.argmax())
    place = f" at row {row + 1}"
    num_others = int(is_wrong.sum()) - 1
    if num_others:
        place += f", and {num_others} more"
    raise _out_of_range(name, int(times[row]), origin_ms, place)


def require_time(name: str, time_ms: int, origin_ms: int = 0) -> int:
    """Return one time as ms since 1970.

    Args:
        name: of the field, for the error.
        time_ms: ms, counted from the origin or since 1970; any size.
        origin_ms: origin of the log, 0 for none.

    Raises:
        DataError: as for `require_times`.
    """
    epoch_ms = time_ms
    if 0 <= time_ms < EARLIEST_MS:
        epoch_ms += origin_ms
    if max(EARLIEST_MS, origin_ms) <= epoch_ms < END_MS:
        return epoch_ms
    raise _out_of_range(name, time_ms, origin_ms, "")


def require_origin(origin_ms: Any) -> None:
    """Check the origin of a log.

    Args:
        origin_ms: ms since 1970, or 0 for none.

    Raises:
        DataError: it is no whole number, before 1980 or after 2089.
    """
    is_whole = isinstance(origin_ms, int) and not isinstance(origin_ms, bool)
    if is_whole and (origin_ms == 0 or EARLIEST_MS <= origin_ms <= LATEST_ORIGIN_MS):
        return
    raise DataError(
        "the origin of the times is out of range",
        found=origin_ms,
        expected="0, or milliseconds since 1970 UTC from 1980 to 2089",
    )


def guess_unit(time: int) -> str:
    """Return the unit that a number seems to have, `seconds` for example; empty for no guess.

    Args:
        time: a number that is no time in ms.
    """
    for unit in _NANOSECONDS_PER_UNIT:
        if EARLIEST_MS <= _in_milliseconds(time, unit) < END_MS:
            return unit
    return ""


def datetime_to_ms(time: datetime.datetime) -> int:
    """Return a time as ms since 1970 UTC, rounded down; without a zone it is UTC."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - EPOCH) // MILLISECOND


def _in_milliseconds(time: int, unit: str) -> int:
    return time * _NANOSECONDS_PER_UNIT[unit] // _NANOSECONDS_PER_MS


def _out_of_range(
    name: str,
    time: int,
    origin_ms: int,
    place: str,
) -> DataError:
    """Return the error of a time that is out of range.

    Args:
        name: of the field or column.
        time: the number as it was given.
        origin_ms: origin of the log, 0 for none.
        place: where the number is, empty for a single one.
    """
    expected = "milliseconds since 1970 UTC"
    if origin_ms:
        expected = f"{expected} from {origin_ms}, or counted from there, 0 to {EARLIEST_MS - 1}"
    unit = guess_unit(time)
    fix = ""
    if unit:
        time_ms = _in_milliseconds(time, unit)
        fix = f"It looks like {unit}; send milliseconds: {time_ms}."
    return DataError(
        f"{name}: not a time {VALID_RANGE}",
        found=f"{_abbreviate(time)}{place}",
        expected=expected,
        fix=fix,
    )


def _abbreviate(number: int) -> str:
    text = str(number)
    if len(text) <= _MAX_SHOWN_DIGITS:
        return text
    return f"{text[:_MAX_SHOWN_DIGITS]}.. ({len(text)} characters)"
