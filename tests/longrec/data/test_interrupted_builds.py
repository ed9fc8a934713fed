"""Killed builds, damaged files and a full disk: one line of error, nothing half-written."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data import features, files
from longrec.data.dataset import Dataset
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.shards import part_of
from longrec.errors import DataError
from longrec.schema import Feature, Schema, Task
from tests.longrec.data import random_log

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "model")}
BUILD = """
import sys
from longrec.config import DataConfig
from longrec.data import features
print("ready", flush=True)
features.build_features(sys.argv[1], sys.argv[2], DataConfig(shard_users=20))
"""
MEASURED_BUILD = """
import sys
import tempfile
from longrec.config import DataConfig
from longrec.data import features

def kib(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

with tempfile.TemporaryDirectory() as folder:
    features.build_features(sys.argv[1], folder + "/out", DataConfig(shard_users=20))
before = kib("VmRSS")
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the peak starts again at the present size
features.build_features(sys.argv[2], sys.argv[3], DataConfig(shard_users=20))
print(kib("VmHWM") - before)
"""
SCHEMA = Schema(
    "log",
    (Feature("item_id", "id"),),
    (),
    (Feature("seconds", "number", "float64"),),
    (Task("label"),),
)


def write_log(
    path: Path,
    *,
    num_users: int,
    per_user: int,
    seed: int,
) -> Dataset:
    rng = np.random.default_rng(seed)
    with DatasetWriter(
        path,
        SCHEMA,
        name="log",
        source={},
        num_parts=1,
    ) as writer:
        users = np.repeat(np.arange(num_users), per_user)
        events = pa.table(
            {
                "user_id": users,
                "item_id": rng.integers(0, 1 << 40, len(users)),
                "timestamp": np.arange(len(users)) * 7,
                "event_seq": np.arange(len(users)),
                "seconds": rng.random(len(users)),
            }
        )
        request_times = pa.array([len(users) * 7] * num_users, pa.timestamp("ms", "UTC"))
        targets = pa.table(
            {
                "request_id": np.arange(num_users),
                "user_id": np.arange(num_users),
                "timestamp": request_times,
                "item_id": np.zeros(num_users, np.int64),
                "label": np.zeros(num_users, np.int8),
            }
        )
        times = events["timestamp"].cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC"))
        writer.write_part(0, events.set_column(2, "timestamp", times), targets)
        writer.write_entities(
            pa.table({"item_id": [0]}), pa.table({"user_id": np.arange(num_users)})
        )
    return Dataset.open(path)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_build_killed_at_ten_random_times_gives_the_same_bytes(tmp_path: Path) -> None:
    """After each SIGKILL the old or the new version is complete; at the end only the new one."""
    source = write_log(
        tmp_path / "data",
        num_users=300,
        per_user=8_000,
        seed=0,
    )
    before = write_log(
        tmp_path / "before",
        num_users=5,
        per_user=10,
        seed=1,
    )
    features.build_features(before.path, tmp_path / "old", DataConfig())
    started = time.monotonic()
    expected_report = features.build_features(
        source.path, tmp_path / "expected", DataConfig(shard_users=20)
    )
    duration = time.monotonic() - started
    old = content(tmp_path / "old")
    new = content(tmp_path / "expected")
    place = tmp_path / "out"
    place.mkdir()
    features.build_features(before.path, place / "tables", DataConfig())
    rng = random.Random(0)
    num_killed = 0
    while num_killed < 10:
        child = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(source.path), str(place / "tables")],
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, duration))
        num_killed += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert content(place / "tables") in (old, new)
    report = features.build_features(source.path, place / "tables", DataConfig(shard_users=20))
    assert content(place / "tables") == new
    assert report == expected_report
    assert names(place) == ["tables"]


def test_equal_content_has_the_equal_version(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    first = features.build_features(source.path, tmp_path / "a", DataConfig())
    assert (
        features.build_features(source.path, tmp_path / "b", DataConfig()).version == first.version
    )
    assert files.read_json(tmp_path / "a" / "manifest.json")["version"] == first.version
    other = random_log.write(tmp_path / "other", seed=1)
    assert (
        features.build_features(other.path, tmp_path / "c", DataConfig()).version != first.version
    )


@pytest.mark.slow
def test_memory_of_a_build_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Build eight times the users in parts of one size: each build needs the memory of a part.

    A build is measured in a process of its own: its peak above what the process held before. A
    first, small build loads the libraries. So neither they nor the machine count.
    """
    warm_up = write_log(tmp_path / "warm-up", num_users=5, per_user=10, seed=0)
    growths = []
    for num_parts in (2, 16):
        path = tmp_path / f"data-{num_parts}"
        rng = np.random.default_rng(0)
        with DatasetWriter(
            path,
            SCHEMA,
            name="log",
            source={},
            num_parts=num_parts,
        ) as writer:
            all_users = np.arange(20 * num_parts)
            for part in range(num_parts):
                users_of_part = all_users[part_of(all_users, num_parts) == part]
                users = np.repeat(users_of_part, 10_000)
                times = pa.array(
                    np.tile(np.arange(10_000), len(users_of_part)), pa.timestamp("ms", "UTC")
                )
                writer.write_part(
                    part,
                    pa.table(
                        {
                            "user_id": users,
                            "item_id": rng.integers(0, 1 << 40, len(users)),
                            "timestamp": times,
                            "event_seq": np.arange(len(users)),
                            "seconds": rng.random(len(users)),
                        }
                    ),
                    pa.table(
                        {
                            "request_id": users_of_part,
                            "user_id": users_of_part,
                            "timestamp": pa.array([9_999] * len(users_of_part), times.type),
                            "item_id": np.zeros(len(users_of_part), np.int64),
                            "label": np.zeros(len(users_of_part), np.int8),
                        }
                    ),
                )
            writer.write_entities(pa.table({"item_id": [0]}), pa.table({"user_id": all_users}))
        out = tmp_path / f"out-{num_parts}"
        command = [sys.executable, "-c", MEASURED_BUILD, str(warm_up.path), str(path), str(out)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            check=True,
            env={**ENVIRONMENT, "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
            text=True,
        )
        growths.append(int(done.stdout.split()[-1]) / 1024)
    data_mib = 14 * 20 * 10_000 * 40 / 2**20  # 14 more parts, 40 bytes an event
    assert growths[1] < growths[0] + data_mib / 2, growths


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Yield a directory on its own file system; skip if mounting is not allowed."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def longrec(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command with files of at most `limit` kB."""
    command = [sys.executable, "-m", "longrec.cli.main", *arguments]
    if limit is not None:
        command = ["bash", "-c", f'ulimit -f {limit}; trap "" XFSZ; exec "$@"', "bash", *command]
    return subprocess.run(
        command,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert (
        done.returncode == 1 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr
    assert done.stderr.startswith("longrec: ") and message in done.stderr, done.stderr


def csv_log(path: Path, num_rows: int = 30_000) -> Path:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1 << 40, num_rows).tolist()
    rows = (f"{user},{user % 100},{1_600_000_000_000 + row}" for row, user in enumerate(ids))
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


def test_a_full_disk_ends_an_import_in_one_line(tmp_path: Path) -> None:
    log = csv_log(tmp_path / "log.csv")
    with small_disk(tmp_path / "disk", "1m") as disk:
        done = longrec(
            "import", "events", str(log), "--out", str(disk / "data"), "--negatives", "1"
        )
        assert_one_line(done, "no space is left to write")
        assert names(disk) == []


def test_a_file_that_may_not_grow_ends_an_import_in_one_line(tmp_path: Path) -> None:
    log = csv_log(tmp_path / "log.csv")
    (tmp_path / "out").mkdir()
    done = longrec(
        "import",
        "events",
        str(log),
        "--out",
        str(tmp_path / "out" / "data"),
        "--negatives",
        "1",
        limit=100,
    )
    assert_one_line(done, "no space is left to write")
    assert names(tmp_path / "out") == []


def test_a_full_disk_leaves_the_old_feature_tables(tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    large = write_log(
        tmp_path / "large",
        num_users=20,
        per_user=5_000,
        seed=0,
    )
    with small_disk(tmp_path / "disk", "1m") as disk:
        features.build_features(source.path, disk / "out", DataConfig())
        before = content(disk / "out")
        with pytest.raises(DataError, match="no space is left to write"):
            features.build_features(large.path, disk / "out", DataConfig())
        assert content(disk / "out") == before
        assert names(disk) == ["out"]


def parquet_log(path: Path) -> pa.Table:
    size = 5_000
    times = 1_600_000_000_000 + np.arange(size) * 60_000
    table = pa.table(
        {"user_id": np.arange(size) % 7, "item_id": np.arange(size) % 50, "timestamp": times}
    )
    pq.write_table(table, path)
    return table


def test_a_truncated_parquet_file_ends_an_import_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    parquet_log(log)
    log.write_bytes(log.read_bytes()[:-2_000])
    done = longrec(
        "import", "events", str(log), "--out", str(tmp_path / "data"), "--negatives", "1"
    )
    assert_one_line(done, "log.parquet is not a readable Parquet file")
    assert names(tmp_path) == ["log.parquet"]


def test_a_column_of_the_wrong_type_ends_an_import_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    table = parquet_log(log)
    pq.write_table(table.set_column(2, "timestamp", pa.array([[1]] * table.num_rows)), log)
    done = longrec(
        "import", "events", str(log), "--out", str(tmp_path / "data"), "--negatives", "1"
    )
    assert_one_line(done, "5,000 timestamp is not a time")
    assert not (tmp_path / "data").exists()


def test_negative_times_end_an_import_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    table = parquet_log(log)
    pq.write_table(table.set_column(2, "timestamp", pa.array(-np.arange(table.num_rows))), log)
    done = longrec(
        "import", "events", str(log), "--out", str(tmp_path / "data"), "--negatives", "1"
    )
    assert_one_line(done, "timestamp is not a time from 1980 to 2099")
    assert not (tmp_path / "data").exists()


def rewrite(
    path: Path,
    name: str,
    change: object,
) -> None:
    table = pq.read_table(path)
    column = table[name]
    ordinals = np.asarray(column.cast(pa.int64())).copy()
    change(ordinals)  # type: ignore[operator]
    where = table.column_names.index(name)
    pq.write_table(
        table.set_column(
            where,
            name,
            pa.array(ordinals).cast(pa.timestamp("ms")).cast(column.type)
            if name == "timestamp"
            else pa.array(ordinals),
        ),
        path,
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "timestamp",
            lambda values: values.__setitem__(0, -5),
            "holds times before 1970; found 1, the first of user 0",
        ),
        (
            "event_seq",
            lambda values: values.__setitem__(1, 0),
            r"the same key \(timestamp, event_seq, item_id\); found 1, for example user 0",
        ),
    ],
    ids=["negative", "duplicate"],
)
def test_a_build_refuses_events_that_cannot_be_told_apart_or_placed(
    tmp_path: Path, name: str, change: object, message: str
) -> None:
    source = write_log(tmp_path / "data", num_users=3, per_user=5, seed=0)
    path = source.event_path(0)
    if name == "event_seq":
        for column in ("timestamp", "item_id"):
            rewrite(path, column, lambda values: values.__setitem__(1, values[0]))
    rewrite(path, name, change)
    with pytest.raises(DataError, match=message):
        features.build_features(source.path, tmp_path / "out", DataConfig())
    assert names(tmp_path) == ["data"]
