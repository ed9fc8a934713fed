"""A service in operation: rollout under load, a challenger, a token, the page, schemathesis."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pyarrow.parquet as pq
import pytest

from longrec.release import model_store, registry
from longrec.release.bento_server import serve_bento
from longrec.serving.rollout.worker_reports import shadow_report, workers
from tests.bento.operated_service import (
    AUTHORIZED,
    BODY,
    TOKEN,
    Caller,
    OperatedService,
    eventually,
)
from tests.browser import assert_fits, note_errors, open_browser
from tests.conftest import PATIENT, ROOT, VERSION, ServedWorld

pytestmark = pytest.mark.slow
UNKNOWN_USER = 2**62
"""A user id beyond what a float of JavaScript can hold."""
SCHEMATHESIS_CONFIG = """\
hooks = "tests.bento.schemathesis_hooks"
[checks]
# No 503 or 504 either: one caller, which has time (PATIENT) or asked for little (408).
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx"]
# The document holds for every log: a text may be the id of a user in another one.
positive_data_acceptance.expected-statuses = ["2xx", "400", "408"]
"""


@pytest.fixture(scope="module")
def service(
    served_world: ServedWorld,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatedService]:
    service = OperatedService(served_world, tmp_path_factory.mktemp("operations"))
    token_file = service.workdir / "token"
    token_file.write_text(TOKEN)
    variables = {"LONGREC_TOKEN_FILE": str(token_file), "LONGREC_LOG_SHARE": "1"}
    with serve_bento(
        "bento.service:Ranker",
        workdir=service.workdir,
        store=service.store,
        folder=ROOT,
        variables={**PATIENT, **variables},
    ) as (host, port):
        service.url = f"http://{host}:{port}"
        registry.promote(
            service.workdir,
            service.store,
            VERSION,
            by="test",
            why="start",
        )
        eventually(lambda: service.rank()["model_version"] == VERSION)
        yield service


def test_promotion_and_rollback_lose_no_request_and_mix_no_versions(
    service: OperatedService,
) -> None:
    alone = service.rank()["scores"]["label"]
    is_over = threading.Event()
    callers = [Caller(service.url, is_over) for _ in range(4)]
    for caller in callers:
        caller.start()
    for command, arguments, version in (
        ("promote", ["better"], "better"),
        ("rollback", [], VERSION),
        ("rollback", [], "better"),
        ("promote", [VERSION], VERSION),
    ):
        service.run_models(command, *arguments)
        eventually(
            lambda version=version: all(caller.versions[-1:] == [version] for caller in callers)
        )
        time.sleep(0.5)
    is_over.set()
    for caller in callers:
        caller.join()
    statuses = [caller.statuses for caller in callers]
    assert set().union(*statuses) == {200}, statuses
    for caller in callers:
        # Never back and forth.
        assert caller.versions == [VERSION, "better", VERSION, "better", VERSION]
        assert set(caller.scores) == {VERSION, "better"}
        assert all(len(scores) == 1 for scores in caller.scores.values())
    (scores,) = (json.loads(text) for text in callers[0].scores[VERSION])
    (better_scores,) = (json.loads(text) for text in callers[0].scores["better"])
    assert scores == [round(score, 4) for score in alone] != better_scores
    decisions = registry.read_decisions(service.workdir)
    actions = [decision.action for decision in decisions]
    assert actions == ["promote", "promote", "rollback", "rollback", "promote"]


def test_a_version_that_breaks_after_its_promotion_keeps_the_old_one(
    service: OperatedService,
) -> None:
    bundle = model_store.bundle_dir(service.store, "damaged")
    weights = bundle / "model.safetensors"
    content = weights.read_bytes()
    registry.promote(
        service.workdir,
        service.store,
        "damaged",
        by="test",
        why="looks good",
    )
    # It breaks on its way to the service, which may have loaded it before.
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def is_decided() -> bool:
        reasons = [worker["refused"].get("damaged", "") for worker in workers(service.workdir)]
        is_rejected = any("weights_sha256" in reason for reason in reasons)
        return is_rejected or service.rank()["model_version"] == "damaged"

    if service.rank()["model_version"] == VERSION:
        eventually(is_decided)
    registry.rollback(service.workdir, service.store, by="test", why="broken")
    eventually(lambda: service.rank()["model_version"] == VERSION)


def test_a_challenger_is_compared_and_its_answers_are_not_seen(service: OperatedService) -> None:
    service.run_models("shadow", "better", "--share", 1)

    def is_compared() -> bool:
        comparisons = [worker["shadow"] or {} for worker in workers(service.workdir)]
        return any(each.get("challenger") == "better" for each in comparisons)

    def report() -> dict:
        return shadow_report(service.workdir) or {"compared": 0, "dropped": 0}

    eventually(is_compared)
    versions = {service.rank(user_id=user)["model_version"] for user in range(30)}
    assert versions == {VERSION}
    eventually(lambda: report()["compared"] + report()["dropped"] >= 30)
    # The challenger has no time for most requests of a burst.
    eventually(lambda: service.rank() and report()["compared"] >= 10)
    found = report()
    assert (found["champion"], found["challenger"], found["failed"]) == (VERSION, "better", 0)
    assert found["mean_difference"] > 1e-4
    assert -1 <= found["rank_correlation"] <= 1
    assert found["latency_ratio"] > 0
    registry.stop_shadow(service.workdir, by="test", why="enough")


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {TOKEN}x"}])
def test_the_token_protects_everything_that_reads_data(
    service: OperatedService,
    headers: dict[str, str],
) -> None:
    response = httpx.post(
        f"{service.url}/rank",
        json=BODY,
        headers=headers,
    )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert list(response.json()) == ["error"]
    url = f"{service.url}/page/history?user_id=1&request_time=1"
    assert httpx.get(url, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/readyz", "/metrics", "/docs.json"])
def test_health_metrics_and_the_page_are_open(service: OperatedService, path: str) -> None:
    assert httpx.get(service.url + path).status_code == 200


@pytest.fixture
def client(service: OperatedService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers=AUTHORIZED, timeout=90) as client:
        yield client


@pytest.fixture
def page_request(client: httpx.Client) -> dict:
    """A request of the page for an example user; ids are texts."""
    examples = client.get("/page/examples").json()
    return {
        "user_id": examples["users"][0]["user_id"],
        "candidates": examples["candidates"][:5],
        "request_time": examples["moment"],
    }


def test_the_page_gets_the_history_of_an_example_user(client: httpx.Client) -> None:
    examples = client.get("/page/examples").json()
    user = examples["users"][0]
    parameters = {"user_id": user["user_id"], "request_time": examples["moment"]}
    view = client.get("/page/history", params=parameters).json()
    num_events = min(48, user["history_length"])
    assert len(view["timestamps"]) == num_events == len(view["lanes"]["of"])
    assert view["user_known"]
    parameters["user_id"] = UNKNOWN_USER
    assert not client.get("/page/history", params=parameters).json()["user_known"]
    negative = {**parameters, "length": -5}
    assert client.get("/page/history", params=negative).status_code == 400


def test_one_more_event_changes_the_scores(client: httpx.Client, page_request: dict) -> None:
    numbers = {
        **page_request,
        "user_id": int(page_request["user_id"]),
        "candidates": [int(item) for item in page_request["candidates"]],
    }
    before = client.post("/rank", json=numbers)
    event = {"item_id": page_request["candidates"][0], "kind": "like"}
    after = client.post("/page/whatif", json={**page_request, **event})
    assert after.status_code == 200
    assert before.json()["scores"] != after.json()["scores"]


def test_bad_requests_of_the_page_are_rejected(client: httpx.Client, page_request: dict) -> None:
    for bad in (
        {"user_id": "x"},
        {},
        {**page_request, "item_id": 1, "kind": "no"},
        {**page_request, "item_id": 1, "candidates": []},
        {**page_request, "item_id": 1, "length": -1},
        {**page_request, "item_id": 1, "request_time": -(2**63)},
        {**page_request, "item_id": 1, "request_time": 1_700_009_000},
    ):
        response = client.post("/page/whatif", json=bad)
        assert response.status_code == 400
        assert list(response.json()) == ["error"]
    assert client.post("/page/whatif", content="[" * 10_000).status_code == 400


SHOW_10_000_EVENTS = """() => {
  const of = Array.from({ length: 10000 }, (_, event) => event % 8);
  timeline.show({
    timestamps: of.map((_, event) => 1e12 + 1e6 * event),
    items: of.map(String),
    lanes: { feature: "topic", names: [..."abcdefgh"], of },
    kinds: { feature: "", names: ["view"], of: of.map(() => 0) },
  });
}"""
DRAWING_MS = """() => {
  timeline.draw();
  return timeline.canvas.dataset.ms;
}"""
SUM_OF_PIXELS = """() => {
  const canvas = document.getElementById("timeline");
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 3; i < pixels.length; i += 4) sum += pixels[i] ? pixels[i - 3] + 1 : 0;
  return sum;
}"""
"""Changes with everything that is drawn; 0 for an empty canvas."""


@pytest.fixture
def page(service: OperatedService) -> Iterator[Any]:
    """The page in a browser, with the token; nothing of it comes from elsewhere."""
    urls = []
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.set_default_timeout(60_000)
        errors = note_errors(page)
        page.on("request", lambda request: urls.append(request.url))
        page.goto(service.url)
        page.wait_for_selector("#locked")  # nothing is shown without the token
        assert page.locator("#scores tr").count() == 0
        page.fill("#token", TOKEN)
        page.press("#token", "Tab")
        page.wait_for_selector("#scores tr")  # it ranks unasked
        yield page
    assert not errors, errors
    assert all(url.startswith(service.url) for url in urls), urls


def test_the_page_in_a_browser(page: Any, client: httpx.Client) -> None:
    examples = client.get("/page/examples").json()
    assert page.input_value("#user") == examples["users"][0]["user_id"]
    assert page.locator("#scores tr").count() == len(examples["candidates"]) == 40
    assert page.inner_text("#drawn") == "48 events by topic"
    assert page.evaluate(SUM_OF_PIXELS) > 300
    texts = page.locator("#scores .value").all_inner_texts()
    numbers = {
        "user_id": int(page.input_value("#user")),
        "candidates": [int(item) for item in examples["candidates"]],
        "request_time": examples["moment"],
    }
    ranked = client.post("/rank", json=numbers).json()["scores"]["label"]
    scores = [float(text) for text in texts]
    assert scores == pytest.approx(sorted(ranked, reverse=True), abs=1e-4)
    assert scores[0] > scores[-1]
    assert_fits(page)
    before = page.evaluate(SUM_OF_PIXELS)
    page.focus("#scores button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#events tr")
    assert page.evaluate(SUM_OF_PIXELS) != before  # the marks
    page.focus("#timeline")
    assert "topic: " in page.inner_text("#tip")
    page.click("#add button")
    page.get_by_text("moves most").wait_for()
    assert page.locator("#heads th").count() == 3
    assert_fits(page)


def test_the_page_says_what_is_wrong_and_draws_long_histories(page: Any) -> None:
    page.fill("#user", str(UNKNOWN_USER))
    page.click("#show")
    page.get_by_text("unknown user").wait_for()
    page.fill("#candidates", "1 x")
    page.click("#show")
    page.get_by_text("whole number: x").wait_for()
    page.evaluate(SHOW_10_000_EVENTS)
    drawing_ms = [float(page.evaluate(DRAWING_MS)) for _ in range(9)]
    assert min(drawing_ms) < 500, drawing_ms  # 5 ms on an idle machine


def test_bentoml_clients_send_the_token(service: OperatedService) -> None:
    with bentoml.SyncHTTPClient(service.url, token=TOKEN, timeout=90) as client:
        assert client.rank(**BODY)["scores"] == service.rank()["scores"]
    with bentoml.SyncHTTPClient(service.url, token=f"{TOKEN}x", timeout=90) as client:
        with pytest.raises(bentoml.exceptions.BentoMLException) as raised:
            client.rank(**BODY)
        assert raised.value.error_code == 401


def dashboard_metrics() -> set[str]:
    """Return the names of the metrics in the dashboard, those of histograms with their suffix."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "longrec.json").read_text())
    targets = []
    for panel in dashboard["panels"]:
        targets += panel.get("targets", [])
    queries = [target["expr"] for target in targets]
    assert len(queries) > 20
    pattern = re.compile(r"(?:longrec|bentoml_service)_[a-z_]+")
    names = set(pattern.findall("\n".join(queries)))
    assert len(names) > 15
    return names


