"""Log files: their order and their format."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers.reading.log_files import list_log_files
from longrec.errors import DataError


def test_files_come_in_natural_order_and_in_one_format(tmp_path: Path) -> None:
    for name in ("log_part10.csv", "log_part2.csv", "log_part1.csv", "_SUCCESS", ".hidden.csv"):
        (tmp_path / name).write_text("a\n1\n")
    assert [path.name for path in list_log_files(tmp_path)] == [
        "log_part1.csv",
        "log_part2.csv",
        "log_part10.csv",
    ]
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="format"):
        list_log_files(tmp_path)
    with pytest.raises(DataError, match="no log at"):
        list_log_files(tmp_path / "nowhere")
