"""The steps of a pipeline as its specification lists them: their order, and where they stand."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml

from longrec.runs.record.nodes import ON_EXIT

COMPILED_FOLDER = Path(__file__).resolve().parents[1] / "compiled"
PIPELINE_PREFIX = "longrec-"
AFTER_ALL = "ALL_UPSTREAM_TASKS_COMPLETED"
PARAMETER_CHANNEL = "pipelinechannel--"
Spec = Mapping[str, Any]
Tasks = Mapping[str, Mapping[str, Any]]
"""Tasks of one level of a graph by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of a pipeline.

    Args:
        step: its name.
        place: names of the exit handlers, conditions and loops around it, from the outside.
        loop_parameter: parameter of the pipeline with the items of its loop; empty for no loop, or
            for one over the result of a step.
    """

    step: str
    place: tuple[str, ...]
    loop_parameter: str = ""


def planned_steps(spec: Optional[Spec]) -> list[PlannedStep]:
    """Return the steps of a pipeline in the order of their dependencies; none for no graph.

    Args:
        spec: a compiled pipeline: the graph alone, or graph and platform.
    """
    graph = (spec or {}).get("pipeline_spec") or spec or {}
    root = graph.get("root", {})
    components = graph.get("components", {})
    return list(
        _steps(
            _tasks_in(root),
            components,
            ("root",),
            "",
        )
    )


@functools.cache
def compiled_steps(pipeline: str) -> tuple[PlannedStep, ...]:
    """Return the steps of a pipeline as this version compiles it; none for another pipeline."""
    name = pipeline.removeprefix(PIPELINE_PREFIX)
    path = COMPILED_FOLDER / f"{name}.yaml"
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8")
    spec, *_ = yaml.load_all(text, yaml.CSafeLoader)
    return tuple(planned_steps(spec))


def _steps(
    tasks: Tasks, components: Mapping[str, Any], place: tuple[str, ...], loop: str
) -> Iterator[PlannedStep]:
    """Yield the steps of one level of the graph, and of those below."""
    for name in _ordered(tasks):
        task = tasks[name]
        reference = task["componentRef"]["name"]
        component = components.get(reference, {})
        if "dag" in component:
            own_loop = _loop_parameter(task)
            below = _tasks_in(component)
            yield from _steps(
                below,
                components,
                (*place, name),
                own_loop or loop,
            )
        elif _is_last(task):
            handler = task["dependentTasks"][0] + ON_EXIT
            yield PlannedStep(name, (*place, handler))
        else:
            yield PlannedStep(
                name,
                place,
                loop,
            )


def _tasks_in(component: Mapping[str, Any]) -> Tasks:
    graph = component.get("dag", {})
    tasks: Tasks = graph.get("tasks", {})
    return tasks


def _is_last(task: Mapping[str, Any]) -> bool:
    """Return whether a task runs after all others, also after a failure."""
    policy = task.get("triggerPolicy", {})
    return bool(policy.get("strategy") == AFTER_ALL)


def _ordered(tasks: Tasks) -> Iterator[str]:
    """Yield the names of tasks, each after those that it depends on."""
    done: set[str] = set()
    waiting = list(tasks)
    while waiting:
        ready = [
            name
            for name in waiting
            if _is_ready(
                name,
                tasks,
                done,
            )
        ]
        next_names = ready or waiting
        yield from next_names
        done.update(next_names)
        waiting = [name for name in waiting if name not in done]


def _is_ready(name: str, tasks: Tasks, done: set[str]) -> bool:
    needed = tasks[name].get("dependentTasks", ())
    return all(other in done for other in needed if other in tasks)


def _loop_parameter(task: Mapping[str, Any]) -> str:
    iterator = task.get("parameterIterator", {})
    items = iterator.get("items", {})
    channel = str(items.get("inputParameter", ""))
    return channel.removeprefix(PARAMETER_CHANNEL)
