"""The tasks of servers without a metadata store: they have types, parents and pods.

Source: kubeflow/pipelines, proposal 12147 (removal of ML Metadata).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from longrec.runs.record.nodes import CACHED, FAILED, STATES, StepItem
from pipelines.server.node_paths import time_of

STEP = "RUNTIME"
ITERATION = "LOOP_ITERATION"
DRIVER_POD = "DRIVER"
NO_WORKFLOW = ""
"""First frame: these tasks do not name their workflow."""
Task = Mapping[str, Any]


def is_typed(tasks: Sequence[Task]) -> bool:
    """Return whether a server has no metadata store: its tasks have types."""
    return any(task.get("type") for task in tasks)


def typed_items(tasks: Sequence[Task]) -> list[StepItem]:
    """Return the steps among typed tasks, one entry for each item of a loop."""
    by_id = {task.get("task_id"): task for task in tasks}
    return [_item(task, by_id) for task in tasks if task.get("type") == STEP]


def _item(task: Task, by_id: Mapping[Any, Task]) -> StepItem:
    state = state_of(task)
    executors = _pods(task, is_driver=False)
    return StepItem(
        step=_name(task),
        frames=_frames(task, by_id),
        state=state,
        started=time_of(task.get("start_time")),
        ended=time_of(task.get("end_time")),
        message=_message(task),
        attempts=executors,
        drivers=_pods(task, is_driver=True),
        is_started=bool(executors) or state not in (FAILED, CACHED),
    )


def state_of(task: Task) -> str:
    """Return the state of a typed task."""
    told = task.get("state") or task.get("status") or ""
    state = str(told).upper()
    return STATES.get(state, state)


def _frames(task: Task, by_id: Mapping[Any, Task]) -> tuple[str, ...]:
    """Return the names of the tasks around a task, from the outside."""
    frames: list[str] = []
    seen = {task.get("task_id")}
    parent = _parent(task, by_id)
    while parent is not None and parent.get("task_id") not in seen:
        seen.add(parent.get("task_id"))
        frames.insert(0, _frame(parent))
        parent = _parent(parent, by_id)
    return (NO_WORKFLOW, *frames)


def _parent(task: Task, by_id: Mapping[Any, Task]) -> Optional[Task]:
    parent_id = task.get("parent_task_id")
    return by_id.get(parent_id)


def _frame(task: Task) -> str:
    if task.get("type") != ITERATION:
        return _name(task)
    attributes = task.get("type_attributes") or {}
    index = attributes.get("iteration_index") or 0
    return f"iteration({index})"


def _name(task: Task) -> str:
    name = task.get("name") or task.get("display_name")
    return str(name or "")


def _message(task: Task) -> str:
    error = task.get("error") or {}
    metadata = task.get("status_metadata") or {}
    message = error.get("message") or metadata.get("message")
    return str(message or "")


def _pods(task: Task, *, is_driver: bool) -> tuple[str, ...]:
    found = []
    for pod in task.get("pods") or ():
        kind = str(pod.get("type"))
        if (kind == DRIVER_POD) == is_driver:
            found.append(str(pod["name"]))
    return tuple(found)
