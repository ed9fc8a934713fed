"""Failure drills: every step of the training pipeline is killed while it works; retried, it ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from longrec.config import PlatformConfig, RunConfig, build
from longrec.data.files import read_json, sha256_of
from longrec.data.synth import synthesize
from longrec.run import pipeline_arguments
from pipelines import compiling
from pipelines.local import LocalRun, Step, run
from tests.pipelines.test_end_to_end import CONFIG

ROOT = Path(__file__).parents[2]
RETRYING = PlatformConfig(home_volume="", steps={"all": {"retries": 3, "backoff_seconds": 0, "timeout_seconds": 0}})
MOMENTS = (0.4,)
"""Shares of a step's undisturbed time at which it is killed."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Killer:
    """Kills each step with all that it started, at moments of its undisturbed time; without such times it only watches."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds, self.kills = seconds or {}, dict[str, int]()
        self._starts, self._timer = dict[str, int](), threading.Timer(0, lambda: None)

    def begin(self, name: str) -> None:
        count = self._starts[name] = self._starts.get(name, 0) + 1
        if self.seconds.get(name) and count <= len(MOMENTS):
            self._timer = threading.Timer(self.seconds[name] * MOMENTS[count - 1], self._kill, (name,))
            self._timer.start()

    def detail(self, text: str) -> None:
        pass

    def end(self, step: Step) -> None:
        self._timer.cancel()

    def _kill(self, name: str) -> None:
        pids = _descendants(os.getpid())
        if not pids:
            return
        self.kills[name] = self.kills.get(name, 0) + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, waiting = list[int](), [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found, waiting = found + new, waiting + new
    return found


def _run(folder: Path, dataset: Path, killer: Killer, monkeypatch: pytest.MonkeyPatch) -> LocalRun:
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    monkeypatch.setenv("LONGREC_HOME", str(folder / "home"))
    config = build(RunConfig, CONFIG)
    arguments = pipeline_arguments(config, str(dataset), run_id="drill", home=str(folder / "home"), repo_dir=str(ROOT / "feature_repo"))
    return run(compiling.pipeline("training", RETRYING), arguments, folder / "run", killer)


def _results(done: LocalRun) -> dict[str, Any]:
    """Returns what must not depend on a kill: bytes of features and histories, the weights, what was measured, the bento's name."""

    def path(step: str, name: str) -> Path:
        found = done.output(step, name)
        assert found is not None, (step, name)
        return found

    histories, features, metrics = path("retrieve", "histories"), path("build-features", "features"), path("evaluate", "evaluation")
    return {
        "features": read_json(features / "manifest.json"),
        "histories": {each.name: sha256_of(each) for each in histories.iterdir() if each.name != "manifest.json"},
        "bundle": read_json(path("train", "bundle") / "bundle.json")["version"],
        "metrics": {key: read_json(metrics / "metrics.json")[key] for key in ("metrics", "popularity", "gain", "bayes", "num_requests")},
        "tag": read_json(path("package", "packaged"))["tag"], "outcome": read_json(path("finish", "outcome"))["state"],
        "reports": ["<html" in path(step, "report").read_text() for step in ("check-events", "check-histories", "evaluate")]}


def test_every_step_killed_and_retried_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "dataset", num_users=60, events_per_user=64, seed=3)
    clean = _run(tmp_path / "clean", tmp_path / "dataset", Killer(), monkeypatch)
    killer = Killer({step.name: step.seconds for step in clean.steps})
    drilled = _run(tmp_path / "drilled", tmp_path / "dataset", killer, monkeypatch)
    assert json.loads(json.dumps(_results(drilled))) == json.loads(json.dumps(_results(clean)))
    failed = [step.name for step in drilled.steps if step.status == "failed"]
    assert set(failed) == {step.name for step in clean.steps}, "every step was killed at least once"
    assert {step.name for step in drilled.steps if step.status == "done"} == set(failed)
    versions = [path for path in (tmp_path / "drilled" / "home" / "store").iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(versions) <= 2, "no half version is left in the store"
    assert len(list((tmp_path / "drilled" / "bentoml" / "bentos").rglob("bento.yaml"))) == 1
