"""Imported datasets as plain rows, for assertions."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from longrec.data.dataset import Dataset
from longrec.data.importers import ImportReport

Row = dict[str, Any]


def read_dataset(path: Path) -> tuple[list[Row], list[Row]]:
    """Return the events and the targets of all parts by user, with times in ms."""
    dataset = Dataset.open(path)
    return _sorted_rows(dataset.event_parts()), _sorted_rows(dataset.target_parts())


def _sorted_rows(parts: Iterable[pa.Table]) -> list[Row]:
    rows = [row for part in parts for row in plain_rows(part)]
    return sorted(rows, key=lambda row: row["user_id"])


def plain_rows(table: pa.Table) -> list[Row]:
    """Return the rows of a table with times in ms."""
    place = table.schema.get_field_index("timestamp")
    times = table["timestamp"].cast(pa.int64())
    return list(table.set_column(place, "timestamp", times).to_pylist())


def rejected_rows(path: Path) -> list[tuple[str, int, str]]:
    """Return file, line and reason of the rejected rows of a dataset."""
    rejected = []
    with (path / "rejects.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            rejected.append((row["file"], int(row["line"]), row["reason"]))
    return rejected


def assert_rows_add_up(report: ImportReport) -> None:
    """Check that every row that was read is accepted, filtered or rejected, by a name."""
    named = Counter[str]()
    for counts in (report.filter_counts, report.reject_reasons):
        for name, count in counts.items():
            named[name.partition(":")[0]] += count
    for group, counts in report.row_counts.items():
        assert counts["read"] == sum(counts.values()) - counts["read"], group
        assert named[group] == counts["filtered"] + counts["rejected"], group
    assert set(named) <= set(report.row_counts)
