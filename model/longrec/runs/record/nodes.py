"""The nodes of an Argo workflow, folded to the steps of the pipeline as a user knows them.

Kubeflow compiles a step to several nodes: a driver, the step, its executor, and below each of them
one node per attempt. Loops, conditions and exit handlers are nodes too. The name of a node is the
path from the workflow to it, for example

    longrec-training-vss94(0).root(0).exit-handler-1(0).train(0).executor(1)

Here (0) and (1) number attempts. A controller without a default for retries makes fewer of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence

WAITING = "WAITING"
RUNNING = "RUNNING"
SUCCEEDED = "SUCCEEDED"
CACHED = "CACHED"
SKIPPED = "SKIPPED"
FAILED = "FAILED"
DONE = (SUCCEEDED, CACHED)
"""States of a step whose results are there."""
STATES = {
    "ERROR": FAILED,
    "CANCELED": FAILED,
    "PENDING": RUNNING,
    "OMITTED": WAITING,
    "": WAITING,
}
"""State of a node, in capitals, where it differs from that of its step."""
DRIVER = "-driver"
EXECUTOR = "executor"
ON_EXIT = ".onExit"
ATTEMPT = re.compile(r"\((\d+)\)$")
ITEM = "iteration"
"""Begins the names of the nodes around one item of a loop."""
FRAME = re.compile(
    r"root|iteration|iteration-item|iteration-iterations(\(\d+:\d+\))?|iteration\(\d+\)|"
    r"(exit-handler|condition|condition-branches|for-loop)-\d+(\.onExit)?"
)
"""Names of nodes that hold steps and are none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow.

    Args:
        path: its name: the path to it.
        state: Pending, Running, Succeeded, Skipped, Failed, Error or Omitted, in any case of
            letters; empty if it is unknown.
        started, ended: None if unknown.
        message: its error.
    """

    path: str
    state: str
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class StepItem:
    """A step, or a step of one item of a loop.

    Args:
        step: name of the step.
        frames: names of the nodes around it, from the outside.
        state: WAITING, RUNNING, SUCCEEDED, CACHED, SKIPPED or FAILED.
        started, ended: None if it has not.
        message: its error, if the workflow knows it.
        attempts: nodes of the attempts of its executor, in order.
        drivers: the same of its driver, which starts the executor.
        is_started: whether the executor began; false for the failure of a driver.
    """

    step: str
    frames: tuple[str, ...]
    state: str
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    message: str = ""
    attempts: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    is_started: bool = True

    @property
    def place(self) -> tuple[str, ...]:
        """The frames without the workflow and the items of loops: equal for all items."""
        return tuple(frame for frame in self.frames[1:] if not frame.startswith(ITEM))


class _Group:
    """The nodes with one name apart from the numbers of attempts."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    @property
    def head(self) -> Node | None:
        """The node that stands for all attempts, of the newest attempt of the frames around it."""
        return min(
            self.nodes,
            key=_rank,
            default=None,
        )

    @property
    def state(self) -> str:
        state = self.head.state.upper() if self.head else ""
        return STATES.get(state, state)

    @property
    def attempts(self) -> tuple[str, ...]:
        """Paths of the attempts, or of the node itself if it has none."""
        numbered = [node.path for node in self.nodes if ATTEMPT.search(node.path)]
        if numbered:
            return tuple(sorted(numbered, key=_numbers))
        return tuple(node.path for node in self.nodes)


def step_items(nodes: Iterable[Node]) -> list[StepItem]:
    """Return the steps of a workflow, one entry for each item of a loop."""
    groups: dict[tuple[str, ...], _Group] = {}
    for node in nodes:
        groups.setdefault(names_on(node.path), _Group()).nodes.append(node)
    items = []
    for names in groups:
        step = _step_at(names)
        if step:
            items.append(
                _item(
                    step,
                    names[:-1],
                    groups,
                )
            )
    return list({(item.step, item.frames): item for item in items}.values())


def names_on(path: str) -> tuple[str, ...]:
    """Return the names on the path of a node, without the numbers of attempts."""
    parts = path.replace(ON_EXIT, "\0").split(".")
    return tuple(ATTEMPT.sub("", part.replace("\0", ON_EXIT)) for part in parts)


def _step_at(names: tuple[str, ...]) -> str:
    """Return the step that a node belongs to as its own node or its driver; else nothing."""
    name = names[-1].removesuffix(DRIVER)
    if len(names) < 3 or name == EXECUTOR or FRAME.fullmatch(name):
        return ""
    return name


def _item(step: str, frames: tuple[str, ...], groups: Mapping[tuple[str, ...], _Group]) -> StepItem:
    own = groups.get((*frames, step), _Group())
    driver = groups.get((*frames, step + DRIVER), _Group())
    executor = groups.get((*frames, step, EXECUTOR), _Group())
    state = _state(
        own.state,
        driver.state,
        executor.state,
    )
    head = own.head if own.state != WAITING else driver.head
    failed = [group.head for group in (executor, own, driver) if group.state == FAILED]
    messages = [node.message for node in failed if node and node.message]
    return StepItem(
        step,
        frames,
        state,
        started=head.started if head and state not in (WAITING, SKIPPED) else None,
        ended=head.ended if head and state in (*DONE, FAILED) else None,
        message=messages[0] if messages else "",
        attempts=executor.attempts,
        drivers=driver.attempts,
        is_started=driver.state != FAILED,
    )


def _state(own: str, driver: str, executor: str) -> str:
    """Return the state of a step from those of its nodes."""
    if own == FAILED or driver == FAILED:
        return FAILED
    if own == SUCCEEDED and executor == SKIPPED:
        return CACHED
    if own == WAITING and driver != WAITING:
        return RUNNING
    return own


def _rank(node: Node) -> tuple[int, list[int]]:
    """Sort key of the nodes of a group: fewest numbers first, then the highest ones."""
    numbers = _numbers(node.path)
    return bool(ATTEMPT.search(node.path)), [-number for number in numbers]


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\((\d+)\)(?=\.|$)", path)]


def failed_frames(nodes: Sequence[Node]) -> list[StepItem]:
    """Return the drivers of loops, conditions and exit handlers that failed."""
    failed = []
    for node in nodes:
        *frames, name = names_on(node.path)
        is_frame = name.endswith(DRIVER) and FRAME.fullmatch(name.removesuffix(DRIVER))
        is_head = not ATTEMPT.search(node.path) or f"{name}(0)" not in node.path
        if is_frame and is_head and STATES.get(node.state.upper(), node.state.upper()) == FAILED:
            failed.append(
                StepItem(
                    name,
                    tuple(frames),
                    FAILED,
                    node.started,
                    node.ended,
                    node.message,
                    drivers=(node.path,),
                    is_started=False,
                )
            )
    return failed
