"""The gate in front of an application: rejections before the body is read."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from longrec.serving.admission.concurrency import MAX_REQUESTS, ConcurrencyLimit
from longrec.serving.admission.gate import AdmissionGate, arrival_time

MAX_REJECTION_SECONDS = 0.0003


def make_scope(method: str = "POST", caller: str = "me", kind: str = "http") -> dict:
    headers = [(b"x-caller", caller.encode())]
    return {
        "type": kind,
        "method": method,
        "path": "/rank",
        "headers": headers,
        "client": ("10.0.0.1", 1),
    }


async def receive() -> dict:
    raise AssertionError("the body was read")


async def call(app, scope: dict) -> dict:
    """Return the messages that an application sent, merged."""
    sent = {}

    async def send(message: dict) -> None:
        sent.update(message)

    await app(scope, receive, send)
    return sent


async def answer(scope: dict, receive, send) -> None:
    assert time.monotonic() - arrival_time() < 1
    await send({"type": "http.response.start", "status": 200})


def test_a_request_passes_and_leaves() -> None:
    limit = ConcurrencyLimit(1)
    app = AdmissionGate(limit).before(answer)
    for _ in range(3):
        assert asyncio.run(call(app, make_scope()))["status"] == 200
    assert limit.num_in_progress == 0


def test_a_request_leaves_after_an_error() -> None:
    async def fail(scope, receive, send) -> None:
        raise ValueError("no")

    limit = ConcurrencyLimit(1)
    with pytest.raises(ValueError):
        asyncio.run(call(AdmissionGate(limit).before(fail), make_scope()))
    assert limit.num_in_progress == 0


def test_a_rejection_reads_no_body_and_is_counted() -> None:
    limit = ConcurrencyLimit(1)
    limit.enter("me")
    gate = AdmissionGate(limit)
    reasons = []
    statuses = []
    gate.count_rejected = reasons.append
    gate.count_answer = lambda path, status: statuses.append((path, status))
    app = gate.before(answer)
    sent = asyncio.run(call(app, make_scope()))
    assert sent["status"] == 429
    assert dict(sent["headers"])[b"retry-after"] == b"1"
    assert list(json.loads(sent["body"])) == ["error"]
    for number in range(MAX_REQUESTS - 1):
        limit.enter(str(number))
    assert asyncio.run(call(app, make_scope(caller="you")))["status"] == 503
    assert reasons == ["caller", "overload"]
    assert statuses == [("/rank", 429), ("/rank", 503)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_requests_without_work_always_pass(method: str) -> None:
    limit = ConcurrencyLimit(0)
    app = AdmissionGate(limit).before(answer)
    assert asyncio.run(call(app, make_scope(method)))["status"] == 200


def test_other_protocols_pass() -> None:
    passed = []

    async def note(scope, receive, send) -> None:
        passed.append(scope["type"])

    scope = {"type": "lifespan"}
    asyncio.run(call(AdmissionGate(ConcurrencyLimit(0)).before(note), scope))
    assert passed == ["lifespan"]


def test_a_caller_is_an_address_without_a_name() -> None:
    limit = ConcurrencyLimit(1)
    limit.enter("10.0.0.1")
    scope = {**make_scope(), "headers": []}
    app = AdmissionGate(limit).before(answer)
    assert asyncio.run(call(app, scope))["status"] == 429
    assert asyncio.run(call(app, {**scope, "client": None}))["status"] == 200


def test_a_rejection_costs_microseconds() -> None:
    app = AdmissionGate(ConcurrencyLimit(0)).before(answer)

    async def reject(count: int) -> float:
        started = time.thread_time()
        for _ in range(count):
            await call(app, make_scope())
        return (time.thread_time() - started) / count

    assert asyncio.run(reject(2_000)) < MAX_REJECTION_SECONDS / 3
