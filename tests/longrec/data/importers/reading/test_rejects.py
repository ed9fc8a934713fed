"""Rejects: the file has a limit, the counts have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers.reading import rejects
from tests.longrec.data.importers.reading.log_rows import read_log, write_log


def test_the_file_has_a_limited_number_of_rows_and_the_counts_cover_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rejects, "MAX_WRITTEN_REJECTS", 5)
    log = read_log(write_log(tmp_path, "a,b,c\n" + "x,1,y\n" * 20))
    assert len(log.rejected) == 5
    assert log.rejects.num_rejected["events"] == 20
