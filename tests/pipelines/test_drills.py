"""Failure drills: each step of the training pipeline is killed while it works, and retried."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from longrec.config import RunConfig
from longrec.config_file import build
from longrec.data.files import read_json, sha256_of
from longrec.data.importers.synthetic import synthesize
from longrec.runs.local_run import FinishedStep, LocalRun
from longrec.runs.run import pipeline_arguments
from pipelines import compiler
from pipelines.local_runner import run
from pipelines.platform_config import PlatformConfig
from tests.pipelines.test_end_to_end import CONFIG

ROOT = Path(__file__).parents[2]
RETRYING = PlatformConfig(
    workdir_volume="", steps={"all": {"retries": 3, "backoff_seconds": 0, "timeout_seconds": 0}}
)
MOMENT = 0.4
"""Share of a step's undisturbed CPU time after which it is killed: unlike a moment of the clock, it
comes on a busy machine too.
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Killer:
    """Kills each step once, after a share of its CPU seconds in an undisturbed run.

    Steps of two shards run at the same time. The name of their function identifies the processes,
    so both are killed together.

    Args:
        seconds: CPU seconds of each step in an undisturbed run; None kills nothing.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._limits = seconds or {}
        self._killed: set[str] = set()
        self._running: dict[str, tuple[int, threading.Event, threading.Thread]] = {}
        self._lock = threading.Lock()

    def begin(self, name: str) -> None:
        with self._lock:
            count, over, watch = self._running.get(name) or (
                0,
                threading.Event(),
                threading.Thread(),
            )
            if not count:
                watch = threading.Thread(target=self._follow, args=(name, over), daemon=True)
                watch.start()
            self._running[name] = count + 1, over, watch

    def detail(self, text: str) -> None:
        pass

    def end(self, step: FinishedStep) -> None:
        with self._lock:
            count, over, watch = self._running[step.name]
            self._running[step.name] = count - 1, over, watch
            if count == 1:
                del self._running[step.name]
                over.set()
        if count == 1:
            watch.join()

    def _follow(self, name: str, over: threading.Event) -> None:
        taken = dict[psutil.Process, float]()
        while not over.wait(0.02):
            family = _family(name)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    taken[process] = times.user + times.system
            self.seconds[name] = sum(taken.values())
            if name not in self._killed and self.seconds[name] >= MOMENT * self._limits.get(
                name, math.inf
            ):
                self._killed.add(name)
                for process in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


def _family(name: str) -> set[psutil.Process]:
    """Return the processes that execute a step's function, and all that they started."""
    found = set[psutil.Process]()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[-2:] == ["--function_to_execute", name.replace("-", "_")]:
                found |= {process, *process.children(recursive=True)}
    return found


def _run(folder: Path, dataset: Path, killer: Killer, monkeypatch: pytest.MonkeyPatch) -> LocalRun:
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    monkeypatch.setenv("LONGREC_HOME", str(folder / "workdir"))
    config = build(RunConfig, {**CONFIG, "data": {**CONFIG["data"], "shards": 2}})
    arguments = pipeline_arguments(
        config,
        str(dataset),
        run_id="drill",
        workdir=str(folder / "workdir"),
        repo_dir=str(ROOT / "feature_repo"),
    )
    return run(compiler.pipeline("training", RETRYING), arguments, folder / "run", killer)


def _results(done: LocalRun) -> dict[str, Any]:
    """Return results that must not depend on a kill: data, weights, metrics, the bento's name."""

    def path(step: str, name: str) -> Path:
        found = done.output(step, name)
        assert found is not None, (step, name)
        return found

    histories = path("join-histories", "histories")
    features = path("join-features", "features")
    metrics = path("evaluate", "evaluation")
    return {
        "features": read_json(features / "manifest.json"),
        "histories": {
            each.name: sha256_of(each)
            for each in histories.iterdir()
            if each.name != "manifest.json"
        },
        "bundle": read_json(path("train", "bundle") / "bundle.json")["version"],
        "metrics": {
            key: read_json(metrics / "metrics.json")[key]
            for key in ("metrics", "popularity", "gain", "best_possible", "num_requests")
        },
        "tag": read_json(path("package", "packaged"))["tag"],
        "outcome": read_json(path("finish", "outcome"))["state"],
        "reports": [
            "<html" in path(step, "report").read_text()
            for step in ("check-events", "check-histories", "evaluate")
        ],
    }


def test_every_step_killed_and_retried_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize(tmp_path / "dataset", num_users=60, events_per_user=64, seed=3, rows_per_part=800)
    watch = Killer()
    clean = _run(tmp_path / "clean", tmp_path / "dataset", watch, monkeypatch)
    drilled = _run(tmp_path / "drilled", tmp_path / "dataset", Killer(watch.seconds), monkeypatch)
    assert json.loads(json.dumps(_results(drilled))) == json.loads(json.dumps(_results(clean)))
    failed = [step.name for step in drilled.steps if step.status == "failed"]
    assert set(failed) == {step.name for step in clean.steps}, "every step was killed at least once"
    assert {step.name for step in drilled.steps if step.status == "done"} == set(failed)
    versions = [
        path
        for path in (tmp_path / "drilled" / "workdir" / "store").iterdir()
        if path.is_dir() and not path.is_symlink()
    ]
    assert len(versions) <= 2, "no half version is left in the store"
    assert len(list((tmp_path / "drilled" / "bentoml" / "bentos").rglob("bento.yaml"))) == 1
