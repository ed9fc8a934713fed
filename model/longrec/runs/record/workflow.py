"""The nodes of the Argo workflow that a step of a cluster belongs to.

A step may read its own workflow if its service account has the right, as Kubeflow's own account
`pipeline-runner` has. There stands the true state of every node, also of one whose pod was killed.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.runs.record.nodes import Node

log = logging.getLogger(__name__)

HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
"""Set in every pod."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
GROUP = "argoproj.io"
VERSION = "v1alpha1"
PLURAL = "workflows"
TIMEOUT_SECONDS = (5.0, 20.0)


def own_nodes(workflow: str) -> list[Node] | None:
    """Return the nodes of the workflow of this step; None if it cannot be read.

    Args:
        workflow: name of the workflow.
    """
    if not workflow or HOST_VARIABLE not in os.environ:
        return None
    try:
        return nodes_in(_read(workflow))
    except Exception as error:  # The outcome must be written in any case.
        reason = str(error).partition("\n")[0]
        log.info(
            "the workflow %s cannot be read (%s); the record must do",
            workflow,
            reason,
        )
        return None


def nodes_in(workflow: Mapping[str, Any]) -> list[Node] | None:
    """Return the nodes in a workflow as Kubernetes holds it; None if it holds none.

    Argo compresses the nodes of a large workflow.
    """
    status = workflow.get("status") or {}
    nodes = status.get("nodes")
    compressed = status.get("compressedNodes")
    if not nodes and compressed:
        nodes = json.loads(gzip.decompress(base64.b64decode(compressed)))
    if not nodes:
        return None
    return [_node(entry) for entry in nodes.values()]


def _read(workflow: str) -> dict[str, Any]:
    from kubernetes import client, config  # type: ignore[import-untyped]

    config.load_incluster_config()
    namespace = NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    found: dict[str, Any] = client.CustomObjectsApi().get_namespaced_custom_object(
        GROUP, VERSION, namespace, PLURAL, workflow, _request_timeout=TIMEOUT_SECONDS
    )
    return found


def _node(entry: Mapping[str, Any]) -> Node:
    return Node(
        entry["name"],
        str(entry.get("phase") or ""),
        started=_time(entry.get("startedAt")),
        ended=_time(entry.get("finishedAt")),
        message=str(entry.get("message") or ""),
    )


def _time(text: str | None) -> datetime.datetime | None:
    return datetime.datetime.fromisoformat(text) if text else None
