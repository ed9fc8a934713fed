"""JSON lines: exact numbers, missing keys, and lines that are no objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers.reading.log_reader import read_rows
from longrec.data.importers.reading.rejects import LogFile, Rejects
from longrec.errors import DataError


def test_numbers_keep_their_digits_and_bad_lines_are_counted(tmp_path: Path) -> None:
    lines = [
        '{"a": 9223372036854775807, "b": 0.1000000000000000055511151231257827, "c": "x"}',
        "",
        "[1]",
        '{"a": 1, "c": {"d": [2]}}',
        "{broken",
        '{"a": null, "b": "", "c": "\\ud800"}',
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    with Rejects(tmp_path / "out", 1) as rejects:
        [batch] = read_rows(LogFile(path, "events", rejects), ["a", "b", "c"])
        assert batch.table.to_pylist() == [
            {"a": "9223372036854775807", "b": "0.1000000000000000055511151231257827", "c": "x"},
            {"a": "1", "b": None, "c": '{"d": ["2"]}'},
            {"a": None, "b": None, "c": "?"},
        ]
        assert batch.lines.tolist() == [1, 4, 6]
        assert rejects.num_read["events"] == 5
        assert rejects.reasons == {"events: not a JSON object": 2}


@pytest.mark.parametrize("content", ["", "[1]\n", "text\n"])
def test_a_file_without_objects_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with (
        Rejects(tmp_path / "out", 1) as rejects,
        pytest.raises(DataError, match="holds no JSON objects"),
    ):
        read_rows(LogFile(path, "events", rejects), ["a"])
