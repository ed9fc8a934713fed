"""Dataset: round trip, atomic writes, and clear errors for damaged directories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.dataset import Dataset
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.shards import num_parts_for, part_of
from longrec.data.timelines import group_starts, history_lengths, quantiles, quantiles_of_counts
from longrec.errors import DataError
from longrec.schema import Feature, Schema, Task

SCHEMA = Schema(
    name="tiny",
    item=(Feature("item_id", "id"), Feature("topic", "category", "string")),
    user=(Feature("age", "number", "float64"),),
    event=(Feature("action", "category", "string"),),
    tasks=(Task("click"),),
    has_baskets=True,
)
DAY = 86_400_000


def times(values: list[int]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("ms")).cast(TIMESTAMP_TYPE)


def tables(users: list[int]) -> tuple[pa.Table, pa.Table]:
    """Three events and one request of two targets for each user."""
    users = sorted(users)
    events = pa.table(
        {
            "user_id": np.repeat(np.array(users, np.int64), 3),
            "item_id": pa.array([1, 2, 3] * len(users), pa.int64()),
            "timestamp": times([DAY, DAY, 2 * DAY] * len(users)),
            "event_seq": pa.array([0, 1, 2] * len(users), pa.int64()),
            "basket_id": pa.array([5, 5, 6] * len(users), pa.int64()),
            "action": ["view", None, "like"] * len(users),
            "seen": pa.array([1, None, 0] * len(users), pa.int8()),
        }
    )
    targets = pa.table(
        {
            "request_id": np.repeat(np.array(users, np.int64), 2),
            "user_id": np.repeat(np.array(users, np.int64), 2),
            "timestamp": times([2 * DAY, 2 * DAY] * len(users)),
            "item_id": pa.array([3, 9] * len(users), pa.int64()),
            "click": pa.array([1, 0] * len(users), pa.int8()),
        }
    )
    return events, targets


def write(
    path: Path,
    num_users: int = 6,
    num_parts: int = 2,
) -> Path:
    users = np.arange(num_users, dtype=np.int64) * 7
    with DatasetWriter(
        path,
        SCHEMA,
        name="tiny",
        source={"kind": "test"},
        num_parts=num_parts,
        event_labels=("seen",),
    ) as writer:
        for part in range(num_parts):
            writer.write_part(part, *tables(users[part_of(users, num_parts) == part].tolist()))
        writer.write_entities(
            pa.table({"item_id": pa.array([3, 1, 2], pa.int64()), "topic": ["c", "a", None]}),
            pa.table({"user_id": users[::-1], "age": pa.array([None] * num_users, pa.float64())}),
        )
    return path


def test_round_trip_keeps_rows_types_and_order(tmp_path: Path) -> None:
    dataset = Dataset.open(write(tmp_path / "d"))
    assert dataset.schema == SCHEMA
    assert dataset.event_labels == ("seen",)
    assert dataset.num_parts == 2
    assert dataset.source == {"kind": "test"}
    for part, (events, targets) in enumerate(
        zip(dataset.event_parts(), dataset.target_parts(), strict=True)
    ):
        users = sorted({7 * user for user in range(6)} & set(events["user_id"].to_pylist()))
        expected_events, expected_targets = tables(users)
        assert events.to_pylist() == expected_events.to_pylist()
        assert targets.to_pylist() == expected_targets.to_pylist()
        assert events.schema.field("timestamp").type == TIMESTAMP_TYPE
        assert np.all(part_of(np.array(users), 2) == part)
    assert dataset.items()["item_id"].to_pylist() == [1, 2, 3]
    assert dataset.items()["topic"].to_pylist() == ["a", None, "c"]
    assert dataset.users()["user_id"].to_pylist() == [0, 7, 14, 21, 28, 35]
    assert dataset.events(0, ["item_id", "user_id"]).schema.names == ["item_id", "user_id"]


def test_facts_count_what_was_written(tmp_path: Path) -> None:
    facts = Dataset.open(write(tmp_path / "d")).facts
    assert (
        facts["num_events"],
        facts["num_users"],
        facts["num_items"],
        facts["num_requests"],
        facts["num_targets"],
    ) == (18, 6, 3, 6, 12)
    assert facts["time_range_ms"] == [DAY, 2 * DAY]
    assert facts["time_range"][0] == "1970-01-02T00:00:00.000Z"
    assert facts["events_per_user"]["p50"] == 3
    assert facts["history_length"] == {"p10": 2, "p50": 2, "p90": 2, "p99": 2, "max": 2}, (
        "an event at the request time is not history"
    )
    assert facts["label_rates"] == {"click": 0.5}
    assert len(facts["content_hash"]) == 64


def test_same_rows_same_hash_other_rows_other_hash(tmp_path: Path) -> None:
    hashes = [
        Dataset.open(write(tmp_path / name, users)).facts["content_hash"]
        for name, users in (("a", 6), ("b", 6), ("c", 7))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_failed_write_leaves_the_old_version(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    with (
        pytest.raises(RuntimeError, match="boom"),
        DatasetWriter(
            path,
            SCHEMA,
            name="x",
            source={},
            num_parts=1,
        ) as writer,
    ):
        writer.write_part(0, *[table.slice(0, 0) for table in without_seen(tables([1]))])
        raise RuntimeError("boom")
    with (
        pytest.raises(ValueError, match="0 of 1 parts"),
        DatasetWriter(
            path,
            SCHEMA,
            name="x",
            source={},
            num_parts=1,
        ),
    ):
        pass
    assert Dataset.open(path).name == "tiny"
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def without_seen(pair: tuple[pa.Table, pa.Table]) -> tuple[pa.Table, pa.Table]:
    return pair[0].drop_columns(["seen"]), pair[1]


def test_a_directory_that_is_no_dataset_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with (
        pytest.raises(DataError, match="not be replaced"),
        DatasetWriter(
            tmp_path / "precious",
            SCHEMA,
            name="x",
            source={},
            num_parts=1,
        ),
    ):
        pass
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("user order", "sorted by user_id"),
        ("time order", "sorted by user_id"),
        ("wrong part", "those of the part"),
        ("label 2", "must be 0 or 1"),
        ("null user", "'user_id' must not hold nulls"),
        ("null item", "'item_id' must not hold nulls"),
        ("order of parts", "when part 0 was due"),
        ("repeated item", "must be unique"),
    ],
)
def test_the_writer_refuses_rows_that_break_the_layout(
    tmp_path: Path, fault: str, words: str
) -> None:
    events, targets = without_seen(tables([7, 14]))
    if fault == "user order":
        events = events.take(pa.array([3, 4, 5, 0, 1, 2]))
    if fault == "time order":
        events = events.take(pa.array([2, 0, 1, 3, 4, 5]))
    if fault == "label 2":
        targets = targets.set_column(4, "click", pa.array([1, 2, 0, 0], pa.int8()))
    if fault == "null user":
        events = events.set_column(0, "user_id", pa.array([None, 7, 7, 14, 14, 14], pa.int64()))
    if fault == "null item":
        events = events.set_column(1, "item_id", pa.array([None, 1, 1, 1, 1, 1], pa.int64()))
    num_parts = 3 if fault == "wrong part" else 1
    with (
        pytest.raises(ValueError, match=words),
        DatasetWriter(
            tmp_path / "d",
            SCHEMA,
            name="x",
            source={},
            num_parts=num_parts,
        ) as writer,
    ):
        for part in [1] if fault == "order of parts" else range(num_parts):
            writer.write_part(part, events, targets)
        writer.write_entities(
            pa.table({"item_id": [1, 1], "topic": ["a", "b"]}),
            pa.table({"user_id": [1], "age": [2.0]}),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncated", "not a readable Parquet"),
        ("empty", "not a readable Parquet"),
        ("missing part", "does not hold the parts"),
        ("missing items", "does not exist"),
        ("column type", "'item_id' is int32"),
        ("column missing", "'action' is missing"),
        ("column extra", "'more' is unexpected"),
        ("rows lost", "rows that dataset.json counted"),
        ("json", "is not JSON"),
        ("version", "another format"),
        ("key", "lacks a key"),
        ("no directory", "no dataset at"),
    ],
)
def test_opening_names_what_is_wrong(
    tmp_path: Path,
    damage: str,
    words: str,
) -> None:
    path = write(tmp_path / "d")
    part = path / "events" / "part-00001.parquet"
    table = pq.read_table(part)
    meta = path / "dataset.json"
    value = json.loads(meta.read_text())
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:-200])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "missing part":
        part.unlink()
    elif damage == "missing items":
        (path / "items.parquet").unlink()
    elif damage == "column type":
        pq.write_table(table.set_column(1, "item_id", table["item_id"].cast(pa.int32())), part)
    elif damage == "column missing":
        pq.write_table(table.drop_columns(["action"]), part)
    elif damage == "column extra":
        pq.write_table(table.append_column("more", table["item_id"]), part)
    elif damage == "rows lost":
        pq.write_table(table.slice(1), part)
    elif damage == "json":
        meta.write_text(meta.read_text()[:-20])
    elif damage == "version":
        meta.write_text(json.dumps({**value, "format_version": 99}))
    elif damage == "key":
        meta.write_text(json.dumps({key: entry for key, entry in value.items() if key != "facts"}))
    else:
        path = tmp_path / "elsewhere"
    with pytest.raises(DataError, match=words):
        Dataset.open(path)


def test_a_damaged_page_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    part = path / "events" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[8:60] = b"\xff" * 52
    part.write_bytes(bytes(content))
    dataset = Dataset.open(path)
    with pytest.raises(DataError, match="not a readable Parquet"):
        dataset.events(0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40),
    st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 8)), max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_history_lengths_count_strictly_earlier_events_of_the_user(
    events: list[tuple[int, int]], requests: list[tuple[int, int]]
) -> None:
    events = sorted(events)
    users, stamps = (np.array([row[place] for row in events], np.int64) for place in (0, 1))
    askers, request_times = (
        np.array([row[place] for row in requests], np.int64) for place in (0, 1)
    )
    expected = [
        sum(user == asker and time < request_time for user, time in events)
        for asker, request_time in requests
    ]
    assert history_lengths(users, stamps, askers, request_times).tolist() == expected


@given(st.lists(st.integers(0, 3), max_size=30))
def test_group_starts_are_the_first_rows_of_runs(keys: list[int]) -> None:
    expected = [row for row in range(len(keys)) if row == 0 or keys[row] != keys[row - 1]]
    assert group_starts(np.array(keys, np.int64)).tolist() == expected


def test_parts_are_balanced_and_grow_with_the_rows() -> None:
    assert [num_parts_for(count, 100) for count in (0, 1, 100, 101, 10**12)] == [1, 1, 1, 2, 1024]
    sizes = np.bincount(part_of(np.arange(100_000), 8), minlength=8)
    assert sizes.min() > 0.95 * 12_500
    assert sizes.max() < 1.05 * 12_500
    assert part_of(np.array([0, 1, 12_345_678_901]), 1_000).tolist() == [535, 465, 554], (
        "partitions must not change between versions"
    )


def test_quantiles_of_nothing_and_of_something() -> None:
    assert quantiles(np.array([], np.int64))["max"] == 0
    assert quantiles(np.arange(1, 101)) == {"p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60))
def test_quantiles_of_counts_are_the_quantiles(lengths: list[int]) -> None:
    counts = np.bincount(np.array(lengths, np.int64)).astype(np.int64)
    assert quantiles_of_counts(counts) == quantiles(np.array(lengths, np.int64))
