"""No body gives 500 or ends a worker: JSON and Arrow bodies, valid ones and damaged ones."""

from __future__ import annotations

import collections
import json
import time
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from longrec.serving.arrow_codec import write_request
from tests.bento.conftest import ServedUser
from tests.bento.http.arrow_mutations import Bodies, damage, seal
from tests.bento.http.json_mutations import history_parameters, random_body

pytestmark = pytest.mark.slow
NUM_ARROW_BODIES = 800
NUM_JSON_BODIES = 500
MAX_SECONDS = 20.0
"""Longest answer, on a busy machine too; no body waits for the deadline of 60 s."""
MAX_GROWTH_BYTES = 256 << 20
"""Largest growth of a worker: caches and buffers, no decompressed zeros."""
STATUSES = {200, 400, 408}


@pytest.fixture
def service(client: httpx.Client) -> httpx.Client:
    """A client of a service that must be alive, and not much larger, after the test."""
    before = workers()
    yield client
    after = workers()
    assert client.get("/readyz").status_code == 200
    assert list(after) == list(before), "a worker has ended"
    for process, num_bytes in after.items():
        assert num_bytes - before[process] < MAX_GROWTH_BYTES


def workers() -> dict[int, int]:
    """Return the resident bytes of each process of the service."""
    children = psutil.Process().children(recursive=True)
    return {process.pid: process.memory_info().rss for process in children}


def post(
    client: httpx.Client,
    path: str,
    content: bytes,
    seed: int,
) -> int:
    """Return the status of an answer, which is none of a failed service."""
    started = time.monotonic()
    response = client.post(path, content=content)
    assert response.status_code in STATUSES, (path, seed, response.text)
    assert time.monotonic() - started < MAX_SECONDS, (path, seed)
    return response.status_code


def test_no_arrow_body_breaks_the_service(
    service: httpx.Client,
    scorer: Any,
    user: ServedUser,
    items: list[int],
) -> None:
    bodies = Bodies(scorer.bundle.schema, user.timeline, items)
    warm_up(service)
    statuses = collections.Counter[int]()
    for seed in range(NUM_ARROW_BODIES):
        rng = np.random.default_rng(seed)
        candidates, events = bodies.valid(rng) if rng.random() < 0.5 else bodies.odd(rng)
        if events and rng.random() < 0.6:
            events = damage(events, rng)
        elif rng.random() < 0.7:
            candidates = damage(candidates, rng)
        statuses[post(service, "/rank_arrow", candidates + seal(events), seed)] += 1
    assert statuses[200] > 30, "nothing was valid"
    assert statuses[400] > 300, "nothing was damaged"


def test_no_json_body_breaks_the_service(service: httpx.Client) -> None:
    warm_up(service)
    statuses = collections.Counter[tuple[str, int]]()
    for seed in range(NUM_JSON_BODIES):
        rng = np.random.default_rng(seed)
        path = str(rng.choice(["/rank", "/explain", "/page/whatif"]))
        status = post(service, path, random_body(path, rng), seed)
        statuses[path, status] += 1
        response = service.get("/page/history", params=history_parameters(rng))
        assert response.status_code in STATUSES, (seed, response.text)
    for path in ("/rank", "/explain", "/page/whatif"):
        assert statuses[path, 200] > 10, "nothing was valid"
        assert statuses[path, 400] > 30, "nothing was odd"


def warm_up(client: httpx.Client) -> None:
    """Send one request of each kind, so the memory of caches and buffers is taken."""
    rank = {"user_id": 1, "candidates": list(range(2_000))}
    assert client.post("/rank", content=json.dumps(rank)).status_code == 200
    arrow = write_request(range(2_000), {"user_id": 1})
    assert client.post("/rank_arrow", content=arrow).status_code == 200
