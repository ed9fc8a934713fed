"""Admission control: which requests are rejected, and what the cost model learns."""

from __future__ import annotations

import threading
import time

import pytest

from longrec.serving.admission import (
    FEW_PAIRS,
    MANY_EVENTS,
    MANY_PAIRS,
    AdmissionControl,
    CostModel,
    EngineClosed,
    Limits,
    Overloaded,
    TooManyRequests,
)


def control(**limits: float) -> AdmissionControl:
    return AdmissionControl(Limits(**limits), CostModel(), threading.Condition())


def test_requests_above_the_limits_are_rejected_before_any_work() -> None:
    admission = control(queue_requests=4, caller_requests=3, queue_seconds=1_000.0)
    tickets = [admission.admit(5, 40, is_cached=True, caller="a") for _ in range(3)]
    with pytest.raises(TooManyRequests) as rejected:
        admission.admit(5, 40, is_cached=True, caller="a")
    assert rejected.value.retry_after_seconds > 0
    tickets.append(admission.admit(5, 40, is_cached=True, caller="b"))
    with pytest.raises(Overloaded) as rejected:
        admission.admit(5, 40, is_cached=True, caller="c")
    assert not isinstance(rejected.value, TooManyRequests)
    for ticket in tickets:
        admission.release(ticket)
    assert admission.num_in_progress == 0
    assert admission.seconds_in_progress == 0.0


def test_a_request_alone_is_tried_however_large_it_is() -> None:
    admission = control()
    large = admission.admit(2_000, 10**9, is_cached=True)
    deadline = time.monotonic() + 5
    with pytest.raises(Overloaded):
        admission.admit(1, 1, is_cached=True, deadline=deadline)
    admission.release(large)
    admission.release(admission.admit(1, 1, is_cached=True, deadline=deadline))


def test_a_closed_engine_admits_nothing() -> None:
    admission = control()
    ticket = admission.admit(1, 1, is_cached=True)
    admission.close()
    with pytest.raises(EngineClosed):
        admission.admit(1, 1, is_cached=True)
    assert admission.num_in_progress == 1
    admission.release(ticket)
    assert admission.num_in_progress == 0


def test_a_slower_measurement_moves_a_cost_further_than_a_faster_one() -> None:
    costs = CostModel()
    before = costs.event_seconds
    costs.learn_encoding(MANY_EVENTS + 1, 2 * before * (MANY_EVENTS + 1))
    slower = costs.event_seconds
    assert slower == pytest.approx(1.5 * before)
    costs.learn_encoding(MANY_EVENTS + 1, 0.0)
    assert costs.event_seconds == pytest.approx(0.8 * slower)


def test_a_batch_teaches_the_cost_that_dominates_it() -> None:
    costs = CostModel()
    costs.learn_scoring(num_requests=2, num_pairs=FEW_PAIRS - 1, seconds=0.04)
    assert costs.request_seconds > CostModel().request_seconds
    assert costs.pair_seconds == CostModel().pair_seconds
    costs = CostModel()
    costs.learn_scoring(num_requests=2, num_pairs=MANY_PAIRS, seconds=10.0)
    assert costs.pair_seconds > CostModel().pair_seconds
    assert costs.request_seconds == CostModel().request_seconds
