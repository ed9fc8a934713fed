"""Exemplars: the latest trace of each bucket, from all workers of a service."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from longrec.serving.prometheus.exemplars import (
    FOLDER_VARIABLE,
    Bucket,
    ExemplarFile,
    read_exemplars,
)
from longrec.serving.prometheus.exposition import expose
from longrec.tracing import Trace

OPENMETRICS = "application/openmetrics-text"
BOUNDS = (0.1, 1)
WORKER = """
from prometheus_client import REGISTRY
from opentelemetry.sdk.trace import TracerProvider
from longrec.serving.metrics import PrometheusMetrics
from longrec.serving.prometheus.http_metrics import HttpMetrics
from longrec.tracing import Trace
tracer = TracerProvider().get_tracer("test")
trace = Trace(tracer.start_span("POST /rank"), tracer)
metrics = PrometheusMetrics(["label"])
metrics.observe_stage("fetch", 0.003, trace)
metrics.observe_stage("score", 7.5, trace)
metrics.observe_stage("encode", 0.003)
HttpMetrics().observe("/rank", 200, 0.02, trace)
print(trace.trace_id)
"""


def make_trace() -> Trace:
    """Return the trace of a new request."""
    tracer = TracerProvider().get_tracer("test")
    return Trace(tracer.start_span("POST /rank"), tracer)


def bucket(le: float) -> Bucket:
    return Bucket("time_seconds", (("a", "b"),), le)


def add(file: ExemplarFile, value: float, trace: Trace) -> None:
    file.add("time_seconds", {"a": "b"}, value, bounds=BOUNDS, trace=trace)


@pytest.mark.parametrize(("value", "le"), [(0.05, 0.1), (0.1, 0.1), (0.2, 1), (2.0, math.inf)])
def test_a_value_is_in_the_bucket_that_holds_it(tmp_path: Path, value: float, le: float) -> None:
    file = ExemplarFile(tmp_path)
    trace = make_trace()
    add(file, value, trace)
    file.write()
    ((found, exemplar),) = read_exemplars(tmp_path).items()
    assert found == bucket(le)
    assert (exemplar.trace_id, exemplar.value) == (trace.trace_id, value)


def test_the_latest_of_all_workers_is_shown(tmp_path: Path) -> None:
    first, second = make_trace(), make_trace()
    file = ExemplarFile(tmp_path)
    add(file, 0.05, first)
    file.write()
    (written,) = tmp_path.iterdir()
    written.rename(tmp_path / "exemplars_1.json")
    later = ExemplarFile(tmp_path)
    add(later, 0.05, second)
    later.write()
    assert read_exemplars(tmp_path)[bucket(0.1)].trace_id == second.trace_id


def test_a_file_is_written_once_a_second(tmp_path: Path) -> None:
    file = ExemplarFile(tmp_path)
    add(file, 0.05, make_trace())
    file.write()
    add(file, 0.5, make_trace())
    file.write()
    assert len(read_exemplars(tmp_path)) == 1


def test_a_folder_that_is_gone_is_a_warning(tmp_path: Path, caplog) -> None:
    ExemplarFile(tmp_path / "gone").write()
    assert "the exemplars of this worker cannot be written" in caplog.text


def test_openmetrics_has_the_exemplars_of_stages_and_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env=dict(os.environ),
        check=True,
        capture_output=True,
        text=True,
    )
    text, _ = expose(OPENMETRICS)
    found = {}
    for metric in text_string_to_metric_families(text.decode()):
        for sample in metric.samples:
            if sample.exemplar is not None:
                assert sample.exemplar.labels["trace_id"] == done.stdout.strip()
                found[metric.name, sample.labels["le"]] = sample.exemplar.value
    assert found == {
        ("longrec_stage_seconds", "0.005"): 0.003,
        ("longrec_stage_seconds", "+Inf"): 7.5,
        ("bentoml_service_request_duration_seconds", "0.02"): 0.02,
    }
    plain, _ = expose("")
    assert b"trace_id" not in plain
