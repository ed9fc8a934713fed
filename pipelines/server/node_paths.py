"""The nodes of a run's workflow, recovered from the tasks that a server lists.

A task has the name of its node and the ids of the nodes below it, but not its own id, and nothing
tells apart the executors of two steps. The id of a node ends with a hash of its path, so that paths
can be tried: a path is right if a task names its id.
"""

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from longrec.runs.record.nodes import ATTEMPT, DRIVER, EXECUTOR, ON_EXIT, Node

FNV_OFFSET = 2_166_136_261
FNV_PRIME = 16_777_619
MAX_ATTEMPTS = 10
"""Kubernetes numbers attempts from 0; a step has fewer than this by its settings."""
NEVER = "1970-01-01T00:00:00Z"
"""How a server says that something has not ended."""

Task = Mapping[str, Any]


def fnv1a(text: str, digest: int = FNV_OFFSET) -> int:
    """Return the 32-bit FNV-1a hash of a text, or of the text behind `digest` and this text."""
    for byte in text.encode():
        digest = (digest ^ byte) * FNV_PRIME % 2**32
    return digest


def workflow_of(tasks: Iterable[Task]) -> str:
    """Return the name of the workflow; empty if no task names a node."""
    for task in tasks:
        for child in child_nodes(task):
            return child.rpartition("-")[0]
    return ""


def nodes_of(tasks: Sequence[Task]) -> list[Node]:
    """Return the nodes of the workflow with the states that the server knows."""
    named = [task for task in tasks if task.get("display_name")]
    paths = _paths(named)
    matched = _matched(named, paths)
    return [_node(path, matched.get(path)) for path in paths]


def child_nodes(task: Task) -> list[str]:
    """Return the ids of the nodes that a task names."""
    children = task.get("child_tasks") or ()
    return [child["pod_name"] for child in children if child.get("pod_name")]


def time_of(text: Optional[str]) -> Optional[datetime.datetime]:
    """Return a time of the server's API; None for none."""
    if not text or text == NEVER or text.startswith("0001-"):
        return None
    return datetime.datetime.fromisoformat(text)


def _paths(tasks: Sequence[Task]) -> list[str]:
    """Return the paths of all nodes that tasks name, from the outside to the inside."""
    digests = _named_digests(tasks)
    names = {ATTEMPT.sub("", task["display_name"]) for task in tasks}
    names.add(EXECUTOR)
    below = [f".{name}" for name in sorted(names)]
    attempts = [f"({number})" for number in range(MAX_ATTEMPTS)]
    paths = [workflow_of(tasks)]
    for path in paths:  # It grows inside the loop.
        digest = fnv1a(path)
        endings = below if ATTEMPT.search(path) else [*attempts, *below]
        for ending in endings:
            if fnv1a(ending, digest) in digests:
                paths.append(path + ending)
    return list(dict.fromkeys(paths))


def _named_digests(tasks: Iterable[Task]) -> set[int]:
    digests: set[int] = set()
    for task in tasks:
        digests.update(_digest(child) for child in child_nodes(task))
    return digests


def _matched(tasks: Sequence[Task], paths: Sequence[str]) -> dict[str, Task]:
    """Return the task of each path that has one.

    A task that names a node below or beside its own is certain, and so is a name that occurs once.
    The others, such as skipped executors, are found by the start of the node around them.
    """
    by_digest = {fnv1a(path): path for path in paths}
    matched: dict[str, Task] = {}
    others = []
    for task in tasks:
        owner = _owner(task, by_digest)
        if owner and owner not in matched:
            matched[owner] = task
        else:
            others.append(task)
    for task in others:
        path = _path_by_start(task, paths, matched)
        if path:
            matched[path] = task
    return matched


def _path_by_start(task: Task, paths: Sequence[str], matched: Mapping[str, Task]) -> str:
    """Return the free path with a task's name around which a node began at the same time."""
    name = task["display_name"]
    free = [path for path in paths if path not in matched and _own_name(path) == name]
    if len(free) == 1:
        return free[0]
    for path in free:
        around = matched.get(_parent(path), {})
        if around.get("start_time") == task.get("start_time"):
            return path
    return ""


def _owner(task: Task, by_digest: Mapping[int, str]) -> str:
    """Return the path of a task by the nodes that it names; empty if they do not tell."""
    name = task["display_name"]
    known = set(by_digest.values())
    for child in child_nodes(task):
        path = by_digest.get(_digest(child), "")
        for candidate in _owners(path, name):
            is_other = candidate in known and candidate != path
            if is_other and _own_name(candidate) == name:
                return candidate
    return ""


def _owners(path: str, name: str) -> Iterator[str]:
    """Yield the paths of a name that may name the node of `path` as the next one."""
    parent = _parent(path)
    yield ATTEMPT.sub("", path)
    yield parent
    is_driver = ATTEMPT.sub("", name).endswith(DRIVER)
    is_loop = _own_name(path).startswith(f"{name}(")
    if is_driver or is_loop:
        yield f"{parent}.{name}"


def _node(path: str, task: Optional[Task]) -> Node:
    if task is None:
        return Node(path, "")
    error = task.get("error") or {}
    return Node(
        path,
        str(task.get("state") or ""),
        started=time_of(task.get("start_time")),
        ended=time_of(task.get("end_time")),
        message=str(error.get("message") or ""),
    )


def _digest(node_id: str) -> int:
    digits = node_id.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _parts(path: str) -> list[str]:
    parts = path.replace(ON_EXIT, "\0").split(".")
    return [part.replace("\0", ON_EXIT) for part in parts]


def _own_name(path: str) -> str:
    return _parts(path)[-1]


def _parent(path: str) -> str:
    return ".".join(_parts(path)[:-1])
