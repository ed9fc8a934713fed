"""Submission over real HTTP to a small in-process server that reads requests with kfp's own API models."""

from __future__ import annotations

import json
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.submit import ServerError, submit

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled" / "training.yaml"
BASE = "/apis/v2beta1"


class FakeServer(ThreadingHTTPServer):
    """Knows experiments and runs; `refuse` is the status with which it answers the creation of a run (0: accepts)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == f"{BASE}/healthz":
            self._answer({"multi_user": False})
        elif url.path == f"{BASE}/experiments":
            wanted = [p["stringValue"] for p in json.loads(query["filter"])["predicates"]] if "filter" in query else None
            found = [e for e in self.server.experiments.values() if wanted is None or e["display_name"] in wanted]
            self._answer({"experiments": found, "total_size": len(found)})
        else:
            self._answer({"message": f"no {url.path}"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith(f"{BASE}/experiments"):
            _known(body, "V2beta1Experiment")
            experiment = {**body, "experiment_id": str(uuid.uuid4())}
            self.server.experiments[experiment["experiment_id"]] = experiment
            self._answer(experiment)
        elif self.path.startswith(f"{BASE}/runs"):
            if self.server.refuse:
                return self._answer({"message": "Unauthorized: no token"}, self.server.refuse)
            _known(body, "V2beta1Run")
            json_format.ParseDict(body["pipeline_spec"].get("pipeline_spec", body["pipeline_spec"]), pipeline_spec_pb2.PipelineSpec())
            run = {**body, "run_id": str(uuid.uuid4()), "state": "PENDING"}
            self.server.runs.append(run)
            self._answer(run)


def _known(body: dict[str, Any], model: str) -> None:
    unknown = set(body) - set(getattr(kfp_server_api, model).attribute_map.values())
    assert not unknown, f"{model} has no {unknown}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()


def test_a_run_arrives_with_its_arguments_and_the_whole_graph(server: FakeServer) -> None:
    arguments = {"data_uri": "s3://bucket/data", "model": {"width": 128}, "seed": 3}
    first = submit(COMPILED, arguments, server.url, experiment="nightly", name="run one")
    second = submit(COMPILED, arguments, server.url, experiment="nightly", name="run two")
    assert len(server.experiments) == 1 and [run["display_name"] for run in server.runs] == ["run one", "run two"]
    assert first.run_id == server.runs[0]["run_id"] != second.run_id
    assert first.url == f"{server.url}/#/runs/details/{first.run_id}"
    parameters = server.runs[0]["runtime_config"]["parameters"]
    assert parameters == arguments
    spec = server.runs[0]["pipeline_spec"]
    tasks = spec["pipeline_spec"]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert {"fingerprint", "build-features", "check-events", "publish", "retrieve", "check-histories", "train", "evaluate"} <= set(tasks)


def test_nothing_listening_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ServerError, match=r"no Kubeflow Pipelines server answers at http://127\.0\.0\.1:9; .*port-forward"):
        submit(COMPILED, {"data_uri": "x"}, "http://127.0.0.1:9", experiment="e", name="n")


def test_a_refusal_names_the_status_and_the_reason(server: FakeServer) -> None:
    server.refuse = 401
    with pytest.raises(ServerError, match=r"refused the request; found 401 .*no token"):
        submit(COMPILED, {"data_uri": "x"}, server.url, experiment="e", name="n")
