"""The logs of a step's pods on a Kubeflow Pipelines server.

A server lists nodes of the Argo workflow, and pods have other names. A server that has no log of a
pod answers 200 and an error as JSON. No loop here goes on without anything new from the server.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Optional

from longrec.runs.record.nodes import DRIVER, EXECUTOR, FAILED, StepItem, names_on
from pipelines.server.node_paths import fnv1a

ADDRESSES = (
    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
    "/apis/v2beta1/runs/{run}/nodes/{pod}/log",
    "/k8s/pod/logs?podname={pod}&runid={run}&podnamespace={namespace}&createdat={day}",
)
"""Addresses of a pod's log: of API server 2.14, of its successors after 2.17, and of the UI.

The UI forwards neither of the first two.
"""
CONTAINER_TEMPLATES = ("retry-system-container-impl", "system-container-impl")
"""Templates of a step's own container in the workflows of Kubeflow's compiler."""
DRIVER_TEMPLATES = ("system-container-driver", "system-dag-driver")
DRIVER_ERROR = re.compile(r"^[FE]\d{4} \S+ +\d+ \S+\] (?P<text>.+)")
"""An error line of Kubeflow's own programs, which log in the format of klog."""
DRIVER_CALL = re.compile(r"^KFP driver: .*?\) failed: ")
"""Repeats the arguments of the driver before its error."""
ERROR_KEYS = {"error_message", "error_details"}
LOOP = "for-loop-"
FIRST = "(0)"
"""Number of the first attempt."""
Place = tuple[tuple[str, ...], int]
"""Names around a step, and the number of items of its loop."""


@dataclasses.dataclass(frozen=True, slots=True)
class PodLog:
    """What a server answers for the log of a pod.

    Args:
        text: the log; empty if there is none.
        reason: why there is none, if the server says so.
        is_cut: whether the server stopped sending in the middle.
    """

    text: str
    reason: str = ""
    is_cut: bool = False


ReadText = Callable[[str], Optional[PodLog]]
"""Reads the text at an address of the server; None for no such address."""


class PodLogs:
    """The logs of the pods of one run.

    Args:
        read_text: reads an address of the server.
        run_id, namespace, day: of the run; `day` is the date of its creation.
    """

    def __init__(self, read_text: ReadText, run_id: str, namespace: str, day: str) -> None:
        self._read_text = read_text
        self._fields = {"run": run_id, "namespace": namespace, "day": day}
        self._addresses = list(ADDRESSES)

    def of_executor(self, item: StepItem) -> Optional[PodLog]:
        """Return the log of the last attempt of a step that has one."""
        return self._last(item.attempts, CONTAINER_TEMPLATES)

    def of_driver(self, item: StepItem) -> Optional[PodLog]:
        """Return the log of the driver of a step, of its last attempt that has one."""
        return self._last(item.drivers, DRIVER_TEMPLATES)

    def _last(self, attempts: Iterable[str], templates: Iterable[str]) -> Optional[PodLog]:
        reasons = []
        for attempt in reversed(list(attempts)):
            for pod in pod_names(attempt, templates):
                found = self._of_pod(pod)
                if found and found.text:
                    return found
                if found:
                    reasons.append(found.reason)
        return PodLog("", reasons[0]) if reasons else None

    def _of_pod(self, pod: str) -> Optional[PodLog]:
        """Return a pod's log, from the first address that the server knows."""
        for address in list(self._addresses):
            found = self._read_text(address.format(pod=pod, **self._fields))
            if found is not None and found.text:
                self._addresses = [address]
                return _checked(found)
        return None


def pod_names(attempt: str, templates: Iterable[str]) -> list[str]:
    """Return the possible names of the pod of a node, or the pod itself.

    Argo names a pod WORKFLOW-TEMPLATE-HASH, where the hash is that of the node's path.

    Args:
        attempt: path of the node; or the name of a pod, which has no dots.
        templates: possible templates of the node.

    Source: argo-workflows, util.GeneratePodName.
    """
    if "." not in attempt:
        return [attempt]
    workflow = names_on(attempt)[0]
    digest = fnv1a(attempt)
    names = [f"{workflow}-{template}-{digest}" for template in templates]
    return [*names, f"{workflow}-{digest}"]


def error_of_driver(log: str) -> str:
    """Return the last error in the log of a driver; empty for none."""
    matches = [match for line in log.splitlines() if (match := DRIVER_ERROR.match(line))]
    text = matches[-1]["text"].strip() if matches else ""
    return DRIVER_CALL.sub("", text)


def assumed_items(step: str, workflow: str, places: Iterable[Place]) -> list[StepItem]:
    """Return where the pods of a step must be that the server does not list.

    Args:
        step: name of the step.
        workflow: path of the workflow's first node: its name, followed by `(0)` where the
            controller has a default for retries. Empty if the server names none.
        places: names around the step, and the number of items of its loop.
    """
    if not workflow:
        return []
    ending = FIRST if workflow.endswith(FIRST) else ""
    return [
        _assumed_item(
            step,
            [workflow, *(f"{name}{ending}" for name in names)],
            ending,
        )
        for place in places
        for names in _with_loop_items(place)
    ]


def _assumed_item(step: str, frames: list[str], ending: str) -> StepItem:
    above = ".".join(frames)
    executor = f"{above}.{step}{ending}.{EXECUTOR}"
    driver = f"{above}.{step}{DRIVER}"
    return StepItem(
        step,
        tuple(frames),
        FAILED,
        attempts=(executor, f"{executor}{FIRST}"),
        drivers=(driver, f"{driver}{FIRST}"),
    )


def _with_loop_items(place: Place) -> Iterator[list[str]]:
    """Yield the names around a step for each item of its loop."""
    names, num_items = place
    loops = [index for index, name in enumerate(names) if name.startswith(LOOP)]
    if not loops:
        yield list(names)
        return
    behind = loops[-1] + 1
    for number in range(num_items):
        item = [f"iteration-iterations({number}:{number})", "iteration-item"]
        yield [*names[:behind], *item, *names[behind:]]


def _checked(found: PodLog) -> PodLog:
    """Return an answer, an error in JSON as a reason without a log."""
    with contextlib.suppress(ValueError):
        value = json.loads(found.text)
        if isinstance(value, dict) and set(value) <= ERROR_KEYS and value:
            return PodLog("", str(next(iter(value.values()))))
    return found
