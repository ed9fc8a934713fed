"""The service while something beside it fails, or it is told to end: real servers, a real Redis, a
real SQLite file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from longrec.data.histories import Histories
from longrec.data.store.publish import publish
from longrec.release.bento_server import serve_bento
from tests.conftest import PATIENT, ROOT, ServedWorld
from tests.longrec.data import redis_server

pytestmark = pytest.mark.slow
LATE = 1_720_000_000_000


WAIT_SECONDS = 3.0
"""For the store: so long that an answer which did not wait for it is told from one that did, on a
machine under load too.
"""


@contextlib.contextmanager
def served(world: ServedWorld, workdir: Path) -> Iterator[httpx.Client]:
    variables = {**PATIENT, "LONGREC_STORE_TIMEOUT_MS": str(int(WAIT_SECONDS * 1e3))}
    with (
        serve_bento(
            "bento.service:Ranker",
            workdir=workdir,
            store=world.store,
            folder=ROOT,
            variables=variables,
        ) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def body(served_world: ServedWorld) -> dict:
    histories = Histories.open(served_world.path / "histories")
    return {
        "user_id": histories.users.column("user_id")[0].as_py(),
        "request_time": LATE,
        "candidates": histories.items.column("item_id").to_pylist()[:12],
    }


def ask(client: httpx.Client, body: dict) -> dict:
    answer = client.post("/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask_until_healthy(client: httpx.Client, body: dict) -> list[dict]:
    """Returns degraded answers, as many as there are, and then one that is not."""
    answers, limit = [ask(client, body)], time.monotonic() + 60
    while answers[-1]["degraded"]:
        assert time.monotonic() < limit, "the service does not mend itself"
        time.sleep(0.1)
        answers.append(ask(client, body))
    return answers


def timed(client: httpx.Client, body: dict) -> tuple[dict, float]:
    started = time.monotonic()
    return ask(client, body), time.monotonic() - started


def suspend(process: psutil.Process) -> None:
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_a_redis_that_hangs_dies_and_comes_back(served_world, body, tmp_path, monkeypatch) -> None:
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        monkeypatch.setenv("LONGREC_REDIS", address)
        publish(served_world.path / "features", tmp_path / "home", ROOT / "feature_repo")
        (redis,) = (p for p in psutil.Process().children() if p.name() == "redis-server")
        with served(served_world, tmp_path / "home") as client:
            *early, healthy = ask_until_healthy(client, body)
            suspend(redis)
            hung, seconds = zip(*(timed(client, body) for _ in range(6)), strict=True)
            unknown = ask(client, {**body, "user_id": 2**61})
            redis.resume()
            assert all(answer == {**healthy, "degraded": True} for answer in hung), hung
            assert (unknown["degraded"], unknown["history_length"]) == (True, 0)
            assert sum(taken >= WAIT_SECONDS for taken in seconds) <= 2, (
                seconds
            )  # it hangs, and that is known; not a wait for each
            *mending, mended = ask_until_healthy(client, body)
            assert mended == healthy
            redis.kill()
            redis.wait(10)
            gone = ask(client, body)
            assert gone == {**healthy, "degraded": True}
            kept = sum(answer["history_length"] > 0 for answer in (*early, *hung, *mending, gone))
            counted = client.get("/metrics").text
            assert f'longrec_degraded_total{{history="kept"}} {kept}.0' in counted, counted
            with redis_server.running(tmp_path, port=int(address.split(":")[1])):
                empty = ask_until_healthy(client, body)[-1]
                assert (
                    empty["history_length"] == 0
                )  # it came back without its data: that is what it says now


def test_an_sqlite_file_of_garbage(served_world, body, tmp_path) -> None:
    publish(served_world.path / "features", tmp_path / "home", ROOT / "feature_repo")
    database = tmp_path / "home" / "feast" / "online.db"
    content = database.read_bytes()
    with served(served_world, tmp_path / "home") as client:
        healthy = ask_until_healthy(client, body)[-1]
        database.write_bytes(np.random.default_rng(0).bytes(len(content)))
        assert ask(client, body) == {**healthy, "degraded": True}
        database.write_bytes(content)
        assert ask_until_healthy(client, body)[-1] == healthy


def test_sigterm_ends_what_was_accepted(served_world, body) -> None:
    """Requests under way are answered, all of them; the process ends by itself, with nothing left
    behind.
    """
    with served(served_world, served_world.workdir) as client:
        (process,) = (p for p in psutil.Process().children() if "bentoml" in p.cmdline())
        family = [process, *process.children(recursive=True)]
        large = {**body, "candidates": body["candidates"] * 170}
        alone = ask(client, large)
        connections = [
            http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
            for _ in range(24)
        ]
        for (
            connection
        ) in connections:  # each one is accepted before any is asked what takes its time
            connection.request("GET", "/readyz")
            assert connection.getresponse().read() is not None
        for connection in connections:
            connection.request(
                "POST", "/rank", json.dumps(large), {"Content-Type": "application/json"}
            )
        process.terminate()
        for answer in [connection.getresponse() for connection in connections]:
            assert answer.status == 200, answer.read()
            np.testing.assert_allclose(
                json.load(answer)["scores"]["label"], alone["scores"]["label"], atol=2e-6
            )
        assert psutil.wait_procs(family, timeout=60)[1] == []
        with pytest.raises(httpx.ConnectError):
            ask(client, body)
