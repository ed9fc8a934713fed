"""The rule of time: numbers of every unit, the limits, the origin of a log, int64 extremes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec import times
from longrec.errors import DataError
from longrec.schema import Schema, synthetic_schema

ORIGIN_MS = 946_684_800_000
VALID = st.integers(times.EARLIEST_MS, times.END_MS - 1)
ORIGINS = st.one_of(st.just(0), st.integers(times.EARLIEST_MS, times.LATEST_ORIGIN_MS))
LIMITS = [0, -1, 2**63 - 1, -(2**63), times.EARLIEST_MS, times.EARLIEST_MS - 1]
INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from(LIMITS), VALID)


@given(VALID)
def test_a_valid_time_stays_as_it_is(time: int) -> None:
    assert times.require_time("t", time) == time
    assert times.require_times("t", np.array([time])).tolist() == [time]


@given(VALID, st.sampled_from(["seconds", "microseconds", "nanoseconds"]))
def test_a_time_in_another_unit_is_refused_by_the_name_of_its_unit(time: int, unit: str) -> None:
    number = {
        "seconds": time // 1_000,
        "microseconds": time * 1_000,
        "nanoseconds": time * 1_000_000,
    }[unit]
    sent = time // 1_000 * 1_000 if unit == "seconds" else time
    message = f"looks like {unit}; send milliseconds: {sent}"
    with pytest.raises(DataError, match=message):
        times.require_time("t", number)
    with pytest.raises(DataError, match=message):
        times.require_times("t", np.array([number]))


def test_the_limits_are_1980_and_2100() -> None:
    assert times.require_time("t", times.EARLIEST_MS) == times.EARLIEST_MS
    assert times.require_time("t", times.END_MS - 1) == times.END_MS - 1
    for time in (times.EARLIEST_MS - 1, times.END_MS, 0, -1, 10**4000):
        with pytest.raises(DataError, match="t: not a time from 1980 to 2099"):
            times.require_time("t", time)


@given(INT64, ORIGINS)
def test_a_column_is_converted_as_each_of_its_times(time: int, origin_ms: int) -> None:
    try:
        expected = times.require_time("t", time, origin_ms)
    except DataError:
        with pytest.raises(DataError):
            times.require_times("t", np.array([time], np.int64), origin_ms)
    else:
        converted = times.require_times("t", np.array([time], np.int64), origin_ms)
        assert converted.tolist() == [expected]
        assert max(times.EARLIEST_MS, origin_ms) <= expected < times.END_MS


@given(INT64, ORIGINS)
def test_a_converted_time_is_not_converted_again(time: int, origin_ms: int) -> None:
    once = times.to_epoch_ms(np.array([time], np.int64), origin_ms)
    assert times.to_epoch_ms(once, origin_ms).tolist() == once.tolist()


def test_small_numbers_are_counted_from_the_origin_alone() -> None:
    assert times.require_time("t", 0, ORIGIN_MS) == ORIGIN_MS
    last = times.EARLIEST_MS - 1
    assert times.require_time("t", last, ORIGIN_MS) == ORIGIN_MS + last
    assert times.require_time("t", ORIGIN_MS, ORIGIN_MS) == ORIGIN_MS
    for time in (-1, times.EARLIEST_MS, ORIGIN_MS - 1):
        with pytest.raises(DataError, match=f"from {ORIGIN_MS}, or counted from there"):
            times.require_time("t", time, ORIGIN_MS)


def test_the_error_of_a_column_names_the_first_row_and_the_number_of_others() -> None:
    with pytest.raises(DataError, match="found 1700009000 at row 2, and 1 more"):
        times.require_times("t", np.array([ORIGIN_MS, 1_700_009_000, -1]))


@pytest.mark.parametrize("origin", [-1, 1, times.END_MS, times.EARLIEST_MS - 1, "2000", 1.5, True])
def test_an_origin_out_of_range_is_refused(origin: object) -> None:
    with pytest.raises(DataError, match="origin of the times"):
        dataclasses.replace(synthetic_schema(), time_origin_ms=origin)


def test_the_schema_keeps_the_origin_and_its_fingerprint_without_one() -> None:
    plain = synthetic_schema()
    counted = dataclasses.replace(plain, time_origin_ms=ORIGIN_MS)
    assert Schema.from_dict(counted.to_dict()) == counted
    assert counted.fingerprint != plain.fingerprint
    assert "time_origin_ms" not in plain.to_dict()
    assert plain.differences(counted) == [f"time_origin_ms: {ORIGIN_MS} instead of 0"]
