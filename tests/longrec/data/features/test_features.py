"""Feature tables: one row per user with all events, equal bytes each time, replaced at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((out / "user_history").iterdir())
    )
    assert len(set(table.column("user_id").to_pylist())) == table.num_rows
    return {row["user_id"]: row for row in table.to_pylist()}


def rewrite(path: Path, change: Any) -> None:
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


@pytest.mark.parametrize("seed", range(3))
def test_every_user_has_one_row_with_all_events_in_order(tmp_path: Path, seed: int) -> None:
    source = random_log.write(tmp_path / "data", seed=seed)
    report = features.build_features(source.path, tmp_path / "out", DataConfig(shard_users=3))
    events = [row for part in source.event_parts() for row in part.to_pylist()]
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {event["user_id"] for event in events}
    for user, row in rows.items():
        mine = sorted(
            (event for event in events if event["user_id"] == user),
            key=lambda event: (event["timestamp"], event["event_seq"]),
        )
        stored = history.unpack(row["history"], SCHEMA)
        for name in stored.schema.names:
            expected = [event[name] for event in mine]
            if name == "timestamp":
                expected = [round(time.timestamp() * 1000) for time in expected]
            assert repr(stored.column(name).to_pylist()) == repr(expected), name
        assert row["history_length"] == len(mine)
        assert row["event_timestamp"] == mine[-1]["timestamp"]
    assert (report.num_users, report.num_events) == (len(rows), len(events))
    assert report.longest_history == max(row["history_length"] for row in rows.values())
    assert report.history_bytes == sum(len(row["history"]) for row in rows.values())
    assert (
        report.num_parts
        == len(list((tmp_path / "out" / "user_history").iterdir()))
        >= len(rows) / 3
    )


def test_users_without_features_or_events_are_counted(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    report = features.build_features(source.path, tmp_path / "out", DataConfig())
    assert (report.users_without_events, report.users_without_features) == (1, 1)
    known = pq.read_table(tmp_path / "out" / "user_features.parquet").column("user_id").to_pylist()
    rows = rows_of(tmp_path / "out")
    assert NO_FEATURES in rows
    assert NO_FEATURES not in known
    assert NO_EVENTS in known
    assert NO_EVENTS not in rows


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    for name in ("a", "b"):
        features.build_features(source.path, tmp_path / name, DataConfig(shard_users=4))
    a, b = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in "ab"
    )
    assert a == b
    features.build_features(source.path, tmp_path / "c", DataConfig(shard_users=1))
    assert {user: row["history"] for user, row in rows_of(tmp_path / "c").items()} == {
        user: row["history"] for user, row in rows_of(tmp_path / "a").items()
    }


def test_parts_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random_log.write(tmp_path / "data")
    monkeypatch.setattr(tables, "MAX_PART_BYTES", 1)
    assert features.build_features(source.path, tmp_path / "out", DataConfig()).num_parts == 20


def test_the_manifest_counts_and_hashes_the_files(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    report = features.build_features(source.path, tmp_path / "out", DataConfig(shard_users=7))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"] == dataclasses.asdict(report)
    assert manifest["dataset_hash"] == source.facts["content_hash"]
    assert manifest["fingerprint"] == SCHEMA.fingerprint
    assert {
        name: files.sha256_of(tmp_path / "out" / name) for name in manifest["files"]
    } == manifest["files"]
    assert set(manifest["files"]) == {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    } - {"manifest.json"}


def test_features_are_stored_so_that_feast_keeps_them_exact(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    features.build_features(source.path, tmp_path / "out", DataConfig())
    users = pq.read_table(tmp_path / "out" / "user_features.parquet")
    kinds = {name: str(users.schema.field(name).type) for name in users.schema.names[3:]}
    assert kinds == {
        "inviter": "string",
        "group": "int64",
        "age": "int64",
        "city": "string",
        "score": "double",
    }
    assert set(users.column("inviter").to_pylist()) == {None, str(HUGE), str(-HUGE)}
    original = source.users()
    assert np.isnan(
        np.array([value for value in original.column("score").to_pylist() if value is not None])
    ).any()
    assert set(users.column("score").to_pylist()) == {None, 0.1}
    for feature in SCHEMA.user[:4]:
        assert (
            from_stored_column(users.column(feature.name), feature).to_pylist()
            == original.column(feature.name).to_pylist()
        )


def test_a_number_that_feast_would_change_is_refused(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    ages = [None, 2**53 + 1, *[1] * 18]
    rewrite(
        source.path / "users.parquet",
        lambda table: table.set_column(3, "age", pa.array(ages, pa.int64())),
    )
    with pytest.raises(DataError, match=r"'age' cannot pass the feature store exactly.*1 nulls"):
        features.build_features(source.path, tmp_path / "out", DataConfig())
    ages[0] = 3  # without a null it is exact
    rewrite(
        source.path / "users.parquet",
        lambda table: table.set_column(3, "age", pa.array(ages, pa.int64())),
    )
    features.build_features(source.path, tmp_path / "out", DataConfig())


def test_events_out_of_order_are_refused(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    rewrite(
        source.event_path(1), lambda table: table.take(pa.array([1, 0, *range(2, table.num_rows)]))
    )
    with pytest.raises(DataError, match=r"part-00001.parquet is out of order; found 1 steps back"):
        features.build_features(source.path, tmp_path / "out", DataConfig())
    assert not (tmp_path / "out").exists()


def test_a_basket_with_two_times_is_refused(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    rewrite(
        source.event_path(0),
        lambda table: table.set_column(4, "basket_id", pa.array([1] * table.num_rows, pa.int64())),
    )
    with pytest.raises(
        DataError, match=r"events of one basket have different times.*basket 1 of user"
    ):
        features.build_features(source.path, tmp_path / "out", DataConfig())


def test_a_user_in_two_parts_is_refused(tmp_path: Path) -> None:
    source = random_log.write(
        tmp_path / "data", schema=dataclasses.replace(SCHEMA, has_baskets=False)
    )
    other = pq.read_table(source.event_path(1)).column("user_id")[0].as_py()
    ids = lambda table: pa.array([other] * 2 + [HUGE * 2] * (table.num_rows - 2))  # noqa: E731
    order = [("user_id", "ascending"), ("timestamp", "ascending"), ("event_seq", "ascending")]
    rewrite(
        source.event_path(0),
        lambda table: table.set_column(0, "user_id", ids(table)).sort_by(order),
    )
    with pytest.raises(DataError, match="spread over several parts; found 1 users"):
        features.build_features(source.path, tmp_path / "out", DataConfig())


@pytest.mark.parametrize(("name", "key"), [("items", "item_id"), ("users", "user_id")])
def test_repeated_ids_are_refused(
    tmp_path: Path,
    name: str,
    key: str,
) -> None:
    source = random_log.write(tmp_path / "data")
    rewrite(
        source.path / f"{name}.parquet",
        lambda table: table.take(pa.array([0, 0, *range(2, table.num_rows)])),
    )
    with pytest.raises(DataError, match=f"{key} must be unique; found 1 repeated"):
        features.build_features(source.path, tmp_path / "out", DataConfig())


def test_a_feature_with_a_reserved_name_is_refused(tmp_path: Path) -> None:
    schema = dataclasses.replace(SCHEMA, user=(*SCHEMA.user, Feature("history_length", "number")))
    source = random_log.write(tmp_path / "data", schema=schema)
    with pytest.raises(DataError, match=r"history_length\. Rename it"):
        features.build_features(source.path, tmp_path / "out", DataConfig())


def test_a_failure_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_log.write(tmp_path / "data")
    out = tmp_path / "work" / "out"
    features.build_features(source.path, out, DataConfig())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
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
    with pytest.raises(OSError, match="No space left"):
        features.build_features(source.path, out, DataConfig(shard_users=3))
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def test_other_directories_are_not_replaced(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="will not be replaced"):
        features.build_features(source.path, tmp_path / "precious", DataConfig())
    assert Dataset.open(source.path).num_parts == 2
