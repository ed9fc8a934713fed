"""longrec schedules lists, pauses, resumes and removes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from longrec.cli.main import app
from pipelines.server.reading import Reader
from tests.pipelines.kfp_server import FakeServer, parse

NIGHTLY: dict[str, Any] = {
    "display_name": "training-ranker",
    "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}},
    "mode": "ENABLE",
    "status": "ENABLED",
    "pipeline_spec": {"pipeline_spec": {"pipelineInfo": {"name": "longrec-training"}}},
}


@pytest.fixture
def nightly(server: FakeServer) -> str:
    """Return the id of a schedule in the default experiment."""
    experiment = parse("V2beta1Experiment", {"display_name": "longrec"})
    experiment.experiment_id = "e1"
    server.experiments["e1"] = experiment
    entry = parse("V2beta1RecurringRun", {**NIGHTLY, "experiment_id": "e1"})
    entry.recurring_run_id = "s1"
    server.recurring["s1"] = entry
    return "s1"


def _type(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["schedules", *arguments], catch_exceptions=False)


def _states() -> list[str]:
    return [line.split()[-2] for line in _type().stdout.splitlines()]


def test_schedules_are_listed(server: FakeServer, nightly: str) -> None:
    assert _type().stdout.split() == [
        "training-ranker",
        "longrec-training",
        *["0", "0", "3", "*", "*", "*"],
        "on",
        nightly,
    ]
    listed = json.loads(_type("--json").stdout)["schedules"]
    assert listed[0]["url"] == f"{server.url}/#/recurringrun/details/{nightly}"


@pytest.mark.parametrize("name", ["training-ranker", "s1"])
def test_a_schedule_is_paused_resumed_and_removed(
    server: FakeServer, nightly: str, name: str
) -> None:
    assert _type("pause", name).stdout == f"paused training-ranker {nightly}\n"
    assert _states() == ["paused"]
    assert _type("resume", name).exit_code == 0
    assert _states() == ["on"]
    assert _type("remove", name).exit_code == 0
    assert not server.recurring
    assert _type().stdout == "no schedule in experiment longrec\n"


def test_an_unknown_schedule_changes_nothing(server: FakeServer, nightly: str) -> None:
    answer = _type("remove", "nightyl")
    assert answer.exit_code == 1
    assert "there is no schedule 'nightyl'; expected training-ranker" in answer.stderr
    assert list(server.recurring) == [nightly]


def test_a_server_that_repeats_a_page_ends_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"runs": [{"run_id": "1"}], "next_page_token": "again"}
    monkeypatch.setattr(Reader, "json", lambda *arguments, **options: page)
    reader = Reader(None, "http://host", None)  # type: ignore[arg-type]
    assert len(list(reader.pages("/runs", "runs"))) == 2
