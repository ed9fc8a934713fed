"""A fake cluster with Kubeflow Trainer: its API over HTTP, and processes as nodes.

The SDK's own models parse every object; unknown fields are refused. A TrainJob runs its container
command once per node, with the variables of the Trainer's torch plugin, which a TrainJob must not
set. It starts one process per requested CPU.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubeflow_trainer_api import models

GROUP = "trainer.kubeflow.org/v1alpha1"
RESERVED = {
    "PET_NNODES",
    "PET_NPROC_PER_NODE",
    "PET_NODE_RANK",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
}
RUNTIME = {
    "apiVersion": GROUP,
    "kind": "ClusterTrainingRuntime",
    "metadata": {
        "name": "torch-distributed",
        "labels": {"trainer.kubeflow.org/framework": "torch"},
    },
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {
                                "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                            },
                            "spec": {
                                "template": {
                                    "spec": {
                                        "containers": [
                                            {"name": "node", "image": "pytorch/pytorch:2.13.0"}
                                        ]
                                    }
                                }
                            },
                        },
                    }
                ]
            }
        },
    },
}
NOW = "2026-11-25T12:00:00Z"


class Cluster(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *, runs: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.jobs, self.states, self.logs = runs, {}, {}, {}
        self.created: list[dict[str, Any]] = []

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        job = models.TrainerV1alpha1TrainJob.from_dict(body)
        assert job is not None
        assert _subset(body, job.to_dict()), "unknown fields"
        assert not RESERVED & {entry.name for entry in job.spec.trainer.env}
        body["metadata"] |= {"namespace": "team", "creationTimestamp": NOW}
        self.jobs[job.metadata.name], self.states[job.metadata.name] = body, "Running"
        self.created.append(body)
        if self.runs:
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return body

    def _run(self, job: Any) -> None:
        trainer, port = job.spec.trainer, _free_port()
        processes = str(trainer.resources_per_node.requests["cpu"].actual_instance)
        nodes = []
        for rank in range(trainer.num_nodes):
            variables = {
                "PET_NNODES": str(trainer.num_nodes),
                "PET_NPROC_PER_NODE": processes,
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                **variables,
                **{entry.name: entry.value for entry in trainer.env},
            }
            nodes.append(
                subprocess.Popen(
                    trainer.command,
                    env=environment,
                    cwd=tempfile.mkdtemp(),
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        said = [node.communicate()[0] for node in nodes]
        self.logs[job.metadata.name] = said[0]
        self.states[job.metadata.name] = (
            "Complete" if all(node.returncode == 0 for node in nodes) else "Failed"
        )

    def shown(self, name: str) -> dict[str, Any]:
        state = self.states[name]
        conditions = [
            {
                "type": state,
                "status": "True",
                "reason": "x",
                "message": "x",
                "lastTransitionTime": NOW,
            }
        ]
        return {
            **self.jobs[name],
            "status": {"conditions": conditions if state in ("Complete", "Failed") else []},
        }


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, cluster = self.path.partition("?")[0], self.server
        if path == f"/apis/{GROUP}/clustertrainingruntimes/torch-distributed":
            return self._send(RUNTIME)
        if path == f"/apis/{GROUP}/namespaces/team/trainjobs":
            return self._send({"items": [cluster.shown(name) for name in cluster.jobs]})
        if (
            found := re.fullmatch(f"/apis/{GROUP}/namespaces/team/trainjobs/([^/]+)", path)
        ) and found[1] in cluster.jobs:
            return self._send(cluster.shown(found[1]))
        if path == "/api/v1/namespaces/team/pods":
            [name] = re.findall(r"jobset-name%3D([a-z0-9-]+)", self.path)
            labels = {
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": "0",
            }
            metadata = {"name": f"{name}-node-0-0", "creationTimestamp": NOW, "labels": labels}
            pod = {
                "metadata": metadata,
                "spec": {"containers": [{"name": "node"}]},
                "status": {"phase": "Running"},
            }
            return self._send({"items": [pod]})
        if found := re.fullmatch("/api/v1/namespaces/team/pods/(.+)-node-0-0/log", path):
            return self._send(cluster.logs.get(found[1], ""))
        return self._send({"kind": "Status", "message": "not found", "code": 404}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path.partition("?")[0] == f"/apis/{GROUP}/namespaces/team/trainjobs"
        self._send(self.server.create(body), 201)

    def _send(self, value: Any, code: int = 200) -> None:
        text = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(code)
        self.send_header(
            "Content-Type", "text/plain" if isinstance(value, str) else "application/json"
        )
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def running(*, runs: bool) -> Iterator[tuple[Cluster, Any]]:
    """Run a cluster inside the block; yield it and a TrainerClient of it."""
    from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
    from kubernetes.client import Configuration

    with Cluster(runs=runs) as cluster:
        threading.Thread(target=cluster.serve_forever, daemon=True).start()
        address = Configuration(host=f"http://127.0.0.1:{cluster.server_port}")
        yield (
            cluster,
            TrainerClient(KubernetesBackendConfig(namespace="team", client_configuration=address)),
        )
        cluster.shutdown()


def _subset(value: Any, of: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(of, dict) and all(
            name in of and _subset(entry, of[name])
            for name, entry in value.items()
            if entry is not None
        )
    if isinstance(value, list):
        return isinstance(of, list) and len(value) == len(of) and all(map(_subset, value, of))
    return bool(value == of)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
