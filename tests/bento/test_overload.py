"""A service under overload, and after it: a real `bentoml serve` with its default limits.

The load comes from this process, on the same cores as the service. Every number is compared with
the capacity that was measured just before, at 64 connections.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from longrec.release.bento_server import serve_bento
from tests.bento.http_load import Answers, Load
from tests.bento.requests_and_scores import LATE_MS
from tests.conftest import ROOT, ServedWorld

pytestmark = pytest.mark.slow
NUM_CONNECTIONS = 64
SMALL = {"user_id": 1, "candidates": list(range(20)), "request_time": LATE_MS}
LARGE = {**SMALL, "candidates": [number % 120 for number in range(1_000)]}
BACK_SECONDS = 5.0
MIN_SHARE = 0.9
MIN_GOODPUT = 0.8
NUM_ATTEMPTS = 3
"""The cores here are shared: their speed changes by a half between one second and the next."""


@pytest.fixture(scope="module")
def url(served_world: ServedWorld) -> Iterator[str]:
    variables = {"LONGREC_CALLER_REQUESTS": "1000"}  # all requests come from one address
    with serve_bento(
        "bento.service:Ranker",
        workdir=served_world.workdir,
        store=served_world.store,
        folder=ROOT,
        variables=variables,
    ) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def small(url: str) -> Load:
    load = Load(url, SMALL)
    load.keep_busy(4, 1.0)
    return load


@pytest.fixture(scope="module")
def large(url: str) -> Load:
    return Load(url, LARGE)


def measure_recovery(small: Load, before: Answers) -> float:
    """Return the share of the capacity that is back within BACK_SECONDS.

    The full capacity rejects nothing, so a rejection then fails the test.
    """
    after = small.keep_busy(NUM_CONNECTIONS, BACK_SECONDS)
    back = after.between(BACK_SECONDS - 2.0, BACK_SECONDS)
    assert set(back.counts) == {200}, back.counts
    return back.rate / before.rate


@pytest.mark.parametrize("num_connections", [128, 256])
def test_the_full_capacity_is_back_after_an_overload(small: Load, num_connections: int) -> None:
    shares = []
    for _ in range(NUM_ATTEMPTS):
        before = small.keep_busy(NUM_CONNECTIONS, 2.0)
        small.keep_busy(num_connections, 4.0)
        shares.append(measure_recovery(small, before))
        if shares[-1] >= MIN_SHARE:
            return
    pytest.fail(f"shares of the capacity that came back: {shares}")


def test_the_full_capacity_is_back_after_slow_batches(small: Load, large: Load) -> None:
    shares = []
    for _ in range(NUM_ATTEMPTS):
        before = small.keep_busy(NUM_CONNECTIONS, 2.0)
        large.keep_busy(NUM_CONNECTIONS, 3.0)
        shares.append(measure_recovery(small, before))
        if shares[-1] >= MIN_SHARE:
            return
    pytest.fail(f"shares of the capacity that came back: {shares}")


def test_a_lone_burst_of_large_requests_is_not_rejected(large: Load) -> None:
    large.keep_busy(NUM_CONNECTIONS, 2.0)
    burst = large.send_at([2.0] * 16)
    assert burst.counts == {200: 16}


def test_at_twice_the_capacity_most_of_it_is_used(small: Load) -> None:
    shares = []
    for attempt in range(NUM_ATTEMPTS):
        capacity = small.keep_busy(NUM_CONNECTIONS, 2.0).rate
        rate = 2 * capacity
        rng = np.random.default_rng(attempt)
        gaps = rng.exponential(1 / rate, round(5.0 * rate))
        answers = small.send_at(np.cumsum(gaps).tolist())
        assert set(answers.counts) <= {200, 503}
        shares.append(answers.between(0.0, answers.seconds).rate / capacity)
        if shares[-1] >= MIN_GOODPUT:
            return
    pytest.fail(f"goodput as shares of the capacity: {shares}")
