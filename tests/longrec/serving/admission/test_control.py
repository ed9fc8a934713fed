"""Admission control of an engine: which decoded requests are rejected."""

from __future__ import annotations

import threading
import time

import pytest

from longrec.serving.admission.control import AdmissionControl
from longrec.serving.admission.cost_model import CostModel
from longrec.serving.admission.errors import EngineClosed, Overloaded
from longrec.serving.admission.limits import Limits


def control(queue_seconds: float = 1.0) -> AdmissionControl:
    limits = Limits(queue_seconds=queue_seconds)
    return AdmissionControl(limits, CostModel(), threading.Condition())


def test_too_much_work_is_rejected_before_any_more_of_it() -> None:
    admission = control(queue_seconds=0.012)
    tickets = [admission.admit(5, 40, is_cached=True) for _ in range(3)]
    with pytest.raises(Overloaded) as rejected:
        admission.admit(5, 40, is_cached=True)
    assert rejected.value.retry_after_seconds > 0
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


def test_a_request_that_would_be_late_is_rejected() -> None:
    admission = control(queue_seconds=60.0)
    for _ in range(20):
        admission.admit(5, 40, is_cached=True)
    with pytest.raises(Overloaded):
        admission.admit(5, 40, is_cached=True, deadline=time.monotonic() + 0.1)
    admission.admit(5, 40, is_cached=True, deadline=time.monotonic() + 5)


def test_a_closed_engine_admits_nothing() -> None:
    admission = control()
    ticket = admission.admit(1, 1, is_cached=True)
    admission.close()
    with pytest.raises(EngineClosed):
        admission.admit(1, 1, is_cached=True)
    assert admission.num_in_progress == 1
    admission.release(ticket)
    assert admission.num_in_progress == 0
