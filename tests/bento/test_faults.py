"""The service while its feature store fails, or while it stops: a real Redis and SQLite."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import sqlite3
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
from tests.bento.requests_and_scores import LATE_MS, TOLERANCE
from tests.conftest import PATIENT, ROOT, ServedWorld
from tests.longrec.data import redis_server

pytestmark = pytest.mark.slow
WAIT_SECONDS = 3.0
"""Longest wait for the store: even a busy machine answers much sooner without that wait."""


@contextlib.contextmanager
def served(world: ServedWorld, workdir: Path) -> Iterator[httpx.Client]:
    """Yield a client of a service on a work directory."""
    timeout_ms = str(int(WAIT_SECONDS * 1e3))
    server = serve_bento(
        "bento.service:Ranker",
        workdir=workdir,
        store=world.store,
        folder=ROOT,
        variables={**PATIENT, "LONGREC_STORE_TIMEOUT_MS": timeout_ms},
    )
    with server as (host, port):
        url = f"http://{host}:{port}"
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client


@pytest.fixture(scope="module")
def body(served_world: ServedWorld) -> dict:
    histories = Histories.open(served_world.path / "histories")
    return {
        "user_id": histories.users.column("user_id")[0].as_py(),
        "request_time": LATE_MS,
        "candidates": histories.items.column("item_id").to_pylist()[:12],
    }


def rank(client: httpx.Client, body: dict) -> dict:
    response = client.post("/rank", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def rank_until_healthy(client: httpx.Client, body: dict) -> list[dict]:
    """Return degraded answers, if any, and the first one that is not."""
    answers = [rank(client, body)]
    limit = time.monotonic() + 60
    while answers[-1]["degraded"]:
        assert time.monotonic() < limit, "the service does not recover"
        time.sleep(0.1)
        answers.append(rank(client, body))
    return answers


def timed_rank(client: httpx.Client, body: dict) -> tuple[dict, float]:
    started = time.monotonic()
    answer = rank(client, body)
    return answer, time.monotonic() - started


def suspend(process: psutil.Process) -> None:
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_a_redis_that_hangs_dies_and_comes_back(served_world, body, tmp_path, monkeypatch) -> None:
    workdir = tmp_path / "home"
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        monkeypatch.setenv("LONGREC_REDIS", address)
        publish(served_world.path / "features", workdir, ROOT / "feature_repo")
        children = psutil.Process().children()
        (redis,) = (process for process in children if process.name() == "redis-server")
        with served(served_world, workdir) as client:
            *early, healthy = rank_until_healthy(client, body)
            degraded = {**healthy, "degraded": True}
            suspend(redis)
            hung, seconds = zip(*(timed_rank(client, body) for _ in range(6)), strict=True)
            unknown = rank(client, {**body, "user_id": 2**61})
            redis.resume()
            assert all(answer == degraded for answer in hung), hung
            assert (unknown["degraded"], unknown["history_length"]) == (True, 0)
            # The service knows that the store hangs: not every request waits for it.
            assert sum(waited >= WAIT_SECONDS for waited in seconds) <= 2, seconds
            *recovering, recovered = rank_until_healthy(client, body)
            assert recovered == healthy
            redis.kill()
            redis.wait(10)
            gone = rank(client, body)
            assert gone == degraded
            answers = (*early, *hung, *recovering, gone)
            num_cached = sum(answer["history_length"] > 0 for answer in answers)
            metrics = client.get("/metrics").text
            assert f'longrec_degraded_total{{history="cached"}} {num_cached}.0' in metrics, metrics
            with redis_server.running(tmp_path, port=int(address.split(":")[1])):
                # The store came back without its data: nobody is an unknown user for that.
                for _ in range(6):
                    assert rank(client, body) == degraded
                    time.sleep(0.2)


def test_an_sqlite_file_of_garbage_a_replaced_one_and_an_emptied_one(
    served_world, body, tmp_path
) -> None:
    workdir = tmp_path / "home"
    publish(served_world.path / "features", workdir, ROOT / "feature_repo")
    database = workdir / "feast" / "online.db"
    content = database.read_bytes()
    with served(served_world, workdir) as client:
        healthy = rank_until_healthy(client, body)[-1]
        database.write_bytes(np.random.default_rng(0).bytes(len(content)))
        assert rank(client, body) == {**healthy, "degraded": True}
        database.write_bytes(content)
        assert rank_until_healthy(client, body)[-1] == healthy
        replace_file(database)
        assert rank_until_healthy(client, body)[-1] == healthy
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("delete from longrec_user_history")
            connection.execute("delete from longrec_user_features")
            connection.commit()
        unknown = rank(client, {**body, "user_id": 2**61})
        assert (unknown["degraded"], unknown["history_length"]) == (True, 0)
        assert rank(client, body) == {**healthy, "degraded": True}
        database.write_bytes(content)
        assert rank_until_healthy(client, body)[-1] == healthy


def replace_file(path: Path) -> None:
    """Move a copy of a file into its place."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    os.replace(copy, path)


def test_sigterm_finishes_the_accepted_requests(served_world, body) -> None:
    """All requests in progress are answered; the process ends by itself and leaves no child."""
    with served(served_world, served_world.workdir) as client:
        server = server_of(client)
        family = [server, *server.children(recursive=True)]
        large = {**body, "candidates": body["candidates"] * 170}
        alone = rank(client, large)
        connections = open_connections(client, 24)
        for connection in connections:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/rank", json.dumps(large), headers)
        server.terminate()
        responses = [connection.getresponse() for connection in connections]
        for response in responses:
            assert response.status == 200, response.read()
            scores = json.load(response)["scores"]["label"]
            np.testing.assert_allclose(
                scores,
                alone["scores"]["label"],
                atol=TOLERANCE,
            )
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
        with pytest.raises(httpx.ConnectError):
            rank(client, body)


def server_of(client: httpx.Client) -> psutil.Process:
    """Return the `bentoml serve` that a client talks to; other tests may have one of their own."""
    port = str(client.base_url.port)
    children = psutil.Process().children()
    (server,) = (process for process in children if port in process.cmdline())
    return server


def open_connections(client: httpx.Client, count: int) -> list[http.client.HTTPConnection]:
    """Return connections that the server has accepted, each by a request that takes no time."""
    host = client.base_url.host
    port = client.base_url.port
    connections = [http.client.HTTPConnection(host, port, timeout=60) for _ in range(count)]
    for connection in connections:
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() is not None
    return connections
