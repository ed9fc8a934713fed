"""A fake Kubeflow Pipelines server: longrec's v2beta1 calls, checked with kfp's own models.

Like the real API server, it checks a run before it starts: the spec parses as protobuf, the name is
valid, and every parameter is known, present if required, and of its type. Each request for a run
moves it to the next of `states`. Of a pod without a log it answers 200 and an error as JSON.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kfp_server_api as api
import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

BASE = "/apis/v2beta1"
MISSING_LOG = "BadRequestError: Failed to read logs from archive {pod}: NoSuchKey"
_MODELS = api.ApiClient()
_VALUES = {
    "STRING": "string_value",
    "NUMBER_INTEGER": "number_value",
    "NUMBER_DOUBLE": "number_value",
    "BOOLEAN": "bool_value",
    "STRUCT": "struct_value",
    "LIST": "list_value",
}


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Body:
    """What `ApiClient.deserialize` reads from."""

    def __init__(self, value: Any) -> None:
        self.data = json.dumps(value)


def parse(model: str, value: dict[str, Any]) -> Any:
    """Return an API object; refuse an unknown field, as the server's gateway does."""
    unknown = set(value) - set(getattr(api, model).attribute_map.values())
    if unknown:
        raise Refused(400, f'json: unknown field "{sorted(unknown)[0]}"')
    return _MODELS.deserialize(_Body(value), model)


