"""A real Prometheus scrapes a real service as the ServiceMonitor says, and knows every query."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.bento.requests_and_scores import LATE_MS, rank
from tests.deploy import manifests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (Debian's package)"
    ),
    pytest.mark.skipif(
        not manifests.KUBECTL.exists(), reason="kubectl is not installed (extra: ci)"
    ),
]
WAIT_SECONDS = 90
TARGET_LABELS = {
    "container": "ranker",
    "endpoint": "http",
    "job": "longrec-ranker",
    "namespace": "longrec",
    "pod": "longrec-ranker-0",
    "service": "longrec-ranker",
}
"""What the Prometheus operator adds to a target of the ServiceMonitor."""


@pytest.fixture(scope="module")
def rendered() -> dict[str, manifests.Manifest]:
    return manifests.render(manifests.FOLDER / "overlays" / "monitored")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_configuration(folder: Path, rendered: dict[str, Any], server: str) -> None:
    """Write the scrape of the ServiceMonitor and the rules of the PrometheusRule, every second."""
    (endpoint,) = rendered["ServiceMonitor"]["spec"]["endpoints"]
    target = {"targets": [server.removeprefix("http://")], "labels": TARGET_LABELS}
    scrape = {
        "job_name": "longrec-ranker",
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint["honorLabels"],
        "static_configs": [target],
    }
    rules = manifests.alerting_rules(rendered["PrometheusRule"])
    for group in rules["groups"]:
        group["interval"] = "1s"
    configuration = {
        "global": {"scrape_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")


@pytest.fixture(scope="module")
def service(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def prometheus(
    rendered, server: str, service: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a Prometheus that has seen some answers of the service."""
    folder = tmp_path_factory.mktemp("prometheus")
    write_configuration(folder, rendered, server)
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        "--config.file=prometheus.yaml",
        f"--web.listen-address={address}",
        "--storage.tsdb.path=data",
    ]
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            wait_for_rates(client, service)
            yield client
    finally:
        process.kill()
        process.wait()


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    response = client.get("/api/v1/query", params={"query": expression})
    assert response.status_code == 200, response.text
    return response.json()["data"]["result"]


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.ConnectError:
        return False


def wait_for_rates(client: httpx.Client, service: httpx.Client) -> None:
    """Rank until the share of slow answers is known: two scrapes and an evaluation later."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        rank(service, user_id=1, candidates=[1, 2], request_time=LATE_MS)
        found = []
        if is_ready(client):
            found = query(client, "longrec:rank_slow:ratio_rate5m")
        if found and not math.isnan(float(found[0]["value"][1])):
            return
        time.sleep(0.5)
    raise AssertionError("Prometheus has no rate of the service")


def test_the_labels_of_the_service_win(prometheus: httpx.Client) -> None:
    (series,) = query(
        prometheus, 'bentoml_service_request_total{endpoint="/rank",http_response_code="200"}'
    )
    assert series["metric"].items() >= {**TARGET_LABELS, "endpoint": "/rank"}.items()


@pytest.mark.parametrize("objective", ["errors", "slow"])
@pytest.mark.parametrize("window", ["5m", "30m", "1h", "2h", "6h", "1d", "3d"])
def test_the_objectives_are_recorded(prometheus, objective: str, window: str) -> None:
    (result,) = query(prometheus, f"longrec:rank_{objective}:ratio_rate{window}")
    assert result["metric"]["namespace"] == "longrec"
    assert 0 <= float(result["value"][1]) <= 1


def test_no_rule_fails_and_no_budget_alert_fires_for_answers(prometheus) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 23
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not query(prometheus, 'ALERTS{alertname=~".*Error.*|.*Absent"}')


def test_the_autoscaler_gets_one_number(prometheus: httpx.Client, rendered) -> None:
    (trigger, _) = rendered["ScaledObject"]["spec"]["triggers"]
    (result,) = query(prometheus, trigger["metadata"]["query"])
    assert 0 <= float(result["value"][1]) < 100


def dashboard_queries() -> list[str]:
    """Return the queries of the dashboard, with its variables filled in."""
    path = manifests.ROOT / "deploy" / "grafana" / "longrec.json"
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [text.replace("$instance", ".*").replace("$__rate_interval", "1m") for text in queries]


def test_the_dashboard_shows_the_traffic(prometheus: httpx.Client) -> None:
    empty = [text for text in dashboard_queries() if not query(prometheus, text)]
    quiet = ("longrec_shadow", "longrec_cache_age")
    assert [text for text in empty if not any(name in text for name in quiet)] == []
