"""The status of a run on a Kubeflow Pipelines server."""

import dataclasses
from typing import Any, Optional

SUCCEEDED = "SUCCEEDED"
ENDED = (SUCCEEDED, "FAILED", "CANCELED", "SKIPPED")
PENDING = "PENDING"
LAST = "~"
"""Sort key of a task that has not started."""


@dataclasses.dataclass(frozen=True, slots=True)
class TaskStatus:
    """The status of one step of a run; `seconds` is None until it ends."""

    name: str
    state: str
    seconds: Optional[float]
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run; `tasks` in the order of their start."""

    run_id: str
    name: str
    state: str
    created: str
    error: str
    tasks: tuple[TaskStatus, ...]
    url: str


def read_run(run: Any, url: str) -> RunStatus:
    """Return the status in a run of the server's API."""
    steps = [task for task in tasks_of(run) if is_step(task)]
    steps.sort(key=lambda task: (str(task.start_time or LAST), task.display_name))
    return RunStatus(
        run_id=run.run_id,
        name=run.display_name or "",
        state=str(run.state or PENDING),
        created=str(run.created_at or ""),
        error=_message(run.error),
        tasks=tuple(_read_task(task) for task in steps),
        url=url,
    )


def tasks_of(run: Any) -> list[Any]:
    """Return all tasks of a run of the server's API, drivers and executors included."""
    if run.run_details is None:
        return []
    return run.run_details.task_details or []


def is_step(task: Any) -> bool:
    """Return whether a task is a step of the pipeline, and no driver or executor of one."""
    name = task.display_name or ""
    if name in ("", "root") or name.startswith("executor"):
        return False
    return not name.endswith("-driver")


def _read_task(task: Any) -> TaskStatus:
    start = task.start_time
    end = task.end_time
    seconds = (end - start).total_seconds() if start and end and end > start else None
    return TaskStatus(task.display_name, str(task.state or PENDING), seconds, _message(task.error))


def _message(error: Any) -> str:
    return str(error.message or "") if error else ""
