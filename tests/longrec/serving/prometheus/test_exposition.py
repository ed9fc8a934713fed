"""GET /metrics: the format that is asked for, and the metrics of the workers of one service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from longrec.serving.prometheus.exemplars import FOLDER_VARIABLE
from longrec.serving.prometheus.exposition import expose

WORKER = """
from prometheus_client import Counter, Gauge, Histogram
Counter("longrec_rejected_requests_total", "Rejected.", ["reason"]).labels("overload").inc()
Histogram("longrec_stage_seconds", "Time.", ["stage"]).labels("fetch").observe(0.01)
workers = Gauge("longrec_model_workers", "Workers.", ["version"], multiprocess_mode="livesum")
workers.labels("old").set(0)
workers.labels("new").set(1)
Gauge("feast_feature_server_cpu_usage", "A gauge of a library.").set(0)
"""
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers wrote, both dead by now."""
    path = tmp_path_factory.mktemp("written")
    environment = {**os.environ, FOLDER_VARIABLE: str(path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    return path


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the workers wrote, as the folder of the metrics."""
    path = tmp_path / "metrics"
    shutil.copytree(written, path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(path))
    return path


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        ("text/plain", TEXT),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;q=0.5", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text;version=9.0.0", TEXT),
        ("application/openmetrics-text;version=x", TEXT),
        (";;,=,;version", TEXT),
    ],
)
def test_the_accept_header_names_the_format(folder, accept: str, content_type: str) -> None:
    content, found = expose(accept)
    assert found == content_type
    parse = parse_openmetrics if content_type == OPENMETRICS else parse_text
    names = {metric.name for metric in parse(content.decode())}
    assert {"longrec_rejected_requests", "process_cpu_seconds"} <= names


def test_workers_count_together_and_dead_ones_serve_nothing(folder: Path) -> None:
    text = expose("")[0].decode()
    assert 'longrec_rejected_requests_total{reason="overload"} 2.0' in text
    assert 'longrec_stage_seconds_count{stage="fetch"} 2.0' in text
    assert "longrec_model_workers{" not in text
    assert not list(folder.glob("gauge_live*"))


def test_metrics_of_libraries_are_left_out(folder: Path) -> None:
    assert list(folder.glob("gauge_all_*"))
    assert b"feast" not in expose("")[0]


def test_a_replaced_version_has_no_series(folder: Path) -> None:
    dead = next(folder.glob("gauge_livesum_*"))
    dead.rename(folder / f"gauge_livesum_{os.getpid()}.db")
    text = expose("")[0].decode()
    assert 'longrec_model_workers{version="new"} 1.0' in text
    assert 'version="old"' not in text


def test_the_processes_of_the_service_count_together(folder: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            metrics = {metric.name: metric for metric in parse_text(expose("")[0].decode())}
        finally:
            child.kill()

    def value(name: str) -> float:
        (sample,) = metrics[name].samples
        return sample.value

    assert value("process_count") >= 2
    assert value("process_resident_memory_bytes") > 10_000_000
    assert value("process_cpu_seconds") > 0
    assert 0 < value("process_open_fds") <= value("process_max_fds")
    assert value("process_start_time_seconds") > 1e9