def check_job(spec: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raise Refused if the API server would not create a workflow."""
    graph = spec.get("pipeline_spec", spec)
    platform = spec.get("platform_spec")
    proto = json_format.ParseDict(graph, pipeline_spec_pb2.PipelineSpec())
    if platform is not None:
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    if (
        not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", proto.pipeline_info.name)
        or proto.schema_version != "2.1.0"
    ):
        raise Refused(400, "invalid v2 pipeline spec: name or schema version")
    known = proto.root.input_definitions.parameters
    for name, value in parameters.items():
        if name not in known:
            raise Refused(400, f"parameter {name} is not defined in the pipeline")
        kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(known[name].parameter_type)
        if (
            json_format.Parse(json.dumps(value), struct_pb2.Value()).WhichOneof("kind")
            != _VALUES[kind]
        ):
            raise Refused(400, f"input parameter {name} requires type {kind}")
    for name, declared in known.items():
        if (
            name not in parameters
            and not declared.is_optional
            and not declared.HasField("default_value")
        ):
            raise Refused(400, f"parameter {name} is required")


class FakeServer(ThreadingHTTPServer):
    """The state of the server.

    Args:
        token: required token; empty for none.
        refuse: status and message of every answer; status 0 for none.
        refuse_post: the same for requests that create something.
        logs: by pod, at one of the addresses: v1alpha1, v2beta1 or ui. The ui answers any other
            address with its page.
        records: recorded answers by the id of the run.
        num_restarting: number of requests that a proxy answers with 503 from now on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.recurring: dict[str, Any] = {}
        self.pipelines: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.tasks: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.num_restarting = 0
        self.token = ""
        self.refuse = (0, "")
        self.refuse_post = (0, "")
        self.logs_at = "v1alpha1"
        self.multi_user = False

    def spec_of(self, entry: Any) -> dict[str, Any]:
        """Return the compiled pipeline of a run or a schedule."""
        version = self.versions[entry.pipeline_version_reference.pipeline_version_id]
        spec: dict[str, Any] = version.pipeline_spec
        return spec

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, content: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self) -> None:
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, url.path, dict(self.headers)))
        try:
            if self.server.num_restarting:
                self.server.num_restarting -= 1
                raise Refused(503, "upstream connect error")
            if self.server.refuse[0]:
                raise Refused(*self.server.refuse)
            if (
                self.server.token
                and self.headers.get("Authorization") != f"Bearer {self.server.token}"
            ):
                raise Refused(401, "Request header error: there is no user identity header")
            if self.server.refuse_post[0] and self.command == "POST":
                raise Refused(*self.server.refuse_post)
            if match := re.fullmatch(
                r"/apis/(v1alpha1|v2beta1)/runs/([^/]+)/nodes/([^/]+)/log", url.path
            ):
                return self._log(match[1], match[3])
            if url.path == "/k8s/pod/logs":
                return self._log("ui", query["podname"])
            path = url.path.removeprefix(BASE)
            if path == "/pipelines/upload_version":
                answer = self._upload_version(query, raw)
            elif path.startswith("/pipelines"):
                answer = self._pipelines(path, query, json.loads(raw) if raw else {})
            else:
                answer = self._answer(path, query, json.loads(raw) if raw else {})
            self._send(json.dumps(_MODELS.sanitize_for_serialization(answer)).encode())
        except Refused as refused:
            self._send(
                json.dumps(
                    {"error": refused.message, "code": 5, "message": refused.message}
                ).encode(),
                refused.status,
            )

    def _log(self, door: str, pod: str) -> None:
        if self.server.logs_at == "ui" != door:
            return self._send(b"<!doctype html><title>Kubeflow Pipelines</title>", kind="text/html")
        if self.server.logs_at != door:
            raise Refused(404, "404 page not found")
        text = self.server.logs.get(pod, json.dumps({"error_message": MISSING_LOG.format(pod=pod)}))
        return self._send(text.encode(), kind="text/plain")

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def _answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        server, post = self.server, self.command == "POST"
        if path == "/healthz":
            return {"multi_user": server.multi_user}
        if path == "/experiments" and post:
            made = parse("V2beta1Experiment", body)
            made.experiment_id = str(uuid.uuid4())
            server.experiments[made.experiment_id] = made
            return made
        if path == "/experiments":
            wanted = (
                [each["stringValue"] for each in json.loads(query["filter"])["predicates"]]
                if "filter" in query
                else None
            )
            return {
                "experiments": [
                    each
                    for each in server.experiments.values()
                    if wanted is None or each.display_name in wanted
                ]
            }
        if path in ("/runs", "/recurringruns") and post:
            return self._create(
                path, parse("V2beta1Run" if path == "/runs" else "V2beta1RecurringRun", body)
            )
        if path in ("/runs", "/recurringruns"):
            entries = [
                each
                for each in (server.runs if path == "/runs" else server.recurring).values()
                if each.experiment_id == query["experiment_id"]
            ]
            if path == "/runs":
                return {"runs": [*server.records.values(), *entries[::-1]]}
            return {"recurringRuns": entries[::-1]}
        if match := re.fullmatch("/recurringruns/([^/]+):(enable|disable)", path):
            entry = server.recurring[match[1]]
            entry.mode = match[2].upper()
            entry.status = f"{match[2].upper()}D"
            return {}
        if (match := re.fullmatch("/recurringruns/([^/]+)", path)) and self.command == "DELETE":
            del server.recurring[match[1]]
            return {}
        if match := re.fullmatch("/runs/([^/]+)", path):
            if match[1] in server.records:
                return server.records[match[1]]
            if match[1] not in server.runs:
                raise Refused(404, f"Run {match[1]} not found")
            return self._run(server.runs[match[1]])
        raise Refused(501, f"no {self.command} {path}")

    def _pipelines(self, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        """Answer for pipelines and their versions."""
        server = self.server
        if path == "/pipelines" and self.command == "POST":
            made = parse("V2beta1Pipeline", body)
            if made.display_name in {each.display_name for each in server.pipelines.values()}:
                raise Refused(409, "Already exist error")
            made.pipeline_id = str(uuid.uuid4())
            server.pipelines[made.pipeline_id] = made
            return made
        if path == "/pipelines":
            return {"pipelines": _named(server.pipelines.values(), query)}
        _, _, pipeline, *rest = path.split("/")
        if not rest:
            return server.pipelines[pipeline]
        of_pipeline = [each for each in server.versions.values() if each.pipeline_id == pipeline]
        if rest == ["versions"]:
            return {"pipeline_versions": _named(of_pipeline, query)}
        return server.versions[rest[1]]

    def _upload_version(self, query: dict[str, str], raw: bytes) -> Any:
        """Take a version, as the file of a form; its name is unique in its pipeline."""
        known = [each.display_name for each in self.server.versions.values()]
        if query["name"] in known or query["pipelineid"] not in self.server.pipelines:
            raise Refused(409, "the version exists, or the pipeline does not")
        _, _, content = raw.partition(b"\r\n\r\n")
        text = content[: content.rindex(b"\r\n--")].decode()
        graph, *platform = yaml.safe_load_all(text)
        spec = {"pipeline_spec": graph, "platform_spec": platform[0]} if platform else graph
        made = api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            display_name=query["name"],
            pipeline_spec=spec,
            tags=json.loads(query.get("tags", "{}")),
        )
        self.server.versions[made.pipeline_version_id] = made
        return made

    def _create(self, path: str, entry: Any) -> Any:
        if entry.experiment_id not in self.server.experiments:
            raise Refused(404, "Experiment not found")
        check_job(self.server.spec_of(entry), entry.runtime_config.parameters or {})
        entry.created_at = datetime.datetime.now(datetime.UTC)
        if path == "/runs":
            entry.run_id, entry.state = str(uuid.uuid4()), self.server.states[0]
            self.server.runs[entry.run_id] = entry
        else:
            if len(entry.trigger.cron_schedule.cron.split()) != 6:
                raise Refused(400, "invalid cron expression")
            entry.recurring_run_id = str(uuid.uuid4())
            self.server.recurring[entry.recurring_run_id] = entry
        return entry

    def _run(self, run: Any) -> Any:
        states = self.server.states
        answer = _MODELS.sanitize_for_serialization(run)
        run.state = states[min(states.index(run.state) + 1, len(states) - 1)]
        return {**answer, "run_details": {"task_details": self._tasks(answer["state"])}}

    def _tasks(self, run_state: str) -> list[dict[str, Any]]:
        """Return the tasks; after the end of a run none of them is running."""
        if run_state in ("PENDING", "RUNNING"):
            return self.server.tasks
        return [
            {**task, "state": run_state} if task["state"] == "RUNNING" else task
            for task in self.server.tasks
        ]


def _named(entries: Iterable[Any], query: dict[str, str]) -> list[Any]:
    """Return the entries with the name that a filter asks for, without their content."""
    [predicate] = json.loads(query["filter"])["predicates"]
    return [each for each in entries if each.display_name == predicate["stringValue"]]


@contextmanager
def running() -> Iterator[FakeServer]:
    """Run a server inside the block."""
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.shutdown()
        thread.join()


@contextmanager
def running_for_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Run a server that the commands find by their variables, and ask without patience."""
    for name in ("LONGREC_KFP_TOKEN", "LONGREC_KFP_COOKIE", "LONGREC_KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LONGREC_POLL_SECONDS", "0.01")
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "0")
    with running() as fake:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.url)
        yield fake
