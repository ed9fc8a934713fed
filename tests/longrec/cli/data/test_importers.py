"""`longrec import events`: a dry run, a log without options, and a missing output directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from longrec.cli.main import app

RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{user},m{item},{item % 6},{1_700_000_000 + item}\n" for user in range(3) for item in range(9)
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS + ",m1,5,1700000000\n" + "1,m2,x,1700000000\n")
    return path


def import_events(*options: str | Path) -> Result:
    return CliRunner().invoke(app, ["import", "events", *map(str, options)])


def test_a_dry_run_prints_rows_guesses_and_rejects(log: Path, tmp_path: Path) -> None:
    answer = import_events(log, "--dry-run", "--label", "rating>=4")
    assert answer.exit_code == 0
    for text in (
        "item: column movieId",
        "unit of the times: seconds",
        "ids of items are text, such as m0",
        "2023-11-14T22:13:20.000Z",
        "29 read, 27 accepted, 1 filtered, 1 rejected",
        "events: no user id (a guest)",
        "rating is not a number: ",
    ):
        assert text in answer.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["ratings.csv"]
    printed = json.loads(import_events(log, "--dry-run", "--label", "rating>=4", "--json").stdout)
    assert printed["rows"][0]["item_id"] == "m0"


def test_a_ratings_log_needs_a_label_only(log: Path, tmp_path: Path) -> None:
    options = ["--label", "rating>=4", "--max-reject-share", "0.1"]
    answer = import_events(log, "--out", tmp_path / "d", *options)
    assert answer.exit_code == 0
    assert "29 read, 27 accepted, 1 filtered, 1 rejected" in answer.stdout
    assert "note      guessed ids of items are text, such as m0" in answer.stdout


def test_an_import_without_a_directory_says_so(log: Path) -> None:
    answer = import_events(log, "--label", "rating>=4")
    assert answer.exit_code == 1
    assert "no place for the dataset" in answer.output
    assert "--dry-run" in answer.output
