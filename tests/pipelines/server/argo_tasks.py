"""Tasks as a Kubeflow Pipelines server lists them, for steps in given states.

A task names the ids of the nodes below it; an id ends with the hash of the node's path. With
`has_default` the controller has a default for retries: each node is there twice, the second time
with the number of its attempt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pipelines.server.node_paths import fnv1a

WORKFLOW = "longrec-training-x7k2p"
START = "2026-01-01T00:00:10Z"
END = "2026-01-01T00:01:10Z"
NEVER = "1970-01-01T00:00:00Z"
INSIDE = ("root", "exit-handler-1")


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a run: `place` is what is around it, `attempts` the number of its attempts."""

    name: str
    state: str = "SUCCEEDED"
    place: tuple[str, ...] = INSIDE
    attempts: int = 1
    start: str = START
    end: str = END


def loop_steps(name: str, loop: str, states: Iterable[str]) -> list[Step]:
    """Return the steps of the items of a loop."""
    return [
        Step(
            name,
            state,
            (*INSIDE, loop, f"iteration-iterations({number}:{number})", "iteration-item"),
        )
        for number, state in enumerate(states)
    ]


def tasks_of(steps: Iterable[Step], *, has_default: bool = True) -> list[dict[str, Any]]:
    """Return the tasks of a run with these steps, which is still running."""
    made = _Tasks(has_default)
    for step in steps:
        made.add_step(step)
    return made.tasks()


def executor_paths(step: Step, *, has_default: bool = True) -> list[str]:
    """Return the paths of the attempts of a step's executor."""
    made = _Tasks(has_default)
    executor = made.path((*step.place, step.name)) + ".executor"
    return [f"{executor}({number})" for number in range(step.attempts)]


def pod_of(path: str) -> str:
    """Return the name of the pod of an executor's attempt."""
    return f"{WORKFLOW}-retry-system-container-impl-{fnv1a(path)}"


class _Tasks:
    def __init__(self, has_default: bool) -> None:
        self._ending = "(0)" if has_default else ""
        self._facts = {WORKFLOW: {"state": "RUNNING", "start_time": START}}
        self._children: dict[str, list[str]] = {}

    def path(self, names: tuple[str, ...]) -> str:
        return ".".join(f"{name}{self._ending}" for name in (WORKFLOW, *names))

    def add_step(self, step: Step) -> None:
        for depth in range(1, len(step.place) + 1):
            self._add(step.place[:depth], {"state": "RUNNING", "start_time": START})
        times = {"start_time": step.start, "end_time": step.end}
        state = "SUCCEEDED" if step.state == "CACHED" else step.state
        self._add((*step.place, f"{step.name}-driver"), {"state": "SUCCEEDED", **times})
        self._add((*step.place, step.name), {"state": state, **times})
        executor = self.path((*step.place, step.name)) + ".executor"
        is_cached = step.state == "CACHED"
        own = "SKIPPED" if is_cached else step.state
        self._put(executor, self.path((*step.place, step.name)), {"state": own, **times})
        for number in range(0 if is_cached else step.attempts):
            self._put(f"{executor}({number})", executor, {"state": step.state, **times})

    def tasks(self) -> list[dict[str, Any]]:
        return [
            {
                "display_name": path.rpartition(".")[2],
                **facts,
                "child_tasks": [
                    {"pod_name": f"{WORKFLOW}-{fnv1a(child)}"}
                    for child in self._children.get(path, ())
                ],
            }
            for path, facts in self._facts.items()
        ]

    def _add(self, names: tuple[str, ...], facts: dict[str, Any]) -> None:
        """Add a node; with a default for retries, its attempt too."""
        above = self.path(names[:-1])
        path = f"{above}.{names[-1]}"
        if self._ending:
            self._put(self.path(()), WORKFLOW, {"state": "RUNNING", "start_time": START})
        self._put(path, above, facts)
        if self._ending:
            self._put(f"{path}{self._ending}", path, facts)

    def _put(self, path: str, above: str, facts: dict[str, Any]) -> None:
        if path not in self._facts:
            self._facts[path] = {"end_time": NEVER, **facts}
            self._children.setdefault(above, []).append(path)
