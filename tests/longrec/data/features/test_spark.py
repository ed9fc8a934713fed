"""Spark in local mode: the same files as one process, byte for byte, and errors in one line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.features import spark
from longrec.data.importers import NegativeSampling, import_events
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import retrieve
from longrec.errors import DataError
from tests.longrec.data import random_log, test_late_events

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    pyspark = pytest.importorskip("pyspark", reason="the extra spark is not installed")
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    os.environ["PYTHONPATH"] = f"{ROOT / 'model'}:{os.environ.get('PYTHONPATH', '')}"
    os.environ["PYSPARK_PYTHON"] = (
        sys.executable
    )  # else the first python3 on PATH, which need not be ours
    builder = (
        pyspark.sql.SparkSession.builder.master("local[2]")
        .appName("longrec")
        .config("spark.ui.enabled", "false")
    )
    found = (
        builder.config("spark.sql.shuffle.partitions", "4")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    yield found
    found.stop()


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_the_same_bytes_as_one_process(session: Any, tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data", num_users=60, num_parts=3)
    here = features.build_features(source.path, tmp_path / "here", DataConfig(shard_users=7))
    there = features.build_features(
        source.path, tmp_path / "there", DataConfig(shard_users=7), spark.spark_packer(session)
    )
    assert there == here
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_late_events_and_ties_of_one_sequence_number(session: Any, tmp_path: Path) -> None:
    table = test_late_events.log(tmp_path / "log.csv", np.random.default_rng(0))
    tied = table.set_column(2, "timestamp", pa.array(np.asarray(table["timestamp"]) // 50 * 50))
    pq.write_table(
        tied.append_column("place", pa.array(np.arange(400) % 2)).set_column(
            1, "item_id", pa.array(np.arange(400) * 7 % 401)
        ),
        tmp_path / "log.parquet",
    )
    mapping = test_late_events.EventMapping(
        created="came_in",
        features=("action:category",),
        seq="place",
    )
    import_events(
        tmp_path / "log.parquet",
        tmp_path / "data",
        mapping,
        negatives=NegativeSampling(1, keep_new=True),
    )
    here = features.build_features(tmp_path / "data", tmp_path / "here", DataConfig())
    there = features.build_features(
        tmp_path / "data", tmp_path / "there", DataConfig(), spark.spark_packer(session)
    )
    assert here.num_late > 50
    assert there == here
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_an_error_on_an_executor_is_one_line(session: Any, tmp_path: Path) -> None:
    source = random_log.write(tmp_path / "data")
    path = source.event_path(0)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(
        table.set_column(4, "basket_id", pa.array([1] * table.num_rows, pa.int64())), path
    )
    message = (
        r"Spark could not pack the timelines; "
        r"found .*events of one basket have different times"
    )
    with pytest.raises(DataError, match=message):
        features.build_features(
            source.path, tmp_path / "out", DataConfig(), spark.spark_packer(session)
        )
    assert not (tmp_path / "out").exists()


def test_retrieval_by_spark_gives_the_same_histories(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare every file of the histories with those of the DuckDB offline store."""
    source = random_log.write(tmp_path / "data")
    features.build_features(source.path, tmp_path / "tables", DataConfig())
    found = []
    for overlay in ("", "spark"):
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", overlay)
        publish(tmp_path / "tables", tmp_path / f"workdir{overlay}", ROOT / "feature_repo")
        workdir = tmp_path / f"workdir{overlay}"
        out = tmp_path / f"out{overlay}"
        report = retrieve(
            source.path,
            workdir,
            ROOT / "feature_repo",
            out,
            DataConfig(),
            0,
        )
        found.append((report, content(out)))
    assert found[0] == found[1]
    assert len(found[0][1]) == 6