def without_suffix(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_service_has_every_metric_of_the_dashboard(service: OperatedService) -> None:
    service.rank()
    metrics = service.metrics()
    types = [line for line in metrics.splitlines() if line.startswith("# TYPE")]
    exposed = {line.split()[2] for line in types}
    for name in dashboard_metrics():
        assert name in exposed or without_suffix(name) in exposed, name
    for label in (
        'http_response_code="200"',
        'endpoint="/rank"',
        f'longrec_model_workers{{version="{VERSION}"',
        'outcome="compared"',
    ):
        assert label in metrics, label


def test_the_documentation_has_every_metric_of_the_dashboard() -> None:
    pytest.importorskip("mkdocs")
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    generate_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_reference)
    page = generate_reference.metrics_page()
    for name in dashboard_metrics():
        assert f"`{without_suffix(name)}`" in page, name


def test_answers_are_logged_for_the_drift_job(service: OperatedService) -> None:
    service.rank(user_id=3)
    folder = service.workdir / "requests"
    eventually(lambda: any(folder.glob("*.parquet")))
    rows = pq.read_table(next(folder.glob("*.parquet")))
    assert set(rows.schema.names) == {
        "request_id",
        "user_id",
        "timestamp",
        "item_id",
        "history_length",
        "model_version",
        "degraded",
        "label_score",
    }


def test_schemathesis_finds_no_difference_between_document_and_service(
    service: OperatedService,
    tmp_path: Path,
) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed (extra: ci)")
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS_CONFIG)
    options = [
        "--checks=all",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=25",
        "--seed=1",
        f"--header=Authorization: {AUTHORIZED['Authorization']}",
        "--request-timeout=90",
        "--no-color",
        "--no-shrink",
        "--continue-on-failure",
    ]
    done = subprocess.run(
        [str(program), "run", f"{service.url}/docs.json", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-1_000:]
    assert "Tested: 7" in done.stdout
    assert service.rank()["model_version"] == VERSION  # alive and right
