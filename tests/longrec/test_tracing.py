"""Traces: off without a receiver, stages of a sampled request, steps that continue a trace."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import local
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_span_id

from components.plan import plan
from longrec import tracing
from longrec.study.config import parse, to_text
from tests.conftest import ROOT
from tests.longrec.serving import small_scorer
from tests.otlp_receiver import attributes_of, make_traceparent, otlp_receiver

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
STUDY = (
    "name: one\nbase: {}\nvariants: {stca: {}, mean: {model.kind: mean, model.recency: token}}\n"
)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Spans of this process, kept in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OTEL_", "TRACE")):
            monkeypatch.delenv(name)


def test_without_a_receiver_nothing_is_imported() -> None:
    script = (
        "import sys\nfrom longrec import tracing\n"
        "assert tracing.start('x') is None and tracing.current_trace() is None\n"
        "with tracing.pipeline_span('step x', {}): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({ENDPOINT: "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h/v1/traces"}, True),
        ({ENDPOINT: "http://h:4318", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: " "}, False),
        ({ENDPOINT: "http://h:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://h:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, False),
    ],
)
def test_the_standard_variables_turn_traces_on(
    variables: dict[str, str],
    is_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.is_configured() is is_on


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "the protocol is 'grpc'"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive"),
    ],
)
def test_what_cannot_work_is_a_warning_and_no_error(
    name: str,
    value: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert tracing.start("x") is None
    assert reason in caplog.text


def test_a_missing_package_is_a_warning_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing.start("x") is None
    assert "pip install 'longrec[otel]'" in caplog.text


def test_the_engine_traces_the_stages_of_a_sampled_request(
    exporter: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    from longrec.serving.engine import Engine
    from longrec.serving.requests import EncodedRequest

    engine = Engine(small_scorer.make_scorer(tmp_path))
    user = small_scorer.User(0)
    user.append(20)
    rows = user.request(user.timeline(), user.next_ms)
    tracer = tracing._tracer
    assert tracer is not None
    with tracer.start_as_current_span("POST /rank") as root:
        trace = tracing.current_trace()
        engine.submit(EncodedRequest(rows, trace=trace)).result()
        engine.submit(EncodedRequest(rows)).result()
    engine.close()
    *stages, request = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["queue", "encode", "score"]
    assert request.name == "POST /rank"
    for span in stages:
        assert span.parent == root.get_span_context()
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    queue, encode, score = stages
    assert queue.end_time <= encode.start_time + 1_000_000
    assert abs(encode.end_time - score.start_time) < 1_000_000
    assert score.attributes == {"longrec.batch.requests": 1}


def test_a_request_that_is_not_sampled_has_no_trace() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    tracing.use(provider)
    try:
        with provider.get_tracer("x").start_as_current_span("POST /rank"):
            assert tracing.current_trace() is None
    finally:
        tracing.use(None)


def test_a_pipeline_continues_the_trace_of_the_environment_and_passes_it_on(
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = make_traceparent(TRACE_ID, SPAN_ID)
    monkeypatch.setenv("TRACEPARENT", before)
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    with tracing.pipeline_span("pipeline x", {"longrec.run": "r"}):
        inside = os.environ["TRACEPARENT"]
        assert os.environ["TRACESTATE"] == "vendor=1"
    assert os.environ["TRACEPARENT"] == before
    (span,) = exporter.get_finished_spans()
    assert inside == make_traceparent(TRACE_ID, format_span_id(span.context.span_id))
    assert format_span_id(span.parent.span_id) == SPAN_ID


def test_a_damaged_traceparent_begins_a_new_trace(
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-zz-1")
    with tracing.pipeline_span("pipeline x", {}):
        assert os.environ["TRACEPARENT"] != "00-zz-1"
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_an_error_is_in_the_span_and_the_variables_are_restored(
    exporter: InMemorySpanExporter,
) -> None:
    with pytest.raises(KeyError), tracing.pipeline_span("step x", {}):
        raise KeyError("lost")
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert "lost" in span.status.description
    assert "TRACEPARENT" not in os.environ


def test_a_step_sends_its_span_as_a_child_of_the_pipeline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    monkeypatch.setenv("LONGREC_RUN", "run-7")
    monkeypatch.setenv("TRACEPARENT", make_traceparent(TRACE_ID, SPAN_ID))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    with otlp_receiver() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.address)
        plan(study=to_text(parse(STUDY)), code_key="", max_items=8)
        spans = receiver.wait_for(TRACE_ID, "step plan")
        monkeypatch.delenv("TRACEPARENT")
        plan(study=to_text(parse(STUDY)), code_key="other", max_items=8)
        (alone,) = [span for span in receiver.spans if not span.parent_span_id]
    span = spans["step plan"]
    assert span.parent_span_id.hex() == SPAN_ID
    assert receiver.services[span.span_id] == "longrec-pipeline"
    assert attributes_of(span) == {"longrec.step": "plan", "longrec.run": "run-7"}
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
    expected = tracing._run_ids("run-7").generate_trace_id()
    assert alone.trace_id.hex() == f"{expected:032x}"


def test_a_receiver_that_is_gone_costs_a_step_seconds_at_most() -> None:
    script = "from longrec import tracing\nwith tracing.pipeline_span('step x', {}): print('done')"
    environment = {**os.environ, ENDPOINT: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 15
