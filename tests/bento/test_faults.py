"""The service while something beside it fails, or it is told to end: real servers, a real Redis, a real SQLite file."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from longrec.data import store
from longrec.data.histories import Histories
from longrec.parity import serving
from tests.conftest import ROOT, ServedWorld
from tests.longrec.data import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LATE = 1_720_000_000_000


@contextlib.contextmanager
def served(world: ServedWorld, home: Path) -> Iterator[httpx.Client]:
    with serving("bento.service:Ranker", home=home, store=world.store, folder=ROOT) as (host, port), \
            httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def body(served_world: ServedWorld) -> dict:
    histories = Histories.open(served_world.path / "histories")
    return {"user_id": histories.users.column("user_id")[0].as_py(), "request_time": LATE,
            "candidates": histories.items.column("item_id").to_pylist()[:12]}


def ask(client: httpx.Client, body: dict) -> dict:
    answer = client.post("/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask_until_healthy(client: httpx.Client, body: dict) -> dict:
    for _ in range(100):
        if not (answer := ask(client, body))["degraded"]:
            return answer
        time.sleep(0.1)
    raise AssertionError("the service does not mend itself")


def test_a_redis_that_hangs_dies_and_comes_back(served_world, body, tmp_path, monkeypatch) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server.running(tmp_path / "redis") as address:
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        monkeypatch.setenv("LONGREC_REDIS", address)
        store.publish(served_world.path / "features", tmp_path / "home", ROOT / "feature_repo")
        (redis,) = (p for p in psutil.Process().children() if p.name() == "redis-server")
        with served(served_world, tmp_path / "home") as client:
            healthy = ask_until_healthy(client, body)
            redis.suspend()
            hung, seconds = [], []
            for _ in range(5):
                started = time.monotonic()
                hung.append(ask(client, body))
                seconds.append(time.monotonic() - started)
            unknown = ask(client, {**body, "user_id": 2**61})
            redis.resume()
            assert all(answer == {**healthy, "degraded": True} for answer in hung), hung
            assert (unknown["degraded"], unknown["history_length"]) == (True, 0)
            assert max(seconds) < 2 and max(seconds[2:]) < 0.5, seconds  # one wait for the store, not one for each
            assert ask_until_healthy(client, body) == healthy
            redis.kill()
            redis.wait(10)
            assert ask(client, body) == {**healthy, "degraded": True}
            counted = client.get("/metrics").text
            assert 'longrec_degraded_total{history="kept"} 6.0' in counted, counted
            host, port = address.split(":")
            with subprocess.Popen(["redis-server", "--bind", host, "--port", port, "--save", "", "--appendonly", "no"],
                                  cwd=tmp_path, stdout=subprocess.DEVNULL) as again:
                try:
                    time.sleep(1)
                    empty = ask_until_healthy(client, body)
                    assert empty["history_length"] == 0  # it came back without its data: that is what it says now
                finally:
                    again.kill()


def test_an_sqlite_file_of_garbage(served_world, body, tmp_path) -> None:
    store.publish(served_world.path / "features", tmp_path / "home", ROOT / "feature_repo")
    database = tmp_path / "home" / "feast" / "online.db"
    content = database.read_bytes()
    with served(served_world, tmp_path / "home") as client:
        healthy = ask_until_healthy(client, body)
        database.write_bytes(np.random.default_rng(0).bytes(len(content)))
        assert ask(client, body) == {**healthy, "degraded": True}
        database.write_bytes(content)
        assert ask_until_healthy(client, body) == healthy


def test_sigterm_ends_what_was_accepted(served_world, body, tmp_path) -> None:
    """Requests under way are answered; the process ends by itself, with nothing left behind."""
    environment = {**served_world.environment, "LONGREC_TIMEOUT_MS": "30000"}
    with httpx.Client(timeout=30) as client, (tmp_path / "log").open("w") as log:
        with free_port() as port:
            pass
        process = subprocess.Popen([sys.executable, "-m", "bentoml", "serve", "bento.service:Ranker", "--port", str(port)], cwd=ROOT,
                                   env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{url}/readyz").status_code == 200:
                        break
                time.sleep(0.2)
            large = {**body, "candidates": body["candidates"] * 170}
            alone = client.post(f"{url}/rank", json=large).json()
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                answers = [pool.submit(httpx.post, f"{url}/rank", json=large, timeout=30) for _ in range(24)]
                time.sleep(0.25)
                os.kill(process.pid, signal.SIGTERM)
                done = [future.exception() or future.result() for future in answers]
            accepted = [answer for answer in done if isinstance(answer, httpx.Response)]
            assert accepted and all(answer.status_code in (200, 503) for answer in accepted), [answer.text[:200] for answer in accepted]
            assert sum(answer.status_code == 200 for answer in accepted) > 0
            for answer in accepted:
                if answer.status_code == 200:
                    np.testing.assert_allclose(answer.json()["scores"]["label"], alone["scores"]["label"], atol=2e-6)
            assert all(isinstance(answer, (httpx.Response, httpx.ConnectError)) for answer in done), done  # refused, not broken off
            process.wait(30)
        finally:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]
