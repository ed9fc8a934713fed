"""The run of MLflow that belongs to a pipeline run: what training and evaluation found.

Nothing happens without MLflow's variable MLFLOW_TRACKING_URI (`longrec.release.mlflow_adapter`).
`longrec.step` logs the results of a step after its end, so a cached result is logged by the next
step that reads it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from longrec.release.catalog import MLFLOW, configured, reason_of
from longrec.runs.record.artifacts import artifact_paths
from longrec.runs.record.attempts import run_name

log = logging.getLogger(__name__)

TRACKED_STEPS = ("train", "train-job", "evaluate")
STATUSES = {
    "SUCCEEDED": "FINISHED",
    "REFUSED": "FINISHED",
    "FAILED": "FAILED",
    "CANCELLED": "KILLED",
}
"""State of a pipeline run -> status of MLflow's run."""


def is_tracked() -> bool:
    """Return whether MLflow's variable is set and this process belongs to a run."""
    return MLFLOW in configured() and bool(run_name())


@contextlib.contextmanager
def tracked(step: str, executor_input: Mapping[str, Any]) -> Iterator[None]:
    """Log bundle and evaluation of the step that the body executes; a failure is a warning.

    Args:
        step: name of the step.
        executor_input: its inputs and outputs as kfp passes them.
    """
    yield
    if step in TRACKED_STEPS and is_tracked():
        _without_errors(lambda: _log(artifact_paths(executor_input)))


def end_tracking(state: str) -> None:
    """Set the status of MLflow's run, if there is one.

    Args:
        state: of the pipeline run, as `longrec.runs.record.verdict` finds it.
    """
    if state in STATUSES and is_tracked():
        _without_errors(lambda: _end(STATUSES[state]))


def _log(paths: Mapping[str, Path]) -> None:
    from longrec.release.mlflow_adapter import MlflowRun

    run = MlflowRun.open(run_name())
    if "bundle" in paths:
        run.log_bundle(paths["bundle"])
    if "evaluation" in paths:
        run.log_evaluation(paths["evaluation"])


def _end(status: str) -> None:
    from longrec.release.mlflow_adapter import MlflowRun

    run = MlflowRun.find(run_name())
    if run is not None:
        run.finish(status)


def _without_errors(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # Another server never fails a run.
        log.warning("MLflow did not get the results of this step: %s", reason_of(error))
