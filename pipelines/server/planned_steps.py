"""The steps of a pipeline as its specification lists them: their order, and where they stand."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml

from longrec.runs.record.nodes import ON_EXIT

COMPILED_FOLDER = Path(__file__).resolve().parents[1] / "compiled"
PIPELINE_PREFIX = "longrec-"
AFTER_ALL = "ALL_UPSTREAM_TASKS_COMPLETED"
PARAMETER_CHANNEL = "pipelinechannel--"
Spec = Mapping[str, Any]


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
    tasks = graph.get("root", {}).get("dag", {}).get("tasks", {})
    return list(_steps(tasks, graph.get("components", {}), ("root",), ""))


@functools.cache
def compiled_steps(pipeline: str) -> tuple[PlannedStep, ...]:
    """Return the steps of a pipeline as this version compiles it; none for another pipeline."""
    path = COMPILED_FOLDER / f"{pipeline.removeprefix(PIPELINE_PREFIX)}.yaml"
    if not path.is_file():
        return ()
    spec, *_ = yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return tuple(planned_steps(spec))


def _steps(
    tasks: Mapping[str, Any], components: Mapping[str, Any], place: tuple[str, ...], loop: str
) -> Iterator[PlannedStep]:
    for name in _ordered(tasks):
        task = tasks[name]
        component = components.get(task["componentRef"]["name"], {})
        inner = component.get("dag", {}).get("tasks")
        if inner is not None:
            yield from _steps(inner, components, (*place, name), _loop_parameter(task) or loop)
        elif task.get("triggerPolicy", {}).get("strategy") == AFTER_ALL:
            handler = task["dependentTasks"][0] + ON_EXIT
            yield PlannedStep(name, (*place, handler))
        else:
            yield PlannedStep(name, place, loop)


def _ordered(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of tasks, each after those that it depends on."""
    done: set[str] = set()
    waiting = list(tasks)
    while waiting:
        ready = [name for name in waiting if done.issuperset(_needed(tasks[name], tasks))]
        yield from ready or waiting
        done.update(ready or waiting)
        waiting = [name for name in waiting if name not in done]


def _needed(task: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterable[str]:
    return [name for name in task.get("dependentTasks", ()) if name in tasks]


def _loop_parameter(task: Mapping[str, Any]) -> str:
    items = task.get("parameterIterator", {}).get("items", {})
    return str(items.get("inputParameter", "")).removeprefix(PARAMETER_CHANNEL)
