"""Times of every unit, and values that are no times."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from longrec.data.importers.reading.fields import Field
from longrec.data.importers.reading.times import to_any_time_ms
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
        assert all("t is not a time" in reason for _, reason in log.reasons)
        (tmp_path / "rejects.csv").unlink(missing_ok=True)


def test_timestamp_columns_have_their_own_unit_and_zone() -> None:
    time = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    berlin = pa.array([time], pa.timestamp("us", tz="Europe/Berlin"))
    nanoseconds = berlin.cast(pa.timestamp("ns", tz="UTC"))
    without_zone = pa.array([time.replace(tzinfo=None)], pa.timestamp("s"))
    for column in (berlin, nanoseconds, without_zone):
        assert to_any_time_ms(column, "ms").values.to_pylist() == [1_714_521_600_000]
