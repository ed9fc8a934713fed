"""Live events read from files: equal content in every format, and a reason for each refusal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from longrec.data import history
from longrec.data.store import live_events
from longrec.errors import DataError
from longrec.ids import text_id
from tests.longrec.data.random_log import HUGE, SCHEMA, live, table_of

ORIGIN_MS = 946_684_800_000


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_files_of_every_format_are_read_equally(tmp_path: Path, suffix: str) -> None:
    rows = live(np.random.default_rng(0), 20, [3, HUGE]).to_pylist()
    events = table_of([row for row in rows if row["seconds"] is None or row["seconds"] < 1])
    path = tmp_path / f"events.{suffix}"
    if suffix == "parquet":
        pq.write_table(events, path)
    elif suffix == "csv":
        csv.write_csv(events, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in events.to_pylist()))
    assert live_events.read_file(path, SCHEMA).equals(live_events.conform(events, SCHEMA))
    assert events.num_rows > 8


def test_iso_times_are_utc(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        HEADER + '1,2,2020-09-13T12:26:40Z,3,4,view,,\n1,2,2020-09-13T12:26:40Z,4,4,"",0.5,7\n'
    )
    read = live_events.read_file(path, SCHEMA)
    assert read["timestamp"].to_pylist() == [1_600_000_000_000] * 2
    assert read["action"].to_pylist() == ["view", ""]


HEADER = "user_id,item_id,timestamp,event_seq,basket_id,action,seconds,source\n"
BAD = {
    "column": (
        "user_id,item_id,timestamp\n1,2,1600000000000\n",
        r"events lack the column 'event_seq'",
    ),
    "type": (HEADER + "1,x,3,4,5,a,,\n", r"cannot be read; found .*'x'"),
    "time": (HEADER + "1,2,soon,4,5,a,,\n", r"'timestamp' .* wrong type"),
    "negative": (
        HEADER + "1,2,-3,4,5,a,,\n",
        r"timestamp: not a time from 1980 to 2099; found -3 at row 1",
    ),
    "microseconds": (
        HEADER + "1,2,1600000000000,4,5,a,,\n1,2,1600000000000000,4,6,a,,\n",
        r"found 1600000000000000 at row 2; .* looks like microseconds; "
        r"send milliseconds: 1600000000000",
    ),
    "seconds": (
        HEADER + "1,2,1700009000,4,5,a,,\n",
        r"looks like seconds; send milliseconds: 1700009000000",
    ),
    "null": (HEADER + ",2,1600000000000,4,5,a,,\n", r"'user_id' .* must not hold nulls"),
    "basket": (
        HEADER + "1,2,1600000000003,4,5,a,,\n1,2,1600000000004,5,5,a,,\n",
        r"events of one basket have different times.*; found basket 5 of user 1",
    ),
    "key": (
        HEADER + "1,2,1600000000003,4,5,a,,\n1,2,1600000000003,4,5,b,,\n",
        r"an event of user 1 has the key of another event; found .*action='b'; expected action='a'",
    ),
    "empty": ("", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.csv").write_text(BAD[name][0])
    with pytest.raises(DataError, match=BAD[name][1]):
        live_events.read_file(tmp_path / "bad.csv", SCHEMA)


def test_a_missing_an_unknown_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        live_events.read_file(tmp_path / "none.csv", SCHEMA)
    (tmp_path / "a.xml").write_text("")
    with pytest.raises(DataError, match=r"of no known kind; found .xml"):
        live_events.read_file(tmp_path / "a.xml", SCHEMA)
    pq.write_table(live(np.random.default_rng(0), 20, [3]), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a.parquet cannot be read"):
        live_events.read_file(tmp_path / "a.parquet", SCHEMA)


def test_times_finer_than_a_millisecond_are_rounded_down(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(HEADER + "1,2,2020-09-13T12:26:40.123999Z,3,4,view,,\n")
    assert live_events.read_file(path, SCHEMA)["timestamp"].to_pylist() == [1_600_000_000_123]


def test_an_arrival_in_seconds_is_refused() -> None:
    events = live(np.random.default_rng(0), 1, [3])
    events = events.append_column("created", pa.array([1_700_009_000] * events.num_rows))
    with pytest.raises(DataError, match=r"created: .* looks like seconds"):
        live_events.conform(events, SCHEMA)


def test_times_counted_from_an_origin_get_it_added() -> None:
    schema = dataclasses.replace(SCHEMA, time_origin_ms=ORIGIN_MS)
    events = live(np.random.default_rng(0), 1, [3])
    counted = {"timestamp": 5_000, "created": 7_000}
    for name, time in counted.items():
        values = pa.array([time] * events.num_rows)
        events = events.drop_columns([name] if name in events.schema.names else [])
        events = events.append_column(name, values)
    held = live_events.conform(events, schema)
    ignored = live_events.conform(events, schema, late_events="ignore")
    assert set(held["timestamp"].to_pylist()) == {ORIGIN_MS + 7_000}
    assert set(ignored["timestamp"].to_pylist()) == {ORIGIN_MS + 5_000}


EMPTY_FILES = {
    "header.csv": HEADER,
    "header_of_late_events.csv": HEADER.replace("\n", ",created\n"),
    "header_without_line_end.csv": HEADER.strip(),
    "blank_lines.csv": HEADER + "\n\n",
    "nothing.jsonl": "",
    "blank_lines.jsonl": "\n\n",
}


@pytest.mark.parametrize("name", EMPTY_FILES)
def test_a_text_file_without_rows_holds_no_events(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(EMPTY_FILES[name])
    assert_no_events(live_events.read_file(path, SCHEMA))


def test_a_parquet_file_without_rows_holds_no_events(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    no_times = pa.array([], pa.null())  # as pandas writes it
    table = pa.table({"user_id": no_times, "timestamp": no_times, "created": no_times})
    pq.write_table(table, path)
    assert_no_events(live_events.read_file(path, SCHEMA))


def assert_no_events(events: pa.Table) -> None:
    assert events.num_rows == 0
    assert events.schema.names == ["user_id", *history.arrow_schema(SCHEMA).names]
    assert list(live_events.split_by_user(events)) == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_events_of_a_log_with_text_ids_are_pushed_by_text(tmp_path: Path, suffix: str) -> None:
    schema = dataclasses.replace(SCHEMA, text_ids=("item", "user"))
    row = {"user_id": "007", "item_id": "12", "timestamp": 1_600_000_000_000, "event_seq": 4}
    rows = [{**row, "basket_id": 5, "action": "view", "seconds": None, "source": None}]
    path = tmp_path / f"events.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text(HEADER + "007,12,1600000000000,4,5,view,,\n")
    else:
        path.write_text(json.dumps(rows[0]) + "\n")
    read = live_events.read_file(path, schema)
    assert read["user_id"].to_pylist() == [text_id("007")]
    assert read["item_id"].to_pylist() == [text_id("12")]
