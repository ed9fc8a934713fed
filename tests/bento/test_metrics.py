"""GET /metrics of a real `bentoml serve`."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from longrec.serving.prometheus.http_metrics import OTHER_PATHS
from tests.bento.requests_and_scores import LATE_MS, rank

MAX_SERIES = 1_500
"""Bound on the series of a service with one model of one task."""


def read_series(client: httpx.Client) -> dict[str, float]:
    """Return the value of each series."""
    lines = client.get("/metrics").text.splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {series: float(value) for series, value in samples}


def num_requests(series: dict[str, float], endpoint: str, status: int) -> float:
    labels = f'endpoint="{endpoint}",http_response_code="{status}"'
    return series.get(f"bentoml_service_request_total{{{labels}}}", 0.0)


def test_made_up_paths_methods_and_callers_add_no_series(client) -> None:
    def ask(number: int) -> None:
        client.get(f"/made-up/{number}")
        client.post(f"/rank/{number}", json={})
        client.get(f"/static_content/{number}")
        client.request(f"METHOD{number}", "/rank")
        client.post("/rank", json={}, headers={"x-caller": f"caller-{number}"})
        client.get(f"/?{number}")

    ask(0)
    before = read_series(client)
    for number in range(1, 40):
        ask(number)
    after = read_series(client)
    assert set(after) == set(before)
    assert num_requests(after, OTHER_PATHS, 404) - num_requests(before, OTHER_PATHS, 404) >= 39
    assert len(after) < MAX_SERIES


def test_requests_count_for_their_route(client) -> None:
    before = read_series(client)
    rank(client, user_id=1, candidates=[1, 2], request_time=LATE_MS)
    client.post("/rank", json={})
    after = read_series(client)
    for status in (200, 400):
        change = num_requests(after, "/rank", status) - num_requests(before, "/rank", status)
        assert change == 1, status
    in_progress = 'bentoml_service_request_in_progress{endpoint="/rank"}'
    assert after[in_progress] == 0


def test_supervisor_and_worker_have_process_metrics(client) -> None:
    series = read_series(client)
    assert series["process_count"] >= 2
    assert series["process_resident_memory_bytes"] > 100_000_000
    assert series["process_cpu_seconds_total"] > 1
    assert 0 < series["process_open_fds"] < series["process_max_fds"]


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=1.0.0", "text/plain"])
def test_the_accept_header_names_the_format(client, accept: str) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(accept.partition(";")[0])
    is_openmetrics = response.text.endswith("# EOF\n")
    assert is_openmetrics == ("openmetrics" in accept)
    if is_openmetrics:
        assert list(text_string_to_metric_families(response.text))
