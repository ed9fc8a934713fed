"""A receiver of traces over OTLP/HTTP, which decodes what arrives by the published protocol."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MAX_WAIT_SECONDS = 60


class OtlpReceiver(http.server.ThreadingHTTPServer):
    """Keeps the spans that arrive."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.services: dict[bytes, str] = {}
        """Name of the service that sent a span, by the id of the span."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of_trace(self, trace_id: str) -> dict[str, Span]:
        """Return the spans of a trace by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}

    def wait_for(self, trace_id: str, *names: str) -> dict[str, Span]:
        """Return the spans of a trace, as soon as it has all these names."""
        limit = time.monotonic() + MAX_WAIT_SECONDS
        while not set(names) <= self.of_trace(trace_id).keys():
            found = sorted(span.name for span in self.spans)
            assert time.monotonic() < limit, f"{names} did not arrive; there is {found}"
            time.sleep(0.05)
        return self.of_trace(trace_id)

    def add(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of a request."""
        for resource_spans in request.resource_spans:
            service = attributes_of(resource_spans.resource)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self.services[span.span_id] = service
                    self.spans.append(span)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: OtlpReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        is_traces = self.path == "/v1/traces"
        if not is_traces or self.headers["content-type"] != "application/x-protobuf":
            self.send_error(400)
            return
        self.server.add(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def attributes_of(holder: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    values = {}
    for attribute in holder.attributes:
        kind = attribute.value.WhichOneof("value")
        values[attribute.key] = getattr(attribute.value, kind)
    return values


@contextlib.contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """Yield a receiver that listens."""
    with OtlpReceiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()


def make_traceparent(trace_id: str, span_id: str, *, is_sampled: bool = True) -> str:
    """Return a header of W3C Trace Context."""
    return f"00-{trace_id}-{span_id}-{int(is_sampled):02x}"
