"""Faults of a run on a cluster: its steps are processes, and finish is told RUNNING."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longrec.runs.record.attempts import STEPS_FOLDER, Attempt, read

ROOT = Path(__file__).parents[4]
RUN = "41e1f18b-1073-4ba4-a8e4-d7192caa3b2c"
STUDY = "name: two\nbase: {}\nvariants: {stca: {}, wide: {model.width: 64}}\n"
SENTENCE = "The AUC, 0.5, is not at least 0.7: it misses gate.min_auc by 0.2."
MISSED = {"name": "min_auc", "value": 0.5, "missed_by": 0.2, "sentence": SENTENCE}
GATE = {"passed": False, "reasons": [SENTENCE], "criteria": [{**MISSED, "passed": False}]}


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LONGREC_RUN", RUN)
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    monkeypatch.setenv("LONGREC_UI", "https://kubeflow")
    monkeypatch.delenv("LONGREC_WEBHOOK", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def _start(
    folder: Path, step: str, parameters: dict[str, Any], outputs: dict[str, Any]
) -> subprocess.Popen[bytes]:
    """Start a step as the launcher of a cluster does."""
    artifacts = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(path)}]}
        for name, (kind, path) in outputs.get("artifacts", {}).items()
    }
    inputs = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(path)}]}
        for name, (kind, path) in outputs.get("inputs", {}).items()
    }
    value = {
        "inputs": {"parameterValues": parameters, "artifacts": inputs},
        "outputs": {
            "artifacts": artifacts,
            "parameters": {"Output": {"outputFile": str(folder / f"{step}-output")}},
            "outputFile": str(folder / f"{step}.json"),
        },
    }
    command = [sys.executable, "-m", "longrec.step", "kfp.dsl.executor_main"]
    options = ["--executor_input", json.dumps(value), "--function_to_execute", step]
    return subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ,
    )


def _finish(folder: Path, pipeline: str, told: str = "RUNNING") -> dict[str, Any]:
    """Run the step finish as a server of 2.17 does, and return the outcome."""
    status = {
        "error": {},
        "pipelineJobResourceName": "longrec-training-85ffv",
        "pipelineTaskName": "exit-handler-1",
        "state": told,
    }
    parameters = {
        "data_uri": "s3://logs/dataset",
        "job_id": RUN,
        "pipeline": pipeline,
        "run_id": "",
        "status": status,
        "webhook": "",
    }
    path = folder / "outcome"
    outputs = {"artifacts": {"outcome": ("system.Artifact", path)}}
    assert _start(folder, "finish", parameters, outputs).wait() == 0
    outcome: dict[str, Any] = json.loads(path.read_text())
    return outcome


def _attempts(workdir: Path) -> list[Attempt]:
    return read(workdir / "runs" / RUN / STEPS_FOLDER)


def _plan(folder: Path, study: str = STUDY) -> subprocess.Popen[bytes]:
    return _start(folder, "plan", {"study": study, "code_key": "", "max_items": 8}, {})


def test_finish_after_a_killed_step(workdir: Path, tmp_path: Path) -> None:
    process = _plan(tmp_path)
    while not _attempts(workdir):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = _finish(tmp_path, "longrec-study")
    started = _attempts(workdir)[0].started[11:16]
    assert (outcome["state"], outcome["step"]) == ("FAILED", "plan")
    assert outcome["error"] == f"started {started}, never ended"
    assert outcome["text"] == (
        f"longrec-study {RUN}: FAILED in plan (started {started}, never ended) "
        f"https://kubeflow/#/runs/details/{RUN}"
    )


def test_finish_after_a_failed_step(workdir: Path, tmp_path: Path) -> None:
    assert _plan(tmp_path, "name: [").wait() == 1
    outcome = _finish(tmp_path, "longrec-study", told="FAILED")
    assert (outcome["state"], outcome["step"]) == ("FAILED", "plan")
    assert "YAML" in outcome["error"]


def test_finish_after_a_refused_gate(workdir: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps({"gate": GATE}))
    names = {"pipeline": "longrec-training", "run_id": "", "data_uri": "d", "webhook": ""}
    outputs = {
        "inputs": {"evaluation": ("system.Artifact", evaluation)},
        "artifacts": {"outcome": ("system.Artifact", tmp_path / "refused")},
    }
    assert _start(tmp_path, "refuse", names, outputs).wait() == 0
    outcome = _finish(tmp_path, "longrec-training")
    assert outcome["state"] == "REFUSED"
    assert outcome["error"] == SENTENCE
    assert outcome["gate"]["missed"] == [MISSED]


def test_finish_after_a_cached_run_and_with_a_lost_work_directory(
    workdir: Path, tmp_path: Path
) -> None:
    """plan stands for the steps that are never cached; the last one of the study is collect."""
    assert _plan(tmp_path).wait() == 0
    assert _finish(tmp_path, "longrec-study")["error"].startswith("collect never started")
    (recorded,) = (workdir / "runs" / RUN / STEPS_FOLDER).glob("*-plan-*.json")
    text = recorded.read_text().replace('"step": "plan"', '"step": "collect"')
    recorded.with_name("0-collect.json").write_text(text)
    assert _finish(tmp_path, "longrec-study")["state"] == "SUCCEEDED"
    shutil.rmtree(workdir)
    lost = _finish(tmp_path, "longrec-study")
    assert lost["state"] == "UNKNOWN"
    assert "the work directory was lost" in lost["error"]
    assert not workdir.exists()
