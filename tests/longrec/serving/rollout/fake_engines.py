"""Fake engines, a worker that serves them, and decisions without a model store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longrec.errors import DataError
from longrec.release import registry
from longrec.serving.rollout.model_manager import ModelManager


@dataclasses.dataclass(eq=False)
class FakeEngine:
    """Version a repeats the numbers of a request; every other version negates them."""

    version: str
    is_closed: bool = False

    def score(self, numbers: list[float]) -> list[np.ndarray]:
        assert not self.is_closed, "an engine is used after it was closed"
        sign = 1 if self.version == "a" else -1
        return [np.array(numbers) * sign]

    def close(self) -> None:
        self.is_closed = True


class FakeRollout:
    """A work directory, and the engines that its workers loaded and activated."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.engines = []
        self.activated = []
        self.broken = {"broken"}

    @property
    def num_open_engines(self) -> int:
        return sum(not engine.is_closed for engine in self.engines)

    def load(self, version: str) -> FakeEngine:
        if version in self.broken:
            raise DataError(f"{version} is damaged")
        if version == "surprise":
            raise RuntimeError("no memory")
        self.engines.append(FakeEngine(version))
        return self.engines[-1]

    def start_worker(self, **options: object) -> ModelManager[FakeEngine]:
        """Return the manager of a worker with the own version a."""
        return ModelManager(
            self.workdir,
            "a",
            self.load,
            score=FakeEngine.score,
            close=FakeEngine.close,
            activate=self.activated.append,
            **options,
        )


def decide(workdir: Path, **changes: object) -> None:
    """Write the registry without looking at a model store."""
    with registry._locked_registry(workdir) as before:
        registry._record(
            workdir,
            before,
            dataclasses.replace(before, **changes),
            action="promote",
            version=None,
            replaced=None,
            by="test",
            why="test",
        )


def eventually(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)
