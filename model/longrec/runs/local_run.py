"""A pipeline run on this machine: its steps, its artifacts, and its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

StepStatus = Literal["done", "cached", "failed"]


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedStep:
    """One finished step and its wall time in seconds."""

    name: str
    status: StepStatus
    seconds: float


class ProgressListener(Protocol):
    """Receives the progress of a run: a step begins, reports a detail, ends."""

    def begin(self, name: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def end(self, step: FinishedStep) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class LocalRun:
    """A finished pipeline run.

    Args:
        steps: executed and cached steps in the order of execution.
        skipped: conditions that were false.
        artifacts: folder with the artifacts of the executed steps.
        log: file with the output of all steps.
        cached: artifacts of the cached steps, by step and output name. They lie in the folders of
            earlier runs.
    """

    steps: tuple[FinishedStep, ...]
    skipped: tuple[str, ...]
    artifacts: Path
    log: Path
    cached: Mapping[tuple[str, str], Path] = dataclasses.field(default_factory=dict)

    def output(self, step: str, name: str) -> Path | None:
        """Return the path of an output artifact; None if the step did not write it."""
        return self.cached.get((step, name)) or find_output(self.artifacts, step, name)


def find_output(artifacts: Path, step: str, name: str) -> Path | None:
    """Return the path of an output below the artifacts of one run; None if there is none.

    Steps in conditions and loops lie one or two levels deeper.
    """
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(artifacts.glob(f"{depth}/{step}/{name}")):
            return path
    return None
