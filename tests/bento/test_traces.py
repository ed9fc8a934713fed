"""docs/guides/traces.md: its commands send traces to a real receiver over OTLP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.bento.requests_and_scores import LATE_MS
from tests.bento.served_page import Reader
from tests.clients.page import read_sections
from tests.conftest import ROOT, VERSION, ServedWorld
from tests.otlp_receiver import OtlpReceiver, attributes_of, make_traceparent, otlp_receiver

pytestmark = pytest.mark.slow
SECTIONS = read_sections(ROOT / "docs" / "guides" / "traces.md")
PAGE_RECEIVER = "http://localhost:4318"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
REQUEST = "POST /rank"
STAGES = ("fetch", "queue", "encode", "score")
OPENMETRICS = {"accept": "application/openmetrics-text"}
BODY = {"user_id": 1, "candidates": [11, 12, 13], "request_time": LATE_MS}


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def reader(
    served_world: ServedWorld,
    receiver: OtlpReceiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    reader = Reader(served_world, folder, {PAGE_RECEIVER: receiver.address})
    reader.environment["OTEL_BSP_SCHEDULE_DELAY"] = "100"
    return reader


@pytest.fixture(scope="module")
def client(reader: Reader) -> Iterator[httpx.Client]:
    with reader.serve(SECTIONS["Trace the service"]) as client:
        yield client


@pytest.fixture(scope="module")
def answer(client: httpx.Client, reader: Reader) -> dict:
    """The answer to the request of the page."""
    return json.loads(reader.run(SECTIONS["Send a request with your trace"]))


@pytest.fixture(scope="module")
def spans(answer: dict, receiver: OtlpReceiver) -> dict[str, Span]:
    """The spans of that request."""
    return receiver.wait_for(TRACE_ID, REQUEST, *STAGES)


def test_the_request_continues_the_trace_of_its_caller(spans, receiver, answer) -> None:
    span = spans[REQUEST]
    attributes = attributes_of(span)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.parent_span_id.hex() == SPAN_ID
    assert receiver.services[span.span_id] == "longrec-ranker"
    assert attributes["http.status_code"] == 200
    assert attributes["longrec.model_version"] == VERSION
    assert attributes["longrec.store_version"] == answer["store_version"]
    assert attributes["longrec.history_length"] == answer["history_length"]
    assert attributes["longrec.candidates"] == 3
    assert attributes["longrec.degraded"] is False


def test_each_stage_is_a_span_of_the_request_in_its_order(spans) -> None:
    request = spans[REQUEST]
    stages = [spans[name] for name in STAGES]
    for span in stages:
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    ends = [span.end_time_unix_nano for span in stages]
    assert ends == sorted(ends)
    assert attributes_of(spans["score"]) == {"longrec.batch.requests": 1}


def test_histograms_name_the_trace_in_a_bucket_that_holds_its_time(client, reader, spans) -> None:
    assert TRACE_ID in reader.run(SECTIONS["Find the trace behind a slow bucket"])
    text = client.get("/metrics", headers=OPENMETRICS).text
    found = set()
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            if sample.exemplar is None or sample.exemplar.labels["trace_id"] != TRACE_ID:
                continue
            assert sample.exemplar.labels["span_id"] == spans[REQUEST].span_id.hex()
            assert sample.exemplar.value <= float(sample.labels["le"])
            found.add((metric.name, sample.labels.get("stage") or sample.labels["endpoint"]))
    stages = {("longrec_stage_seconds", name) for name in STAGES}
    assert found == {*stages, ("bentoml_service_request_duration_seconds", "/rank")}
    plain = client.get("/metrics").text
    assert "trace_id" not in plain


def test_a_request_whose_caller_does_not_sample_is_not_sent(client, receiver, spans) -> None:
    unsampled, sampled = "1" * 32, "2" * 32
    for trace_id, is_sampled in ((unsampled, False), (sampled, True)):
        header = make_traceparent(trace_id, SPAN_ID, is_sampled=is_sampled)
        client.post("/rank", json=BODY, headers={"traceparent": header}).raise_for_status()
    receiver.wait_for(sampled, REQUEST)
    assert not receiver.of_trace(unsampled)


def test_a_refused_request_has_a_span_without_stages(client, receiver) -> None:
    trace_id = "3" * 32
    headers = {"traceparent": make_traceparent(trace_id, SPAN_ID)}
    assert client.post("/rank", json={"user_id": 1}, headers=headers).status_code == 400
    spans = receiver.wait_for(trace_id, REQUEST)
    assert attributes_of(spans[REQUEST])["http.status_code"] == 400
    assert not set(STAGES) & spans.keys()


@pytest.mark.parametrize("header", ["", "00-zz-1-01", "ff" * 200])
def test_a_request_without_a_valid_header_begins_a_trace(client, receiver, header: str) -> None:
    before = len(receiver.spans)
    client.post("/rank", json=BODY, headers={"traceparent": header}).raise_for_status()
    limit = time.monotonic() + 60
    while not (new := [span for span in receiver.spans[before:] if span.name == REQUEST]):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert [span.parent_span_id for span in new] == [b""]


def test_probes_and_scrapes_have_no_span_and_no_span_names_the_user(
    client, receiver, spans
) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        client.get(path).raise_for_status()
    names = {span.name for span in receiver.spans}
    assert not [name for name in names if re.search(r"/(livez|readyz|healthz|metrics)", name)]
    keys = {key for span in receiver.spans for key in attributes_of(span)}
    assert not [key for key in keys if "user_id" in key]


def test_the_access_log_names_the_trace(reader: Reader, spans) -> None:
    assert TRACE_ID in (reader.folder / "serve.log").read_text()


def test_a_pipeline_is_one_trace_of_its_steps(reader, receiver, tmp_path: Path) -> None:
    trace_id = "4" * 32
    reader.environment["TRACEPARENT"] = make_traceparent(trace_id, SPAN_ID)
    try:
        reader.run(SECTIONS["Trace a pipeline"], tmp_path)
    finally:
        del reader.environment["TRACEPARENT"]
    spans = receiver.wait_for(trace_id, "pipeline refresh", "step publish")
    pipeline = spans.pop("pipeline refresh")
    assert pipeline.parent_span_id.hex() == SPAN_ID
    (run,) = (tmp_path / ".longrec" / "runs").glob("2*")
    assert attributes_of(pipeline) == {"longrec.pipeline": "refresh", "longrec.run": run.name}
    assert {"step fingerprint", "step check-events", "step publish"} <= spans.keys()
    for span in spans.values():
        assert span.parent_span_id == pipeline.span_id
        assert attributes_of(span)["longrec.run"] == run.name
        assert span.status.code == Status.STATUS_CODE_UNSET
