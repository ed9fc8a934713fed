"""Times of every unit, and values that are no times."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.values.times import NANOSECONDS, to_any_time_ms, to_time_ms
from longrec.times import EARLIEST_MS, END_MS
from tests.longrec.data.importers.reading.log_rows import read_log, write_log


@pytest.mark.parametrize(
    ("unit", "good", "bad"),
    [
        (
            "s",
            ["1700000000", "1700000000.25"],
            ["1700000000000", "-5", "1000", "9e99", "soon"],
        ),
        ("ms", ["1700000000000"], ["1700000000", "-5", "1700000000000000"]),
        ("us", ["1700000000000000"], ["1700000000000", "x"]),
        ("ns", ["1700000000000000000"], ["1700000000000000"]),
        (
            "iso",
            ["2023-11-14T22:13:20", "2023-11-14 22:13:20Z", "2023-11-15T00:13:20+02:00"],
            ["2023-13-01", "yesterday", "1960-01-01"],
        ),
    ],
)
def test_times_of_every_unit_and_values_that_are_no_times(
    tmp_path: Path,
    unit: str,
    good: list[str],
    bad: list[str],
) -> None:
    # A bad value moves its whole column to the slow path, so both are read together and apart.
    for texts in ([*good, *bad], good, bad):
        path = write_log(tmp_path, "t,u\n" + "".join(f"{text},1\n" for text in texts))
        log = read_log(path, (Field("t", "t", unit),))
        num_good = sum(text in good for text in texts)
        assert [int(row["t"]) // 1000 for row in log.rows] == [1_700_000_000] * num_good
        assert len(log.rejected) == sum(text in bad for text in texts)
        assert all(
            reason.startswith(("t is not a time", "t is not a date")) for _, reason in log.reasons
        )
        (tmp_path / "rejects.csv").unlink(missing_ok=True)


def test_timestamp_columns_have_their_own_unit_and_zone() -> None:
    time = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    berlin = pa.array([time], pa.timestamp("us", tz="Europe/Berlin"))
    nanoseconds = berlin.cast(pa.timestamp("ns", tz="UTC"))
    without_zone = pa.array([time.replace(tzinfo=None)], pa.timestamp("s"))
    for column in (berlin, nanoseconds, without_zone):
        assert to_any_time_ms(column, "ms").values.to_pylist() == [1_714_521_600_000]


VALID_MS = st.integers(EARLIEST_MS, END_MS - 1)
UNITS_PER_MS = {"us": 1_000, "ns": 1_000_000}


@given(st.lists(VALID_MS, min_size=1, max_size=8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_unit_and_type_keeps_every_millisecond(times: list[int], has_bad: bool) -> None:
    seconds = [Decimal(time).scaleb(-3) for time in times]
    columns: list[tuple[str, pa.Array]] = [
        ("s", pa.array([float(value) for value in seconds])),
        ("s", pa.array(seconds, pa.decimal128(20, 3))),
        ("s", texts_of(seconds, has_bad)),
        ("s", texts_of([f"{value:E}" for value in seconds], has_bad)),
        ("ms", pa.array(times)),
        ("ms", pa.array(times, pa.uint64())),
        ("ms", pa.array([float(time) for time in times])),
        ("ms", texts_of(times, has_bad)),
        ("ms", texts_of([f"{time}.7" for time in times], has_bad)),
        ("iso", texts_of([iso(time) for time in times], has_bad)),
        ("iso", texts_of([iso(time).replace("-", "/") + " UTC" for time in times], has_bad)),
    ]
    for unit, factor in UNITS_PER_MS.items():
        columns += [
            (unit, pa.array([time * factor for time in times])),
            (unit, pa.array([time * float(factor) for time in times])),
            (unit, texts_of([time * factor + factor - 1 for time in times], has_bad)),
            ("ms", pa.array([time * factor for time in times], pa.timestamp(unit))),
        ]
    for unit, column in columns:
        values, _ = to_time_ms(column, unit)
        assert values.to_pylist()[: len(times)] == times, (unit, column.type)


def texts_of(values: list[Any], has_bad: bool) -> pa.Array:
    """Return values as text, with a bad one at the end that takes the slow path."""
    return pa.array([str(value) for value in values] + ["bad"] * has_bad)


def iso(time_ms: int) -> str:
    """Return a time as ISO 8601 without a zone."""
    seconds, milliseconds = divmod(time_ms, 1_000)
    time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{time:%Y-%m-%d %H:%M:%S}.{milliseconds:03}"


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14 22:13:21 UTC",
        "2023-11-14 22:13:21 GMT",
        "2023-11-14T22:13:21Z",
        "2023-11-14t22:13:21z",
        " 2023-11-14  22:13:21 ",
        "2023/11/14 22:13:21",
        "2023-11-14 22:13:21 +0000",
        "2023-11-15T00:13:21+02",
        "2023-11-14 22:13:21.000999",
        "20231114T221321",
    ],
)
def test_common_forms_of_a_date_are_read(text: str) -> None:
    assert to_time_ms(pa.array([text]), "iso").values.to_pylist() == [1_700_000_001_000]


@pytest.mark.parametrize("text", ["2023/11/14", "2023-11-14", "2023/11/14 00:00", "20231114"])
def test_a_day_begins_at_midnight_utc(text: str) -> None:
    assert to_time_ms(pa.array([text]), "iso").values.to_pylist() == [1_699_920_000_000]
    assert to_time_ms(pa.array(["2023/1/4"]), "iso").values.to_pylist() == [1_672_790_400_000]


@pytest.mark.parametrize("text", ["14.11.2023", "11/14/2023", "Nov 14 2023", "1700000000", ""])
def test_another_form_is_refused_with_the_forms_that_are_read(text: str) -> None:
    converted = to_time_ms(pa.array([text, "2023-11-14"]), "iso")
    assert converted.is_bad.tolist() == [True, False]
    [fault] = [name for name, mask in converted.faults.items() if mask.any()]
    assert "such as 2023-11-14 22:13:21 UTC, 2023/11/14 or" in fault


@pytest.mark.parametrize(("unit", "number"), [("ms", 1_700_000_000), ("s", 1_700_000_000_000)])
def test_a_wrong_unit_is_named(unit: str, number: int) -> None:
    guess = {"ms": "seconds", "s": "milliseconds"}[unit]
    for column in (pa.array([number]), pa.array([float(number)]), pa.array([str(number)])):
        faults = to_time_ms(column, unit).faults
        [fault] = [name for name, mask in faults.items() if mask.any()]
        assert fault == f"is not a time from 1980 to 2099, it looks like {guess}"


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(sorted(NANOSECONDS)))
@settings(max_examples=60, deadline=None)
def test_no_number_wraps_around_to_a_valid_time(number: int, unit: str) -> None:
    exact_ms = number * NANOSECONDS[unit] // 1_000_000
    is_valid = EARLIEST_MS <= exact_ms < END_MS
    columns = [
        pa.array([number]),
        pa.array([str(number)]),
        pa.array([number], pa.timestamp(unit)),
        pa.array([f"{number}.0e0", "bad"]),
    ]
    for column in columns:
        converted = to_time_ms(column, unit)
        assert converted.is_bad[0] != is_valid
        assert not is_valid or converted.values[0].as_py() == exact_ms


def test_times_from_an_origin_are_counted_from_there() -> None:
    origin_ms = 1_300_000_000_000
    values, faults = to_time_ms(pa.array([0, 5, 1_700_000_000]), "s", origin_ms)
    assert values.to_pylist() == [origin_ms, origin_ms + 5_000, 1_700_000_000_000]
    assert not any(mask.any() for mask in faults.values())


def test_a_32_bit_float_of_today_is_too_coarse_for_a_time() -> None:
    converted = to_time_ms(pa.array([1_700_000_000.0, None], pa.float32()), "s")
    assert converted.is_bad.tolist() == [True, False]
    assert converted.faults["is a 32-bit float beyond 2^24, too coarse for a time"][0]
