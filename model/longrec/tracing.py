"""Traces: OpenTelemetry spans of requests and of the steps of a pipeline.

OpenTelemetry's own variables OTEL_* configure them (SDK_VARIABLES_PAGE). Without the address of a
receiver in ENDPOINT_VARIABLES, nothing is imported, measured or sent. Spans go out as OTLP over
HTTP, in a thread: a receiver that fails never fails a request or a step.

A process continues the trace that the variables TRACEPARENT and TRACESTATE name, and sets them for
its child processes. They are the headers of W3C Trace Context, as in OpenTelemetry's
"Environment Variables as Context Propagation Carriers".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Span, Tracer

    Attributes = Mapping[str, str | bool | int | float]

log = logging.getLogger(__name__)

SDK_VARIABLES_PAGE = (
    "https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/"
)
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
PIPELINE_SERVICE = "longrec-pipeline"
"""Name of the service that pipelines are, unless OTEL_SERVICE_NAME names another."""
TRACER_NAME = "longrec"
INSTALL = "pip install 'longrec[otel]'"
TRACE_ID_BYTES = 16
NANOSECONDS = 10**9

_tracer: Tracer | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """A sampled request, with the spans of its stages.

    Args:
        span: of the whole request.
        tracer: makes the spans of the stages.
    """

    span: Span
    tracer: Tracer

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return f"{self.span.get_span_context().trace_id:032x}"

    @property
    def span_id(self) -> str:
        """The id of the request's span, 16 hexadecimal digits."""
        return f"{self.span.get_span_context().span_id:016x}"

    def add_span(
        self,
        name: str,
        seconds: float,
        *,
        ended_seconds_ago: float = 0.0,
        attributes: Attributes | None = None,
    ) -> None:
        """Add the span of a stage that has ended; any thread may call it.

        Args:
            name: of the stage.
            seconds: how long it took.
            ended_seconds_ago: time since its end.
            attributes: of the span.
        """
        from opentelemetry.trace import set_span_in_context

        ended_ns = time.time_ns() - int(ended_seconds_ago * NANOSECONDS)
        span = self.tracer.start_span(
            name,
            context=set_span_in_context(self.span),
            start_time=ended_ns - int(seconds * NANOSECONDS),
            attributes=attributes,
        )
        span.end(ended_ns)

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes to the span of the request."""
        self.span.set_attributes(attributes)


def is_configured() -> bool:
    """Return whether OpenTelemetry's variables name a receiver of traces, and none says no."""
    if _variable("OTEL_SDK_DISABLED") == "true":
        return False
    if _variable("OTEL_TRACES_EXPORTER") not in ("", "otlp"):
        return False
    return bool(_variable(*ENDPOINT_VARIABLES))


def start(service: str, *, run: str = "") -> TracerProvider | None:
    """Return the provider of this process as the variables configure it; None for no traces.

    A configuration that cannot work is a warning: a service without traces is better than none.

    Args:
        service: its name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES names another.
        run: id of a run, whose hash becomes the id of every new trace; empty for random ids.
    """
    if not is_configured():
        return None
    protocol = _variable(*PROTOCOL_VARIABLES) or PROTOCOL
    if protocol != PROTOCOL:
        log.warning("no traces: the protocol is %r, expected %r", protocol, PROTOCOL)
        return None
    try:
        provider = _make_provider(service, run)
    except ImportError as error:
        log.warning("no traces: %s. Install it: %s", error, INSTALL)
        return None
    except ValueError as error:
        log.warning("no traces: a variable OTEL_* has no valid value: %s", error)
        return None
    use(provider)
    return provider


def use(provider: TracerProvider | None) -> None:
    """Make the spans of this process with a provider; None makes none."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer(TRACER_NAME, _version())


def current_trace() -> Trace | None:
    """Return the trace of the request of this task; None if it is not sampled."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    # The span of a request ends with the last byte of the answer, before the middleware does.
    is_sampled = span.get_span_context().trace_flags.sampled
    return Trace(span, _tracer) if is_sampled else None


@contextlib.contextmanager
def pipeline_span(
    name: str,
    attributes: Attributes,
    *,
    run: str = "",
) -> Iterator[None]:
    """Trace the body, which continues the trace of the environment; child processes continue it.

    Args:
        name: of the span.
        attributes: of the span.
        run: id of the run whose steps share a trace without a common parent, as on a cluster.
    """
    if _tracer is None:
        start(PIPELINE_SERVICE, run=run)
    if _tracer is None:
        yield
        return
    from opentelemetry import propagate

    fields = propagate.get_global_textmap().fields
    before = {field: os.environ[field.upper()] for field in fields if field.upper() in os.environ}
    context = propagate.extract(before)
    with _tracer.start_as_current_span(name, context=context, attributes=attributes):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        _set_carrier(carrier, fields)
        try:
            yield
        finally:
            _set_carrier(before, fields)


def _set_carrier(carrier: Mapping[str, str], fields: set[str]) -> None:
    """Set the variables that child processes find their trace by."""
    for field in fields:
        if field in carrier:
            os.environ[field.upper()] = carrier[field]
        else:
            os.environ.pop(field.upper(), None)


def _variable(*names: str) -> str:
    """Return the first variable that is set, in lower case; empty if there is none."""
    values = (os.environ.get(name, "").strip() for name in names)
    return next((value.lower() for value in values if value), "")


def _make_provider(service: str, run: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own: dict[str, str | int] = {
        "service.name": service,
        "service.version": _version(),
        "process.pid": os.getpid(),
    }
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    ids = _run_ids(run) if run else None
    provider = TracerProvider(resource=resource, id_generator=ids)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _run_ids(run: str) -> IdGenerator:
    """Return ids whose trace is that of a run: steps on several machines find it by themselves."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    digest = hashlib.sha256(run.encode()).digest()
    trace_id = int.from_bytes(digest[:TRACE_ID_BYTES], "big")

    class RunIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return trace_id

    return RunIds()


def _version() -> str:
    try:
        return importlib.metadata.version("longrec")
    except importlib.metadata.PackageNotFoundError:
        return "0"
