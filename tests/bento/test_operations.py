"""A real `bentoml serve` in operation: promoted and rolled back under load, with a challenger, a
token, a page, and callers who fuzz.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import torch

from longrec.release import model_store, registry
from longrec.release.bento_server import serve_bento
from longrec.scoring.bundle import Bundle
from longrec.serving import rollout
from tests.conftest import PATIENT, ROOT, VERSION, ServedWorld

pytestmark = pytest.mark.slow
TOKEN = "a-token-that-is-long-enough"
LATE = 1_720_000_000_000
BODY = {"user_id": 1, "candidates": list(range(12)), "request_time": LATE}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class World:
    """A work directory and a store of their own, with the trained model, a changed one, a damaged one; and a
    service on them.
    """

    def __init__(self, served: ServedWorld, path: Path) -> None:
        self.workdir, self.store = path / "home", path / "bentoml"
        shutil.copytree(
            served.workdir, self.workdir, symlinks=True, ignore=shutil.ignore_patterns("models")
        )
        shutil.copytree(served.store, self.store)
        folder = self.store / "models" / model_store.MODEL_NAME
        for version in ("better", "damaged"):
            shutil.copytree(folder / VERSION, folder / version)
        changed = Bundle.load(folder / VERSION / "bundle")
        with torch.no_grad():
            for parameter in changed.ranker.parameters():
                parameter.mul_(1.2)
        changed.save(folder / "better" / "bundle")
        self.url = ""

    def decide(self, action: str, *arguments: object) -> None:
        """Types a command of `longrec models`."""
        options = ["--why", "test", "--workdir", str(self.workdir)]
        command = [
            sys.executable,
            "-m",
            "longrec.cli.main",
            "models",
            action,
            *map(str, arguments),
            *options,
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "BENTOML_HOME": str(self.store)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def ask(self, **body: object) -> dict:
        answer = httpx.post(
            f"{self.url}/rank", json={**BODY, **body}, headers=AUTHORIZED, timeout=90
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def world(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(served_world, tmp_path_factory.mktemp("operations"))
    token = world.workdir / "token"
    token.write_text(TOKEN)
    with serve_bento(
        "bento.service:Ranker",
        workdir=world.workdir,
        store=world.store,
        folder=ROOT,
        variables={**PATIENT, "LONGREC_TOKEN_FILE": str(token), "LONGREC_LOG_SHARE": "1"},
    ) as (host, port):
        world.url = f"http://{host}:{port}"
        registry.promote(world.workdir, world.store, VERSION, by="test", why="start")
        eventually(lambda: world.ask()["model_version"] == VERSION)
        yield world


def eventually(holds: Callable[[], bool], seconds: float = 180.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.2)


class Caller(threading.Thread):
    """Asks without a pause; counts statuses, and answers by version."""

    def __init__(self, url: str, is_over: threading.Event) -> None:
        super().__init__()
        self._url, self._is_over = url, is_over
        self.statuses: collections.Counter[int | str] = collections.Counter()
        self.answers: dict[str, set[str]] = collections.defaultdict(set)
        self.versions: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, headers=AUTHORIZED, timeout=90) as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post("/rank", json=BODY)
                except httpx.HTTPError as error:
                    self.statuses[repr(error)] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    version = answer.json()["model_version"]
                    self.answers[version].add(
                        json.dumps([round(score, 4) for score in answer.json()["scores"]["label"]])
                    )
                    if self.versions[-1:] != [version]:
                        self.versions.append(version)


def test_promotion_and_rollback_lose_no_request_and_mix_no_versions(world: World) -> None:
    alone = {VERSION: world.ask()["scores"]["label"]}
    is_over = threading.Event()
    callers = [Caller(world.url, is_over) for _ in range(4)]
    for caller in callers:
        caller.start()
    for action, arguments, version in (
        ("promote", ["better"], "better"),
        ("rollback", [], VERSION),
        ("rollback", [], "better"),
        ("promote", [VERSION], VERSION),
    ):
        world.decide(action, *arguments)
        eventually(
            lambda version=version: all(caller.versions[-1:] == [version] for caller in callers)
        )
        time.sleep(0.5)
    is_over.set()
    for caller in callers:
        caller.join()
    assert set().union(*(caller.statuses for caller in callers)) == {200}, [
        caller.statuses for caller in callers
    ]
    for caller in callers:
        assert caller.versions == [
            VERSION,
            "better",
            VERSION,
            "better",
            VERSION,
        ]  # never back and forth
        assert set(caller.answers) == {VERSION, "better"} and all(
            len(found) == 1 for found in caller.answers.values()
        )
    scores = {
        version: json.loads(next(iter(found))) for version, found in callers[0].answers.items()
    }
    assert scores[VERSION] == [round(score, 4) for score in alone[VERSION]] != scores["better"]
    assert [change.action for change in registry.read_decisions(world.workdir)] == [
        "promote",
        "promote",
        "rollback",
        "rollback",
        "promote",
    ]


def test_a_version_that_breaks_after_it_was_decided_keeps_the_old_one(world: World) -> None:
    good = model_store.bundle_dir(world.store, "damaged") / "model.safetensors"
    content = good.read_bytes()
    registry.promote(world.workdir, world.store, "damaged", by="test", why="looks good here")
    good.write_bytes(
        content[:-1] + bytes([content[-1] ^ 1])
    )  # and breaks on its way to the service; it may have been quicker
    if world.ask()["model_version"] == VERSION:
        eventually(
            lambda: (
                any(
                    "weights_sha256" in worker["refused"].get("damaged", "")
                    for worker in rollout.workers(world.workdir)
                )
                or world.ask()["model_version"] == "damaged"
            )
        )
    registry.rollback(world.workdir, world.store, by="test", why="broken")
    eventually(lambda: world.ask()["model_version"] == VERSION)


def test_a_challenger_is_compared_and_nobody_sees_its_answers(world: World) -> None:
    world.decide("shadow", "better", "--share", 1)
    eventually(
        lambda: any(
            (worker["shadow"] or {}).get("challenger") == "better"
            for worker in rollout.workers(world.workdir)
        )
    )
    assert {world.ask(user_id=user)["model_version"] for user in range(30)} == {VERSION}

    def report() -> dict:
        return rollout.shadow_report(world.workdir) or {"compared": 0, "dropped": 0}

    eventually(lambda: report()["compared"] + report()["dropped"] >= 30)
    eventually(
        lambda: world.ask() and report()["compared"] >= 10
    )  # few of a burst, where the challenger has no time
    report = report()
    assert (report["champion"], report["challenger"], report["failed"]) == (VERSION, "better", 0)
    assert (
        report["mean_difference"] > 1e-4
        and -1 <= report["rank_correlation"] <= 1
        and report["latency_ratio"] > 0
    )
    registry.stop_shadow(world.workdir, by="test", why="enough")


def test_the_token_closes_what_reads_data_and_leaves_health_and_metrics_open(world: World) -> None:
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}):
        answer = httpx.post(f"{world.url}/rank", json=BODY, headers=headers)
        assert (
            answer.status_code == 401
            and answer.headers["www-authenticate"] == "Bearer"
            and list(answer.json()) == ["error"]
        )
        assert (
            httpx.get(
                f"{world.url}/page/history?user_id=1&request_time=1", headers=headers
            ).status_code
            == 401
        )
    assert {
        httpx.get(world.url + path).status_code
        for path in ("/", "/docs", "/livez", "/readyz", "/metrics", "/docs.json")
    } == {200}


def test_what_the_page_asks_for(world: World) -> None:
    with httpx.Client(base_url=world.url, headers=AUTHORIZED, timeout=90) as client:
        examples = client.get("/page/examples").json()
        user = examples["users"][0]
        found = client.get(
            "/page/history", params={"user_id": user["user_id"], "request_time": examples["moment"]}
        ).json()
        assert (
            len(found["timestamps"]) == min(48, user["history_length"]) == len(found["lanes"]["of"])
            and found["user_known"]
        )
        assert not client.get("/page/history", params={"user_id": 2**62, "request_time": 1}).json()[
            "user_known"
        ]
        body = {
            "user_id": user["user_id"],
            "candidates": examples["candidates"][:5],
            "request_time": examples["moment"],
        }
        numbers = {
            "user_id": int(user["user_id"]),
            "candidates": [int(each) for each in body["candidates"]],
        }
        before = client.post("/rank", json={**body, **numbers})
        after = client.post(
            "/page/whatif", json={**body, "item_id": body["candidates"][0], "kind": "like"}
        )
        assert after.status_code == 200 and before.json()["scores"] != after.json()["scores"]
        for wrong in (
            {"user_id": "x"},
            {},
            {**body, "item_id": 1, "kind": "no"},
            {**body, "item_id": 1, "candidates": []},
        ):
            answer = client.post("/page/whatif", json=wrong)
            assert answer.status_code == 400 and list(answer.json()) == ["error"]
        assert client.post("/page/whatif", content="[" * 10_000).status_code == 400
        assert (
            client.get(
                "/page/history", params={"user_id": 1, "request_time": 1, "length": -5}
            ).status_code
            == 400
        )


def test_the_page_in_a_browser(world: World) -> None:
    playwright, program = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    expect = playwright.expect
    expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, troubles, asked = browser.new_page(), [], []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console",
            lambda message: (
                troubles.append(message.text) if "Content Security" in message.text else None
            ),
        )
        page.on("request", lambda request: asked.append(request.url))
        page.goto(world.url)
        expect(page.locator("#locked")).to_be_visible()  # nothing is shown without the token
        page.fill("#token", TOKEN)
        page.press("#token", "Tab")
        expect(page.locator("#candidates")).not_to_have_value("")
        page.click("#show")
        expect(page.locator("#scores tr")).to_have_count(40)
        expect(page.locator("#drawn")).to_contain_text("48 events by topic")
        assert _painted(page) > 300
        shown = [
            float(trial) for trial in page.locator("#scores td:nth-child(2)").all_inner_texts()
        ]
        assert shown == sorted(shown, reverse=True) and shown[0] > shown[-1]
        before = _painted(page)
        page.click("#scores tr:first-child")
        expect(page.locator("#events tr")).not_to_have_count(0)
        assert _painted(page) != before  # the marks
        page.click("#more button")
        expect(page.locator("#changed")).to_contain_text("moves most")
        expect(page.locator("#heads th")).to_have_text(["item", "label", "change"])
        page.fill("#user", str(2**62))  # beyond what a float of JavaScript can hold, and unknown
        page.click("#show")
        expect(page.locator("#facts")).to_contain_text("nobody knows this user")
        page.fill("#candidates", "1 x")
        page.click("#show")
        expect(page.locator("#trouble")).to_contain_text("whole number: x")
        page.evaluate("""() => { const n = 10000, of = Array.from({ length: n }, (_, e) => e % 8);
            shown.timestamps = of.map((_, e) => 1e12 + 1e6 * e); shown.lanes = { feature: "topic", names: [..."abcdefgh"], of };
            shown.kinds = { feature: "", names: ["view"], of: of.map(() => 0) };
            marks = new Map(); draw(); }""")
        drawn = [
            float(
                page.evaluate(
                    "() => { draw(); return document.getElementById('timeline').dataset.ms; }"
                )
            )
            for _ in range(9)
        ]
        assert min(drawn) < 500, drawn  # 10,000 events; 5 ms on an idle machine
        browser.close()
    assert not troubles and all(url.startswith(world.url) for url in asked), (troubles, asked)


def _painted(page) -> int:
    """The pixels of the timeline that are not empty."""
    return page.evaluate("""() => { const c = document.getElementById("timeline");
        const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data; let n = 0;
        for (let i = 3; i < pixels.length; i += 4) n += pixels[i] ? pixels[i - 3] + 1 : 0; return n; }""")


def test_every_metric_of_the_dashboard_is_one_of_the_service(world: World) -> None:
    world.ask()
    exposed = {
        line.split()[2]
        for line in httpx.get(f"{world.url}/metrics").text.splitlines()
        if line.startswith("# TYPE")
    }
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "longrec.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    asked = {
        name
        for query in queries
        for name in re.findall(r"(?:longrec|bentoml_service)_[a-z_]+", query)
    }
    assert len(queries) > 20 and len(asked) > 15
    missing = {
        name
        for name in asked
        if name not in exposed and re.sub(r"_(bucket|sum|count)$", "", name) not in exposed
    }
    assert not missing, sorted(missing)
    labels = httpx.get(f"{world.url}/metrics").text
    for used in (
        'http_response_code="200"',
        'endpoint="/rank"',
        f'longrec_model_workers{{version="{VERSION}"',
        'outcome="compared"',
    ):
        assert used in labels, used


def test_answers_are_logged_for_the_drift_job(world: World) -> None:
    world.ask(user_id=3)
    eventually(lambda: any((world.workdir / "requests").glob("*.parquet")))
    rows = pq.read_table(next((world.workdir / "requests").glob("*.parquet")))
    assert {
        "request_id",
        "user_id",
        "timestamp",
        "item_id",
        "history_length",
        "model_version",
        "degraded",
        "label_score",
    } == set(rows.schema.names)


def test_fuzzing_the_interface_from_its_own_description_finds_no_server_error(
    world: World, tmp_path: Path
) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed (extra: ci)")
    # no 503 or 504 either: one caller, who has time (PATIENT) or gave none himself (408)
    expected = '["2xx", "3xx", "4xx"]'
    (tmp_path / "schemathesis.toml").write_text(
        f"[checks]\nnot_a_server_error.expected-statuses = {expected}\n"
    )
    command = [
        str(program),
        "run",
        f"{world.url}/docs.json",
        "--checks",
        "not_a_server_error",
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "60",
        "--seed",
        "1",
        "--header",
        f"Authorization: {AUTHORIZED['Authorization']}",
        "--no-color",
        "--request-timeout",
        "90",
        "--continue-on-failure",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-1_000:]
    assert "/rank" in done.stdout or "POST" in done.stdout or "Tested: " in done.stdout
    assert world.ask()["model_version"] == VERSION  # alive and right
