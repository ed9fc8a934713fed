"""Entity files: one row per id."""

from __future__ import annotations

import csv
from pathlib import Path

from longrec.data.importers.reading.entities import read_entities
from longrec.data.importers.reading.file_search import list_log_files
from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogFile, Rejects
from tests.longrec.data.importers.reading.log_rows import FIELDS


def test_the_first_row_of_an_id_stays_over_several_files(tmp_path: Path) -> None:
    (tmp_path / "u1.csv").write_text("a,c\n3,x\n1,y\n3,z\n")
    (tmp_path / "u2.csv").write_text("a,c\n1,w\n2,v\n")
    with Rejects(tmp_path / "out", 1) as rejects:
        batches = [
            batch
            for path in list_log_files(tmp_path / "u*.csv")
            for batch in read_rows(LogFile(path, "users", rejects), ["a", "c"])
        ]
        table = read_entities(batches, (FIELDS[0], FIELDS[2]))
        rejects.move_to(tmp_path / "rejects.csv")
    assert table.to_pylist() == [
        {"a": 1, "c": "y"},
        {"a": 2, "c": "v"},
        {"a": 3, "c": "x"},
    ]
    with (tmp_path / "rejects.csv").open(newline="") as stream:
        rejected = list(csv.reader(stream))[1:]
    assert [row[:3] for row in rejected] == [
        ["u1.csv", "4", "a occurs twice"],
        ["u2.csv", "2", "a occurs twice"],
    ]
