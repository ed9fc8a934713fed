"""Requests to the service, and the scores that it should return."""

from __future__ import annotations

import time

import httpx
import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.bento.conftest import ServedUser

UNKNOWN_USER = 2**62
UNKNOWN_ITEM = -(2**63)
LATE_MS = 1_720_000_000_000
"""A time after all events. Scores also depend on the hour and the weekday of the request."""
TOLERANCE = 2e-6


def rank(client: httpx.Client, **body: object) -> dict:
    """Return the answer of POST /rank."""
    response = client.post("/rank", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def score_rows(
    scorer: Scorer,
    rows: RequestRows,
    length: int | None = None,
) -> np.ndarray:
    """Return the first task's scores of a cold computation."""
    return scorer.score([rows], length)[0][:, 0]


def score_user(
    scorer: Scorer,
    user: ServedUser,
    items: list[int],
    request_time_ms: int,
    length: int | None = None,
) -> np.ndarray:
    """Return the first task's scores over the events strictly before the request time."""
    events = history.events_before(user.timeline, request_time_ms)
    candidates = np.array(items, np.int64)
    rows = RequestRows(events, user.features, request_time_ms, candidates)
    return score_rows(scorer, rows, length)


def score_events(
    scorer: Scorer,
    events: pa.RecordBatch,
    items: list[int],
    features: dict | None = None,
) -> np.ndarray:
    """Return the first task's scores over these events, late."""
    rows = RequestRows(events, features, LATE_MS, np.array(items))
    return score_rows(scorer, rows)


def assert_scores(answer: dict, expected: np.ndarray) -> None:
    """Assert the scores of an answer."""
    np.testing.assert_allclose(
        answer["scores"]["label"],
        expected,
        atol=TOLERANCE,
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000
