"""The names of a step's pods, and the addresses of their logs.

Kubeflow's API lists nodes of the Argo workflow, not pods.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

LOG_ADDRESSES = (
    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
    "/apis/v2beta1/runs/{run}/nodes/{pod}/log",
    "/k8s/pod/logs?podname={pod}&runid={run}&podnamespace={namespace}&createdat={day}",
)
"""Addresses of a pod's log: of API server 2.14, of its successors after 2.17, and of the UI.

The UI forwards neither of the first two.
"""
CONTAINER_TEMPLATE = "system-container-impl"
"""Template of a step's own container in the workflows of Kubeflow's compiler."""
FNV_PRIME = 16_777_619


def nodes_of(tasks: Iterable[Any], step: str) -> list[str]:
    """Return the workflow nodes that may be a step's container: children first, then the step.

    Children of an `executor` task are the next steps and are left out.
    """
    steps = [task for task in tasks if task.display_name == step]
    children = [child.pod_name for task in steps for child in task.child_tasks or ()]
    names = [*children, *(task.pod_name for task in steps)]
    return list(dict.fromkeys(name for name in names if name))


def pod_names(node: str) -> Iterator[Iterable[str]]:
    """Yield the possible pod names of a workflow node, those of its attempts together.

    Argo names a node WORKFLOW-HASH and its pod WORKFLOW-TEMPLATE-HASH. The hash is the FNV-1a of
    the node's path. The path of an attempt is the node's path followed by `(0)`, `(1)`, ...

    Source: argo-workflows, util.GeneratePodName.
    """
    workflow, _, digest = node.rpartition("-")
    if digest.isdecimal():
        prefix = f"{workflow}-retry-{CONTAINER_TEMPLATE}"
        yield (
            f"{prefix}-{continue_fnv1a(int(digest), f'({attempt})')}"
            for attempt in itertools.count()
        )
        yield [f"{workflow}-{CONTAINER_TEMPLATE}-{digest}"]
    yield [node]


def continue_fnv1a(digest: int, text: str) -> int:
    """Return the 32-bit FNV-1a hash of the text behind `digest`, extended by `text`."""
    for byte in text.encode():
        digest = (digest ^ byte) * FNV_PRIME % 2**32
    return digest
