"""Answers of a Kubeflow Pipelines 2.17 server, recorded and trimmed, for the fake server.

`records/NAME.json` is the answer for one run, without its specification, with its pods. A server
gives the specification too, so it is rebuilt here from what the pipelines were at that time.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.pipelines.kfp_server import FakeServer

FOLDER = Path(__file__).parent / "records"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
LOGS = {
    ("bad-data", "fingerprint(0).executor(0)"): "fingerprint-failed.txt",
    ("bad-data-three-attempts", "fingerprint.executor(2)"): "fingerprint-failed.txt",
    ("step-killed-by-timeout", "train(0).executor(0)"): "train-killed.txt",
    ("study-failed-over-1MiB", "trial-driver(0)"): "trial-driver-error.txt",
}
"""Run and end of a node's path -> log of its pod; other pods log their node's path."""
FEATURES: dict[str, Any] = {
    "fingerprint": {},
    "for-loop-2": {"profile-events": {}},
    "check-events": {},
    "for-loop-3": {"build-features": {}},
    "join-features": {},
    "publish": {},
}
HISTORIES: dict[str, Any] = {
    **FEATURES,
    "for-loop-4": {"retrieve": {}, "profile-histories": {}},
    "join-histories": {},
    "check-histories": {},
}
PIPELINES: dict[str, dict[str, Any]] = {
    "longrec-refresh": FEATURES,
    "longrec-training": {
        **HISTORIES,
        "train": {},
        "evaluate": {},
        "condition-5": {"package": {}},
    },
    "longrec-study": {**HISTORIES, "plan": {}, "for-loop-5": {"trial": {}}, "collect": {}},
}


@dataclasses.dataclass(frozen=True)
class Record:
    """A recorded run: the server's answer, and the path of the node of each of its pods."""

    name: str
    run: dict[str, Any]
    nodes: dict[str, str]

    @property
    def run_id(self) -> str:
        return str(self.run["run_id"])


def load(name: str, *, has_spec: bool = True) -> Record:
    """Return a recorded run, with the specification of its pipeline or without."""
    value = json.loads((FOLDER / f"{name}.json").read_text())
    nodes = {entry["pod"]: entry["node"] for entry in value.pop("pods")}
    if has_spec:
        graph = value["pipeline_spec"]["pipeline_spec"]
        graph.update(_graph(PIPELINES[graph["pipelineInfo"]["name"]]))
    return Record(name, value, nodes)


def put_on(server: FakeServer, record: Record) -> str:
    """Let a fake server answer like the recorded one; return the id of the run."""
    server.records[record.run_id] = record.run
    for pod, node in record.nodes.items():
        server.logs[pod] = _log(record.name, node)
    return record.run_id


def _log(name: str, node: str) -> str:
    for (run, ending), file in LOGS.items():
        if run == name and node.endswith(ending):
            return (FOLDER / file).read_text()
    return f"log of {node}\n"


def _graph(steps: dict[str, Any]) -> dict[str, Any]:
    """Return the graph of a pipeline, in the parts that `planned_steps` reads."""
    components: dict[str, Any] = {}
    last = {
        "componentRef": {"name": "comp-finish"},
        "dependentTasks": ["exit-handler-1"],
        "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
    }
    handler = _task("exit-handler-1", steps, components, "")
    return {
        "root": {"dag": {"tasks": {"exit-handler-1": handler, "finish": last}}},
        "components": components,
    }


def _task(
    name: str, inner: dict[str, Any], components: dict[str, Any], before: str
) -> dict[str, Any]:
    """Return a task that depends on the one before it; add its component."""
    component: dict[str, Any] = {}
    if inner:
        names = ["", *inner]
        tasks = {
            each: _task(each, inner[each], components, previous)
            for previous, each in zip(names, inner, strict=False)
        }
        component = {"dag": {"tasks": tasks}}
    components[f"comp-{name}"] = component
    task: dict[str, Any] = {"componentRef": {"name": f"comp-{name}"}}
    if before:
        task["dependentTasks"] = [before]
    if name.startswith("for-loop") and name != "for-loop-5":
        task["parameterIterator"] = {"items": {"inputParameter": "pipelinechannel--shards"}}
    return task
