"""Rows of a log file and its rejects, for assertions."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrec.data.importers.reading.fields import Field, convert
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogFile, Rejects
from longrec.data.importers.reading.text_files import read_delimited

FIELDS = (
    Field("a", "a", "int64", is_required=True),
    Field("b", "b", "float64"),
    Field("c", "c", "string"),
)


@dataclasses.dataclass
class LogRows:
    """Rows of a log file, their lines, the rejected (line, reason, text) and the counts."""

    rows: list[dict[str, Any]]
    lines: list[int]
    rejected: list[list[str]]
    rejects: Rejects

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Line and reason of each rejected row, sorted."""
        return sorted((int(line), reason) for line, reason, _ in self.rejected)


def read_log(path: Path, fields: Sequence[Field] = FIELDS, **options: Any) -> LogRows:
    """Read and convert a .csv file with options, or a Parquet file with the columns a, b, c."""
    rows = []
    lines = []
    with Rejects(path.parent / "out", 1.0) as rejects:
        file = LogFile(path, "events", rejects)
        if path.suffix == ".csv":
            batches = read_delimited(file, **options)
        else:
            batches = read_rows(file, ["a", "b", "c"])
        for batch in batches:
            converted = convert(batch, fields)
            rows += converted.table.to_pylist()
            lines += converted.lines.tolist()
        rejects.move_to(path.parent / "rejects.csv")
    return LogRows(rows, lines, _written_rejects(path.parent / "rejects.csv"), rejects)


def _written_rejects(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [row[1:] for row in list(csv.reader(stream))[1:]]


def write_log(tmp_path: Path, content: bytes | str) -> Path:
    """Write log.csv and return its path."""
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
