"""The nodes of a step's own workflow, compressed or not."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kubernetes import client, config  # type: ignore[import-untyped]

from longrec.runs.record import workflow
from longrec.runs.record.workflow import nodes_in, own_nodes

NODES = {
    "run-1": {
        "name": "run(0).root(0)",
        "phase": "Failed",
        "startedAt": "2026-11-30T08:43:58Z",
        "finishedAt": None,
        "message": "too long",
    }
}


def test_compressed_nodes_are_those_of_a_small_workflow() -> None:
    packed = base64.b64encode(gzip.compress(json.dumps(NODES).encode())).decode()
    (small,) = nodes_in({"status": {"nodes": NODES}}) or []
    (large,) = nodes_in({"status": {"compressedNodes": packed}}) or []
    assert small == large
    assert (small.path, small.state, small.message) == ("run(0).root(0)", "Failed", "too long")
    assert small.ended is None


@pytest.mark.parametrize("status", [None, {}, {"offloadNodeStatusVersion": "fnv:1"}])
def test_a_workflow_without_nodes_tells_nothing(status: object) -> None:
    assert nodes_in({"status": status}) is None


def test_outside_a_cluster_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(workflow.HOST_VARIABLE, raising=False)
    assert own_nodes("longrec-training-85ffv") is None


def test_a_step_of_a_cluster_reads_its_own_workflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over real HTTP, with the client of Kubernetes."""
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(workflow, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv(workflow.HOST_VARIABLE, "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Kubernetes) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            config,
            "load_incluster_config",
            lambda: client.Configuration.set_default(settings),
        )
        (node,) = own_nodes("run") or []
        assert own_nodes("another-run") is None
        server.shutdown()
    assert node.message == "too long"


class _Kubernetes(BaseHTTPRequestHandler):
    """Has one workflow; answers 403 for any other."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = "/apis/argoproj.io/v1alpha1/namespaces/team/workflows/run"
        body = json.dumps({"status": {"nodes": NODES}}).encode()
        self.send_response(200 if self.path == path else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_step_without_the_right_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> object:
        raise PermissionError(f"403 {name}")

    monkeypatch.setenv(workflow.HOST_VARIABLE, "10.0.0.1")
    monkeypatch.setattr(workflow, "_read", refuse)
    with caplog.at_level("INFO"):
        assert own_nodes("longrec-training-85ffv") is None
    assert "cannot be read (403 longrec-training-85ffv)" in caplog.text
