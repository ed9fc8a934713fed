"""A receiver of OpenLineage events that checks each one against the published JSON schemas.

The files in openlineage_schemas/ are those of github.com/OpenLineage/OpenLineage, commit 8f02abfb7
(Apache License 2.0).
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parent / "openlineage_schemas"
EVENT_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json"


class Receiver(ThreadingHTTPServer):
    """Remembers the events that it got, and what the schemas say against them.

    Args:
        status: of its answers.
        delay_seconds: before each answer.
    """

    daemon_threads = True

    def __init__(self, status: int = 201, delay_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.delay_seconds = delay_seconds
        self.events: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of_job(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a job, in the order of their arrival."""
        return [event for event in self.events if event["job"]["name"] == name]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.events.append(json.loads(body))
        self.server.keys.append(self.headers.get("Authorization"))
        time.sleep(self.server.delay_seconds)
        self.send_response(self.server.status)
        self.end_headers()


@contextmanager
def receiver(status: int = 201, delay_seconds: float = 0.0) -> Iterator[Receiver]:
    """Yield a running receiver."""
    server = Receiver(status, delay_seconds)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def problems(event: dict[str, Any]) -> list[str]:
    """Return what the published schemas say against an event and its facets."""
    registry, known = _registry()
    found = _errors(event, EVENT_SCHEMA, registry)
    for facet in _facets(event):
        url = facet["_schemaURL"].partition("#")[0]
        if url in known:
            reference = {"$ref": facet["_schemaURL"]}
            found += [error.message for error in _validate(facet, reference, registry)]
    return found


def _errors(value: Any, url: str, registry: Any) -> list[str]:
    return [error.message for error in _validate(value, {"$ref": url}, registry)]


def _validate(value: Any, schema: dict[str, Any], registry: Any) -> Iterator[Any]:
    checker = Draft202012Validator.FORMAT_CHECKER
    validator = Draft202012Validator(schema, registry=registry, format_checker=checker)
    return validator.iter_errors(value)


def _registry() -> tuple[Any, set[str]]:
    contents = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
    resources = [(content["$id"], Resource.from_contents(content)) for content in contents]
    return Registry().with_resources(resources), {url for url, _ in resources}


def _facets(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every facet in an event."""
    if isinstance(value, dict):
        if "_schemaURL" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from _facets(entry)
