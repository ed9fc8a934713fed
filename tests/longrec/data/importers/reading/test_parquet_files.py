"""Parquet files: many types, and a truncated file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.errors import DataError
from tests.longrec.data.importers.reading.log_rows import read_log


def test_parquet_of_many_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1.0, 2.5, None, 4.0]),
            "b": pa.array([True, None, False, True]),
            "c": pa.array(["x", "y", None, "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet")
    assert log.rows == [{"a": 1, "b": 1.0, "c": "x"}, {"a": 4, "b": 1.0, "c": "x"}]
    assert log.lines == [1, 4]
    assert log.reasons == [
        (2, "a is not a whole number"),
        (3, "a is null"),
    ]


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": range(1000), "b": [1.0] * 1000, "c": ["x"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_log(path)
