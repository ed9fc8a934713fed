"""Datasets of one user, one request and one item, and of missing numbers: a result or one error."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.importers import EventMapping, import_events
from longrec.errors import LongrecError

START_MS = 1_600_000_000_000
MAPPING = EventMapping(
    user="user",
    item="item",
    timestamp="time",
    features=("price:number:float64",),
    labels=("like",),
)
LOGS = {
    "one row": ["1,1,{0},1,2.5"],
    "one user and one item": ["1,1,{0},1,2.5", "1,1,{1},0,2.5", "1,1,{2},1,2.5"],
    "numbers that are all missing": ["1,1,{0},1,nan", "2,2,{1},0,", "1,3,{2},0,NaN"],
}


def write_log(folder: Path, rows: list[str]) -> Path:
    times = [START_MS + 1_000_000 * step for step in range(3)]
    lines = ["user,item,time,like,price", *(row.format(*times) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "log.csv"


@pytest.mark.parametrize("name", LOGS)
def test_a_tiny_log_is_imported_and_built(tmp_path: Path, name: str) -> None:
    rows = LOGS[name]
    report = import_events(write_log(tmp_path, rows), tmp_path / "data", MAPPING)
    assert report.num_events == len(rows)
    built = features.build_features(tmp_path / "data", tmp_path / "features", DataConfig())
    assert built.num_events == len(rows)


@pytest.mark.parametrize("time", ["nan", "NaN", "", "inf", "-1"])
def test_a_time_that_is_no_time_is_one_error(tmp_path: Path, time: str) -> None:
    log = write_log(tmp_path, [f"1,1,{time},1,2.5"])
    with pytest.raises(LongrecError, match="rows of the events were rejected"):
        import_events(log, tmp_path / "data", MAPPING)
    assert not (tmp_path / "data").exists()
