"""Collecting a study: its tables equal the results, and undefined metrics are left out."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.data.files import read_json
from longrec.data.histories import Histories
from longrec.errors import DataError
from longrec.study.collect import collect, of_task
from longrec.study.run_trial import run_trial
from longrec.study.trial import plan
from tests.longrec import small_histories
from tests.longrec.pages import text_of
from tests.longrec.study.small_study import (
    LENGTHS,
    NUM_TRIALS,
    SERVED_LENGTH,
    STUDY,
    Finished,
    at_length,
    load_study,
    results_in,
    study_arguments,
    without_metric,
    write_result,
    write_study,
)


def test_trials_csv_has_the_results(finished: Finished) -> None:
    study, out = finished
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [trial.id for trial in plan(study)]
    results = results_in(out)
    for row in rows:
        result = results[row["id"]]
        served_auc = at_length(result, SERVED_LENGTH)["auc"]
        short_auc = at_length(result, 4)["auc"]
        assert float(row["auc"]) == pytest.approx(served_auc, abs=1e-5)
        assert float(row["auc_at_4"]) == pytest.approx(short_auc, abs=1e-5)


def test_curves_are_means_over_seeds(finished: Finished) -> None:
    _, out = finished
    facts = read_json(out / "study.json")
    curve = [row for row in facts["curves"] if row["variant"] == "mean"]
    results = [result for result in results_in(out).values() if result["variant"] == "mean"]
    for row in curve:
        aucs = [at_length(result, row["length"])["auc"] for result in results]
        assert row["auc"] == pytest.approx(np.mean(aucs))
        assert row["gain"] == pytest.approx(row["auc"] - curve[0]["auc"])
        assert row["auc_low"] < row["auc"] < row["auc_high"]


@pytest.mark.parametrize("metric", ["gauc", "auc"])
def test_an_undefined_metric_leaves_a_dash_and_the_rest(
    finished: Finished,
    tmp_path: Path,
    metric: str,
) -> None:
    study, out = finished
    for trial_id, result in results_in(out).items():
        if result["variant"] == "mean" and result["seed"] == 1:
            result = without_metric(result, metric, SERVED_LENGTH)
        write_result(tmp_path, trial_id, result)
    report = collect(tmp_path, study)
    [row] = [
        row for row in report.curves if row["variant"] == "mean" and row["length"] == SERVED_LENGTH
    ]
    # the other seed alone does not define it either
    assert row[metric] is None
    assert row[f"{metric}_low"] is None
    assert row["logloss"] is not None
    served = [row for row in report.differences if row["length"] == SERVED_LENGTH]
    assert served[0][metric] is None
    for fit in report.fits:
        if fit["metric"] == metric and fit["against"] == "mean_events":
            assert np.isfinite(fit["slope_per_doubling"])
    assert "NaN" not in (tmp_path / "study.json").read_text()
    assert "mean" in text_of(tmp_path / "report.html")


def test_a_study_without_any_defined_auc_says_so(
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, out = finished
    for trial_id, result in results_in(out).items():
        for length in LENGTHS:
            result = without_metric(result, "auc", length)
        write_result(tmp_path, trial_id, {**result, "auc": None})
    collect(tmp_path, study)
    assert "No trial has a defined AUC" in text_of(tmp_path / "report.html")
    arguments = study_arguments(
        write_study(tmp_path),
        "none",
        tmp_path,
        "--only-report",
    )
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0
    assert "not defined" in answer.stdout


def test_a_variant_that_is_served_shorter_is_shown_at_its_length(
    finished: Finished,
    tmp_path: Path,
) -> None:
    _, out = finished
    shorter = "mean: {evaluate.lengths: [4, 16], evaluate.served_length: 16, "
    study = load_study(tmp_path, STUDY.replace("mean: {", shorter))
    result_of = {}
    for result in results_in(out).values():
        result_of[result["variant"], result["seed"]] = result
    for trial in plan(study):
        result = result_of[trial.variant, trial.seed]
        if trial.variant == "mean":
            result = {
                **result,
                "served_length": 16,
                "lengths": [at_length(result, 4), at_length(result, 16)],
            }
        write_result(tmp_path, trial.id, result)
    report = collect(tmp_path, study)
    assert {row["length"] for row in report.differences} == {4, 16}
    assert "mean (at 16)" in text_of(tmp_path / "report.html")


def test_results_on_other_requests_are_not_mixed(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, _ = finished
    other_dir = small_histories.write(
        tmp_path / "other",
        num_users=40,
        requests_per_user=6,
        seed=9,
    )
    first, second, *_ = plan(study)
    run_trial(histories_dir, tmp_path / "out", first.to_dict())
    run_trial(other_dir, tmp_path / "out", second.to_dict())
    with pytest.raises(DataError, match="different requests"):
        collect(tmp_path / "out", study)


def test_study_json_describes_the_histories(
    histories_dir: Path,
    finished: Finished,
) -> None:
    _, out = finished
    data = read_json(out / "study.json")["data"]
    splits = np.asarray(Histories.open(histories_dir).requests["split"])
    assert data["requests"] == (splits == "eval").sum()
    assert data["training requests"] == (splits == "train").sum()


def test_the_command_runs_a_study_and_reports_it_again(
    histories_dir: Path,
    finished: Finished,
    tmp_path: Path,
) -> None:
    _, out = finished
    path = write_study(tmp_path)
    for options in ([], ["--only-report"]):
        arguments = study_arguments(
            path,
            histories_dir,
            out,
            "--json",
            *options,
        )
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 0, answer.output
        assert json.loads(answer.stdout)["num_done"] == NUM_TRIALS
    table = CliRunner().invoke(app, study_arguments(path, histories_dir, out))
    assert "stca" in table.stdout
    assert "4 of 4 trials" in table.stdout


def test_a_study_compares_any_task_of_its_trials(finished: Finished) -> None:
    _, out = finished
    first = next(iter(results_in(out).values()))
    names = list(first["lengths"][0]["tasks"])
    row = at_length(first, SERVED_LENGTH)
    assert row["auc"] == row["tasks"][names[0]]["auc"]
    last = of_task(first, names[-1])
    assert last["auc"] == row["tasks"][names[-1]]["auc"]
    assert at_length(last, SERVED_LENGTH)["samples"] == row["tasks"][names[-1]]["samples"]


def test_a_task_that_no_trial_measured_is_refused(finished: Finished) -> None:
    study, out = finished
    with pytest.raises(DataError, match="task of the study"):
        collect(out, dataclasses.replace(study, task="purchase"))
