"""Feature tables: one row per user with all events, equal bytes each time, replaced at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data import features, files, history
from longrec.data.columns import from_stored_column
from longrec.data.dataset import Dataset
from longrec.data.features import tables
from longrec.errors import DataError
from longrec.schema import Feature
from tests.longrec.data import random_log
from tests.longrec.data.random_log import HUGE, NO_EVENTS, NO_FEATURES, SCHEMA

EVENT_ORDER = [
    ("user_id", "ascending"),
    ("timestamp", "ascending"),
    ("event_seq", "ascending"),
]


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return random_log.write(tmp_path / "data")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def build(
    source: Dataset,
    out: Path,
    **settings: Any,
) -> features.FeatureReport:
    return features.build_features(source.path, out, DataConfig(**settings))


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    """Return the rows of user_history by user; each user has one."""
    paths = sorted((out / "user_history").iterdir())
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    rows = {row["user_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


def content_of(directory: Path) -> dict[str, bytes]:
    """Return the bytes of all files by relative path."""
    content = {}
    for path in directory.rglob("*"):
        if path.is_file():
            content[str(path.relative_to(directory))] = path.read_bytes()
    return content


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(path, partitioning=None)
    pq.write_table(change(table), path)


def events_by_user(source: Dataset) -> dict[int, list[dict[str, Any]]]:
    """Return the events of each user in the order of a history."""
    table = pa.concat_tables(source.event_parts()).sort_by(EVENT_ORDER)
    events: dict[int, list[dict[str, Any]]] = {}
    for event in table.to_pylist():
        events.setdefault(event["user_id"], []).append(event)
    return events


def to_ms(time: Any) -> int:
    return round(time.timestamp() * 1000)


@pytest.mark.parametrize("seed", range(3))
def test_every_user_has_one_row_with_all_events_in_order(
    tmp_path: Path,
    out: Path,
    seed: int,
) -> None:
    source = random_log.write(tmp_path / "data", seed=seed)
    build(source, out, shard_users=3)
    expected = events_by_user(source)
    rows = rows_of(out)
    assert set(rows) == set(expected)
    for user, row in rows.items():
        events = expected[user]
        stored = history.unpack(row["history"], SCHEMA)
        for name in stored.schema.names:
            values = [event[name] for event in events]
            if name == "timestamp":
                values = list(map(to_ms, values))
            assert repr(stored.column(name).to_pylist()) == repr(values), name
        assert row["history_length"] == len(events)
        assert row["event_timestamp"] == events[-1]["timestamp"]


def test_the_report_counts_users_events_and_bytes(source: Dataset, out: Path) -> None:
    report = build(source, out, shard_users=3)
    rows = rows_of(out).values()
    lengths = [row["history_length"] for row in rows]
    num_files = len(list((out / "user_history").iterdir()))
    assert report.num_users == len(rows)
    assert report.num_events == sum(lengths) == source.facts["num_events"]
    assert report.longest_history == max(lengths)
    assert report.history_bytes == sum(len(row["history"]) for row in rows)
    assert report.num_parts == num_files
    assert num_files >= len(rows) / 3


def test_users_without_features_or_events_are_counted(source: Dataset, out: Path) -> None:
    report = build(source, out)
    assert report.users_without_events == 1
    assert report.users_without_features == 1
    features_table = pq.read_table(out / "user_features.parquet")
    with_features = features_table.column("user_id").to_pylist()
    rows = rows_of(out)
    assert NO_FEATURES in rows
    assert NO_FEATURES not in with_features
    assert NO_EVENTS in with_features
    assert NO_EVENTS not in rows


def test_the_same_dataset_gives_the_same_bytes(source: Dataset, tmp_path: Path) -> None:
    build(source, tmp_path / "a", shard_users=4)
    build(source, tmp_path / "b", shard_users=4)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_the_size_of_a_file_does_not_change_histories(source: Dataset, tmp_path: Path) -> None:
    build(source, tmp_path / "a", shard_users=4)
    build(source, tmp_path / "b", shard_users=1)
    first = rows_of(tmp_path / "a")
    second = rows_of(tmp_path / "b")
    assert first.keys() == second.keys()
    for user, row in first.items():
        assert row["history"] == second[user]["history"]


def test_parts_are_bounded_in_bytes(
    source: Dataset,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "MAX_PART_BYTES", 1)
    assert build(source, out).num_parts == 20


def test_the_manifest_counts_and_hashes_the_files(source: Dataset, out: Path) -> None:
    report = build(source, out, shard_users=7)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == dataclasses.asdict(report)
    assert manifest["dataset_hash"] == source.facts["content_hash"]
    assert manifest["fingerprint"] == SCHEMA.fingerprint
    names = set(content_of(out)) - {"manifest.json"}
    assert set(manifest["files"]) == names
    for name, expected in manifest["files"].items():
        assert files.sha256_of(out / name) == expected


def test_features_are_stored_so_that_feast_keeps_them_exact(source: Dataset, out: Path) -> None:
    build(source, out)
    stored = pq.read_table(out / "user_features.parquet")
    types = {name: str(stored.schema.field(name).type) for name in stored.schema.names[3:]}
    assert types == {
        "inviter": "string",
        "group": "int64",
        "age": "int64",
        "city": "string",
        "score": "double",
    }
    assert set(stored.column("inviter").to_pylist()) == {None, str(HUGE), str(-HUGE)}
    assert set(stored.column("score").to_pylist()) == {None, 0.1}


def test_stored_features_are_restored(source: Dataset, out: Path) -> None:
    build(source, out)
    stored = pq.read_table(out / "user_features.parquet")
    original = source.users()
    assert pc.any(pc.is_nan(original.column("score"))).as_py()  # stored as null
    for feature in SCHEMA.user[:4]:
        restored = from_stored_column(stored.column(feature.name), feature)
        assert restored.to_pylist() == original.column(feature.name).to_pylist()


def test_a_number_that_feast_would_change_is_refused(source: Dataset, out: Path) -> None:
    users = source.path / "users.parquet"
    ages = [None, 2**53 + 1, *[1] * 18]
    replace_column(users, "age", ages)
    with pytest.raises(DataError, match=r"'age' cannot pass the feature store exactly.*1 nulls"):
        build(source, out)
    ages[0] = 3  # without a null it is exact
    replace_column(users, "age", ages)
    build(source, out)


def replace_column(
    path: Path,
    name: str,
    values: list[int | None],
) -> None:
    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        return table.set_column(position, name, pa.array(values, pa.int64()))

    rewrite(path, change)


def take_rows(path: Path, first_rows: list[int]) -> None:
    """Replace the first two rows of a file."""

    def change(table: pa.Table) -> pa.Table:
        rows = [*first_rows, *range(2, table.num_rows)]
        return table.take(pa.array(rows))

    rewrite(path, change)


def test_events_out_of_order_are_refused(source: Dataset, out: Path) -> None:
    take_rows(source.event_path(1), [1, 0])
    with pytest.raises(DataError, match=r"part-00001.parquet is out of order; found 1 steps back"):
        build(source, out)
    assert not out.exists()


def test_a_basket_with_two_times_is_refused(source: Dataset, out: Path) -> None:
    path = source.event_path(0)
    num_rows = pq.read_metadata(path).num_rows
    replace_column(path, "basket_id", [1] * num_rows)
    message = r"events of one basket have different times.*basket 1 of user"
    with pytest.raises(DataError, match=message):
        build(source, out)


def test_a_user_in_two_parts_is_refused(tmp_path: Path, out: Path) -> None:
    schema = dataclasses.replace(SCHEMA, has_baskets=False)
    source = random_log.write(tmp_path / "data", schema=schema)
    other_part = pq.read_table(source.event_path(1), columns=["user_id"])
    user = other_part.column("user_id")[0].as_py()

    def change(table: pa.Table) -> pa.Table:
        users = [user] * 2 + [HUGE * 2] * (table.num_rows - 2)
        return table.set_column(0, "user_id", pa.array(users)).sort_by(EVENT_ORDER)

    rewrite(source.event_path(0), change)
    with pytest.raises(DataError, match="spread over several parts; found 1 users"):
        build(source, out)


@pytest.mark.parametrize(("name", "key"), [("items", "item_id"), ("users", "user_id")])
def test_repeated_ids_are_refused(
    source: Dataset,
    out: Path,
    name: str,
    key: str,
) -> None:
    take_rows(source.path / f"{name}.parquet", [0, 0])
    with pytest.raises(DataError, match=f"{key} must be unique; found 1 repeated"):
        build(source, out)


def test_a_feature_with_a_reserved_name_is_refused(tmp_path: Path, out: Path) -> None:
    reserved = Feature("history_length", "number")
    schema = dataclasses.replace(SCHEMA, user=(*SCHEMA.user, reserved))
    source = random_log.write(tmp_path / "data", schema=schema)
    with pytest.raises(DataError, match=r"history_length\. Rename it"):
        build(source, out)


def test_a_failure_half_way_leaves_the_old_tables(
    source: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "work" / "out"
    build(source, out)
    before = content_of(out.parent)
    written = []
    write = pq.write_table

    def failing(
        table: pa.Table,
        path: Path,
        **options: Any,
    ) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError("No space left on device")
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", failing)
    with pytest.raises(DataError, match="no space is left"):
        build(source, out, shard_users=3)
    assert content_of(out.parent) == before


def test_other_directories_are_not_replaced(source: Dataset, tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="will not be replaced"):
        build(source, other)
    assert (other / "thesis.txt").read_text() == "x"
