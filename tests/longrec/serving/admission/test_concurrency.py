"""The concurrency limit, with a clock of its own and a service that is simulated."""

from __future__ import annotations

import heapq
import itertools

import pytest

from longrec.serving.admission.concurrency import (
    INTERVAL_SECONDS,
    MAX_REQUESTS,
    MIN_REQUESTS,
    ConcurrencyLimit,
)
from longrec.serving.admission.errors import Overloaded, TooManyRequests

TARGET_SECONDS = 1.0


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Simulation:
    """Callers in a closed loop, and a service that answers one request after another.

    Callers that are rejected try again after `retry_seconds`.
    """

    def __init__(self, retry_seconds: float = 0.02) -> None:
        self.clock = Clock()
        self.limit = ConcurrencyLimit(MAX_REQUESTS, self.clock)
        self._retry_seconds = retry_seconds
        self._is_free_at = 0.0

    def run(
        self,
        num_callers: int,
        seconds: float,
        request_seconds: float,
    ) -> int:
        """Return the number of answers."""
        ends = self.clock.now + seconds
        order = itertools.count()
        events = [(self.clock.now, next(order), None) for _ in range(num_callers)]
        num_answers = 0
        while events:
            self.clock.now, _, arrived_at = heapq.heappop(events)
            if arrived_at is not None:
                num_answers += self.clock.now <= ends
                self._answer(arrived_at)
            if self.clock.now >= ends:
                continue
            arrived_at = self._enter()
            due = self.clock.now + self._retry_seconds
            if arrived_at is not None:
                self._is_free_at = max(self._is_free_at, self.clock.now) + request_seconds
                due = self._is_free_at
            heapq.heappush(events, (due, next(order), arrived_at))
        return num_answers

    def _enter(self) -> float | None:
        try:
            self.limit.enter("")
        except Overloaded:
            return None
        return self.clock.now

    def _answer(self, arrived_at: float) -> None:
        self.limit.leave("")
        self.limit.observe(arrived_at, self.clock.now - arrived_at, TARGET_SECONDS)


def test_more_requests_than_the_limit_are_rejected() -> None:
    limit = ConcurrencyLimit(1_000, Clock())
    for _ in range(MAX_REQUESTS):
        limit.enter("a")
    with pytest.raises(Overloaded) as rejected:
        limit.enter("b")
    assert not isinstance(rejected.value, TooManyRequests)
    limit.leave("a")
    limit.enter("b")


def test_one_caller_cannot_take_all() -> None:
    limit = ConcurrencyLimit(2, Clock())
    limit.enter("a")
    limit.enter("a")
    with pytest.raises(TooManyRequests):
        limit.enter("a")
    limit.enter("b")
    limit.leave("a")
    limit.enter("a")
    assert limit.num_in_progress == 3


@pytest.mark.parametrize("num_callers", [128, 256, 1_000])
@pytest.mark.parametrize("request_seconds", [0.003, 0.01, 0.03])
def test_the_full_capacity_is_back_after_an_overload(
    num_callers: int,
    request_seconds: float,
) -> None:
    simulation = Simulation()
    before = simulation.run(64, 8.0, request_seconds)
    simulation.run(num_callers, 10.0, request_seconds)
    simulation.clock.now += 1.0
    after = simulation.run(64, 8.0, request_seconds)
    assert after >= 0.97 * before


def test_the_full_capacity_is_back_after_slow_requests() -> None:
    simulation = Simulation()
    before = simulation.run(64, 5.0, 0.005)
    simulation.run(64, 20.0, 1.0)
    assert simulation.limit.limit() <= 32
    after = simulation.run(64, 5.0, 0.005)
    assert after >= 0.9 * before


def test_the_model_stays_busy_during_an_overload() -> None:
    simulation = Simulation()
    answers = simulation.run(512, 10.0, 0.01)
    assert answers >= 0.97 * 10.0 / 0.01


def test_an_overload_keeps_the_time_of_answers_near_the_target() -> None:
    simulation = Simulation()
    simulation.run(512, 10.0, 0.01)
    assert 0.4 * 100 < simulation.limit.limit() < 1.5 * 100


def test_a_lone_burst_is_not_rejected_after_slow_requests_and_a_rest() -> None:
    simulation = Simulation()
    simulation.run(64, 20.0, 1.0)
    simulation.clock.now += 5.0
    for _ in range(MAX_REQUESTS):
        simulation.limit.enter("")


def test_a_few_slow_requests_do_not_lower_the_limit() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(64, clock)
    for _ in range(3):
        limit.enter("")
    clock.now += 10.0
    limit.observe(0.0, 10.0, TARGET_SECONDS)
    clock.now += INTERVAL_SECONDS
    assert limit.limit() == MAX_REQUESTS


def test_one_overload_lowers_the_limit_once() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(MAX_REQUESTS, clock)
    for _ in range(64):
        limit.enter("")
    clock.now = 2.0
    limit.observe(0.0, 2.0, TARGET_SECONDS)
    clock.now += INTERVAL_SECONDS
    assert limit.limit() == 32
    for _ in range(5):  # these arrived before the limit fell
        limit.observe(1.0, clock.now - 1.0, TARGET_SECONDS)
        clock.now += INTERVAL_SECONDS
    assert limit.limit() == 32


def test_the_limit_stays_within_its_bounds() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(MAX_REQUESTS, clock)
    for _ in range(64):
        limit.enter("")
    for _ in range(100):
        limit.observe(clock.now, 1e9, TARGET_SECONDS)
        clock.now += INTERVAL_SECONDS
        assert limit.limit() >= MIN_REQUESTS
    for _ in range(64):
        limit.leave("")
    clock.now += 1e9
    assert limit.limit() == MAX_REQUESTS
