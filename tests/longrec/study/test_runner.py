"""Running a study: an interrupted one resumes, and a finished trial never runs again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import ModelConfig
from longrec.errors import DataError
from longrec.study import run_trial as trial_runner
from longrec.study.runner import run_in_processes, run_study
from tests.longrec.pages import text_of
from tests.longrec.study.small_study import (
    NUM_TRIALS,
    Finished,
    Result,
    at_length,
    results_in,
    study_arguments,
    write_study,
)


def test_an_interrupted_study_resumes(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, whole = finished
    out = tmp_path / "out"
    first_ids: list[str] = []

    def interrupt(
        result: Result,
        num_done: int,
        num_trials: int,
    ) -> None:
        first_ids.append(result["id"])
        assert (num_done, num_trials) == (len(first_ids), NUM_TRIALS)
        if len(first_ids) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(
            histories_dir,
            out,
            study,
            on_trial=interrupt,
        )
    assert sorted(results_in(out)) == sorted(first_ids)
    assert len(first_ids) == 3
    calls: list[tuple[str, int, int]] = []

    def record(
        result: Result,
        num_done: int,
        num_trials: int,
    ) -> None:
        calls.append((result["id"], num_done, num_trials))

    report = run_study(
        histories_dir,
        out,
        study,
        on_trial=record,
    )
    [(last_id, num_done, num_trials)] = calls
    assert (num_done, num_trials) == (NUM_TRIALS, NUM_TRIALS)
    assert last_id not in first_ids
    assert (report.num_done, report.num_trials) == (NUM_TRIALS, NUM_TRIALS)
    # the results are those of the uninterrupted study
    results = results_in(out)
    for trial_id, expected in results_in(whole).items():
        row = at_length(results[trial_id], 16)
        assert row["auc"] == at_length(expected, 16)["auc"]


def test_a_finished_trial_never_runs_again(
    histories_dir: Path,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    study, whole = finished
    shutil.copytree(whole, tmp_path / "out")

    def forbidden(
        *arguments: Any,
        **options: Any,
    ) -> None:
        pytest.fail("a finished trial ran again")

    monkeypatch.setattr(trial_runner.loop, "fit", forbidden)
    report = run_study(histories_dir, tmp_path / "out", study)
    assert report.num_done == NUM_TRIALS


@pytest.mark.slow
def test_processes_give_the_same_results(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, out = finished
    run_study(
        histories_dir,
        tmp_path / "out",
        study,
        num_workers=2,
    )
    results = results_in(tmp_path / "out")
    for trial_id, expected in results_in(out).items():
        # the processes have another number of threads
        assert results[trial_id]["auc"] == pytest.approx(expected["auc"], abs=1e-3)


def test_a_trial_that_fails_is_reported_and_the_others_run(
    histories_dir: Path,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    study, _ = finished
    out = tmp_path / "out"
    make_ranker = trial_runner.loop.make_ranker

    def broken(
        model: ModelConfig,
        *arguments: Any,
    ) -> Any:
        if model.kind == "mean":
            raise RuntimeError("out of memory")
        return make_ranker(model, *arguments)

    monkeypatch.setattr(trial_runner.loop, "make_ranker", broken)
    report = run_study(histories_dir, out, study)
    assert report.num_done == 2
    errors = [failure["error"] for failure in report.failures]
    assert errors == ["RuntimeError: out of memory"] * 2
    assert "out of memory" in text_of(out / "report.html")
    arguments = study_arguments(write_study(tmp_path), histories_dir, out)
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 1
    assert "out of memory" in answer.stderr
    monkeypatch.undo()
    assert run_study(histories_dir, out, study).num_done == NUM_TRIALS


def test_a_process_that_dies_costs_its_own_trial_only() -> None:
    expressions: Any = iter(["1", "__import__('os')._exit(1)", "2"])
    run: Any = eval
    outcomes = list(run_in_processes(run, expressions, 1))
    results = [result for _, result in outcomes]
    assert results[0] == 1
    assert "BrokenProcessPool" in repr(results[1])
    assert results[2] == 2


def test_folders_of_killed_calls_are_removed(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, out = finished
    ended = subprocess.Popen(["true"])
    ended.wait()
    prefix = f".encoded.tmp-{socket.gethostname()}"
    of_ended = tmp_path / f"{prefix}-{ended.pid}-0"
    of_living = tmp_path / f"{prefix}-{os.getpid()}-0"
    for folder in (of_ended, of_living):
        (folder / "histories").mkdir(parents=True)
    shutil.copytree(out / "trials", tmp_path / "trials")
    run_study(histories_dir, tmp_path, study)
    assert not of_ended.exists()
    assert of_living.exists()
    assert list(tmp_path.glob(".encoded*")) == [of_living]


def test_no_trial_starts_after_the_limit(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, _ = finished
    with pytest.raises(DataError, match="0 of 4 trials"):
        run_study(
            histories_dir,
            tmp_path / "out",
            study,
            limit_seconds=1e-9,
        )
