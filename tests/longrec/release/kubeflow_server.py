"""A fake of the server of Kubeflow Model Registry: the part of its REST API that longrec uses.

No server installs here. The published schema is api/openapi/model-registry.yaml of the repository
kubeflow/model-registry. The release of its client holds it as generated classes, `mr_openapi`
(document version v1). The fake checks each request and writes each answer by those classes, so it
serves the schema of the client that is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PREFIX = "/api/model_registry/v1"
PAGE_SIZE = 2
"""Small, so that a list of three has two pages."""
Record = dict[str, Any]


class Refused(Exception):
    """An answer with another status than success.

    Args:
        status: of HTTP.
        message: to the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass
class FakeRegistry:
    """What the server keeps: JSON objects as they are sent.

    Args:
        replaces: whether an update removes the custom properties that it does not name. The schema
            leaves that open.
    """

    replaces: bool = False
    address: str = ""
    models: list[Record] = dataclasses.field(default_factory=list)
    versions: list[Record] = dataclasses.field(default_factory=list)
    artifacts: list[Record] = dataclasses.field(default_factory=list)

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Record) -> Any:
        """Return status and content of an answer.

        Raises:
            Refused: the request names nothing, conflicts, or breaks the schema.
        """
        for pattern, name in ROUTES[method].items():
            match = re.fullmatch(PREFIX + pattern, path)
            if match:
                return getattr(self, name)(*match.groups(), query=query, body=body)
        raise Refused(404, f"no operation {method} {path}")

    def list_models(self, query: Mapping[str, str], body: Record) -> Any:
        return _page("RegisteredModelList", self.models, query)

    def find_model(self, query: Mapping[str, str], body: Record) -> Any:
        found = _first(self.models, name=query["name"])
        return 200, _written("RegisteredModel", found)

    def create_model(self, query: Mapping[str, str], body: Record) -> Any:
        record = _checked("RegisteredModelCreate", body)
        return 201, _written("RegisteredModel", _create(self.models, record, "name"))

    def list_versions(self, model: str, query: Mapping[str, str], body: Record) -> Any:
        found = [entry for entry in self.versions if entry["registeredModelId"] == model]
        return _page("ModelVersionList", found, query)

    def find_version(self, query: Mapping[str, str], body: Record) -> Any:
        model = query["parentResourceId"]
        found = _first(self.versions, name=query["name"], registeredModelId=model)
        return 200, _written("ModelVersion", found)

    def create_version(self, query: Mapping[str, str], body: Record) -> Any:
        record = _checked("ModelVersionCreate", body)
        _first(self.models, id=record["registeredModelId"])
        created = _create(self.versions, record, "name", "registeredModelId")
        return 201, _written("ModelVersion", created)

    def update_version(self, number: str, query: Mapping[str, str], body: Record) -> Any:
        found = _first(self.versions, id=number)
        update = _checked("ModelVersionUpdate", body)
        if not self.replaces:
            before = found.get("customProperties", {})
            update["customProperties"] = {**before, **update.get("customProperties", {})}
        found.update(update)
        return 200, _written("ModelVersion", found)

    def add_artifact(self, number: str, query: Mapping[str, str], body: Record) -> Any:
        _first(self.versions, id=number)
        record = _checked("ModelArtifact", body)
        created = _create(self.artifacts, {**record, "modelVersionId": number}, "modelVersionId")
        return 201, _written("ModelArtifact", created)


ROUTES = {
    "GET": {
        "/registered_models": "list_models",
        "/registered_model": "find_model",
        "/registered_models/([1-9][0-9]*)/versions": "list_versions",
        "/model_version": "find_version",
    },
    "POST": {
        "/registered_models": "create_model",
        "/model_versions": "create_version",
        "/model_versions/([1-9][0-9]*)/artifacts": "add_artifact",
    },
    "PATCH": {"/model_versions/([1-9][0-9]*)": "update_version"},
}
"""Method of FakeRegistry by path."""


@contextlib.contextmanager
def running(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    """Serve a registry on a free port, and set its address."""

    class Handler(BaseHTTPRequestHandler):
        """Answer by the registry."""

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PATCH(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

        def _answer(self) -> None:
            address = urlsplit(self.path)
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = dict(parse_qsl(address.query, keep_blank_values=True))
            try:
                body = json.loads(sent or b"{}")
                status, content = registry.answer(self.command, address.path, query, body)
            except Refused as error:
                status = error.status
                content = _written("Error", {"code": str(status), "message": str(error)})
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        registry.address = f"http://127.0.0.1:{server.server_port}"
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _checked(name: str, body: Record) -> Record:
    """Return a body of a request, read and written by a class of the schema."""
    import mr_openapi

    schema = getattr(mr_openapi, name)
    known = {field.alias or key for key, field in schema.model_fields.items()}
    if set(body) - known:
        raise Refused(400, f"{name} has no {sorted(set(body) - known)}")
    try:
        content: Record = schema.from_dict(body).to_dict()
    except ValueError as error:
        raise Refused(400, str(error)) from error
    return content


def _written(name: str, record: Record) -> Record:
    """Return an answer as a class of the schema writes it."""
    import mr_openapi

    content: Record = getattr(mr_openapi, name).from_dict(record).to_dict()
    return content


def _first(records: list[Record], **values: str) -> Record:
    for record in records:
        if all(record[name] == value for name, value in values.items()):
            return record
    raise Refused(404, f"nothing has {values}")


def _create(records: list[Record], record: Record, *unique: str) -> Record:
    """Add a record with the next id; its unique fields together must be new."""
    for other in records:
        if all(other[name] == record[name] for name in unique):
            raise Refused(409, f"there is one with the same {unique}")
    created = {**record, "id": str(len(records) + 1)}
    records.append(created)
    return created


def _page(name: str, records: list[Record], query: Mapping[str, str]) -> tuple[int, Record]:
    """Return a page; its token is the place of the next one, and empty on the last."""
    size = int(query.get("pageSize") or PAGE_SIZE)
    start = int(query.get("nextPageToken") or 0)
    end = start + size
    content = {
        "items": records[start:end],
        "size": len(records[start:end]),
        "pageSize": size,
        "nextPageToken": str(end) if end < len(records) else "",
    }
    return 200, _written(name, content)
