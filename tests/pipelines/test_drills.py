"""Failure drills: each step of the training pipeline is killed while it works, and retried."""

from __future__ import annotations

import contextlib
import itertools
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
    """Kills each step once, after a share of the CPU seconds that it takes undisturbed.

    The name of its function identifies the processes of a step, so all its shards that run at that
    moment are killed together. Seconds are counted per shard, because shards overlap in one run
    and follow each other in the next.

    Args:
        seconds: CPU seconds of the quickest shard of each step, undisturbed; None kills nothing.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self._limits = seconds or {}
        self._shards: dict[str, dict[int, float]] = {}
        self._killed: set[str] = set()
        self._running: dict[str, tuple[int, threading.Event, threading.Thread]] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds of the quickest shard of each step."""
        return {name: min(shards.values()) for name, shards in self._shards.items()}

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
        shards = self._shards.setdefault(name, {})
        limit = MOMENT * self._limits.get(name, math.inf)
        while not over.wait(0.02):
            families = _families(name)
            for family in families:
                shards[family[0].pid] = max(shards.get(family[0].pid, 0), _cpu_seconds(family))
            if name not in self._killed and max(shards.values(), default=0) >= limit:
                self._killed.add(name)
                for process in itertools.chain.from_iterable(families):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


def _families(name: str) -> list[list[psutil.Process]]:
    """Return each process that executes a step's function, followed by those it started."""
    found = list[list[psutil.Process]]()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[-2:] == ["--function_to_execute", name.replace("-", "_")]:
                found.append([process, *process.children(recursive=True)])
    return found


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


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

    histories = path("retrieve", "histories")
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
