"""Evaluate and package the model of a finished run once more."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import EvaluateConfig, GateConfig, RunConfig
from longrec.data.files import read_json, write_json
from longrec.errors import ConfigError
from longrec.release.registry import read_registry
from longrec.runs.finished_run import FinishedRun, FinishedRunError, evaluate_again, package_again
from longrec.runs.serve import serve_command
from tests.conftest import LENGTH, ServedWorld

RUN = "20260101-120000-clicks"
REASON = "The AUC, 0.5, is not at least 0.7: it misses gate.min_auc by 0.2."
CONFIG = RunConfig(
    evaluate=EvaluateConfig(lengths=(LENGTH,), served_length=LENGTH, bootstrap_samples=5),
    gate=GateConfig(max_loss_to_baseline=1.0, min_calibration=0.0, max_calibration=100.0),
)


def refused_run(world: ServedWorld, workdir: Path) -> Path:
    """Write a finished run whose model the gate refused; return its folder."""
    evaluation = workdir / "evaluation"
    shutil.copytree(world.path / "evaluation", evaluation)
    metrics = read_json(evaluation / "metrics.json")
    gate = {"passed": False, "reasons": [REASON]}
    write_json(evaluation / "metrics.json", {**metrics, "gate": gate})
    paths = {"bundle": world.path / "bundle", "histories": world.path / "histories"}
    outputs = {name: os.path.relpath(path, workdir) for name, path in paths.items()}
    summary: dict[str, Any] = {
        "run": RUN,
        "config": CONFIG.to_dict(),
        "gate": gate,
        "bento_tag": None,
        "outputs": {**outputs, "evaluation": "evaluation"},
        "report": "report.html",
        "example": {"user_id": 1, "candidates": [1, 2]},
    }
    folder = workdir / "runs" / RUN
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", summary)
    (folder.parent / "latest").symlink_to(RUN)
    return folder


@pytest.fixture
def workdir(served_world: ServedWorld, tmp_path: Path) -> Path:
    refused_run(served_world, tmp_path / "work")
    return tmp_path / "work"


def test_the_latest_run_is_the_default(workdir: Path) -> None:
    assert FinishedRun.open(workdir).folder.name == RUN
    assert FinishedRun.open(workdir, RUN).folder.name == RUN


@pytest.mark.parametrize("run_id", ["other", "..", "../runs", "/"])
def test_an_unknown_run_names_the_finished_ones(run_id: str, workdir: Path) -> None:
    with pytest.raises(FinishedRunError, match=RUN):
        FinishedRun.open(workdir, run_id)


def test_an_empty_work_directory_says_how_to_make_a_run(tmp_path: Path) -> None:
    with pytest.raises(FinishedRunError, match="longrec run"):
        FinishedRun.open(tmp_path)


def test_overrides_change_the_configuration_of_the_run(workdir: Path) -> None:
    config = FinishedRun.open(workdir).config(["evaluate.served_length=8", "gate.min_auc=0.9"])
    assert config.evaluate.served_length == 8
    assert config.evaluate.bootstrap_samples == 5
    assert config.gate.min_auc == 0.9
    with pytest.raises(ConfigError, match="served_len"):
        FinishedRun.open(workdir).config(["evaluate.served_len=8"])


def test_outputs_of_cached_steps_are_found_where_an_earlier_run_made_them(
    served_world: ServedWorld, workdir: Path
) -> None:
    run = FinishedRun.open(workdir)
    assert not (run.folder / "artifacts").exists()
    assert run.output("bundle").samefile(served_world.path / "bundle")


def test_a_moved_work_directory_still_finds_its_outputs(workdir: Path, tmp_path: Path) -> None:
    moved = workdir.rename(tmp_path / "moved")
    assert FinishedRun.open(moved).output("evaluation") == moved / "evaluation"


def test_a_file_that_is_gone_says_how_to_get_it_back(workdir: Path) -> None:
    shutil.rmtree(workdir / "evaluation")
    with pytest.raises(FinishedRunError, match="Run it again"):
        FinishedRun.open(workdir).output("evaluation")


def test_a_run_is_evaluated_again_with_other_settings(workdir: Path) -> None:
    run = FinishedRun.open(workdir)
    before = read_json(run.folder / "summary.json")
    results = evaluate_again(run, run.config(["evaluate.lengths=[2]", "evaluate.served_length=2"]))
    assert results["served_length"] == 2
    assert [row["length"] for row in results["lengths"]] == [2]
    assert results["gate"]["passed"]
    report = Path(results["report"])
    assert report.is_file()
    assert report.is_relative_to(run.folder / "evaluations")
    assert read_json(run.folder / "summary.json") == before


def test_evaluate_prints_json_and_ends_with_3_when_the_gate_refuses(workdir: Path) -> None:
    arguments = ["evaluate", "--workdir", str(workdir), "--set", "gate.min_auc=0.999", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    results = json.loads(done.stdout)
    assert "it misses gate.min_auc by" in results["gate"]["reasons"][0]


def test_a_refused_model_is_packaged_by_force_only(workdir: Path) -> None:
    done = CliRunner().invoke(app, ["package", "--workdir", str(workdir)])
    assert done.exit_code == 3
    assert "it misses gate.min_auc by 0.2" in done.stderr
    assert "longrec package --force" in done.stderr
    assert read_json(workdir / "runs" / RUN / "summary.json")["bento_tag"] is None


@pytest.mark.slow
def test_a_forced_model_is_marked_served_and_no_champion(
    served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    workdir = tmp_path / "home"
    shutil.copytree(served_world.workdir, workdir, symlinks=True)
    shutil.rmtree(workdir / "models", ignore_errors=True)  # another test may have packaged a model
    folder = refused_run(served_world, workdir)
    summary = package_again(FinishedRun.open(workdir), force=True)
    assert summary["forced"] is True
    assert read_json(folder / "summary.json")["bento_tag"] == summary["bento_tag"]
    card = (folder / "bento" / "src" / "MODEL_CARD.md").read_text()
    assert card.startswith("**This model failed its gate and was packaged by force.**")
    release = read_json(folder / "bento" / "src" / "release.json")
    assert release["labels"]["gate"] == "refused-packaged-by-force"
    assert read_registry(workdir).champion is None
    served = serve_command(workdir, "127.0.0.1", 0)
    assert served.environment["LONGREC_MODEL"] == summary["bento_tag"]
