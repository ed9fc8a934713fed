"""The rows of one request, with a fake reader and no engine."""

from __future__ import annotations

import asyncio
import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest

from bento.ranking import RequestRanker
from longrec.data import history
from longrec.data.store.user_record import UserRecord
from longrec.serving.requests import RankRequest
from longrec.serving.store_reader import FetchResult
from tests.longrec import small_histories

INLINE_HISTORY = {"item_id": [1, 2], "timestamp": [10, 20]}


class FakeReader:
    """A reader whose store is down, without cached rows."""

    def num_events(self, user_id: int) -> None:
        return None

    async def fetch(self, user_id: int, timeout_seconds: float) -> FetchResult:
        rows = UserRecord(user_id, history.empty(small_histories.SCHEMA), None)
        return FetchResult(rows, degraded="the store is down")


class FakeMetrics:
    """Metrics that remember the history lengths of degraded answers."""

    def __init__(self) -> None:
        self.degraded = []

    def timed(self, stage: str) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def count_degraded(self, num_events: int) -> None:
        self.degraded.append(num_events)


class FakeAdmission:
    """An admission control that admits everything and remembers the numbers of events."""

    def __init__(self) -> None:
        self.num_events = []

    def admit(self, num_candidates: int, num_events: int, **_options: object) -> None:
        self.num_events.append(num_events)

    def release(self, ticket: None) -> None:
        pass


def make_engine() -> SimpleNamespace:
    """Return the parts of an engine that a request reads before it is ranked."""
    bundle = SimpleNamespace(schema=small_histories.SCHEMA, served_length=40)
    scorer = SimpleNamespace(bundle=bundle)
    return SimpleNamespace(scorer=scorer, admission=FakeAdmission(), mean_events=7, cache=())


def make_ranker(metrics: FakeMetrics | None = None) -> RequestRanker:
    return RequestRanker(models=None, reader=FakeReader(), metrics=metrics, log=None)


@pytest.mark.parametrize(
    ("inline_history", "num_expected"),
    [(None, 7), (INLINE_HISTORY, 2), ({}, 0), ({"item_id": [1] * 100}, 40), (b"packed", 40)],
)
def test_a_request_is_admitted_for_the_events_that_it_will_use(
    inline_history: object,
    num_expected: int,
) -> None:
    engine = make_engine()
    request = RankRequest(1, np.array([5]), inline_history=inline_history)
    with make_ranker()._admitted(engine, request, math.inf):
        assert engine.admission.num_events == [num_expected]


def test_an_inline_history_does_not_count_as_cached_while_the_store_is_down() -> None:
    metrics = FakeMetrics()
    ranker = make_ranker(metrics)
    engine = make_engine()
    request = RankRequest(1, np.array([5]), inline_history=INLINE_HISTORY)
    fetched, encoded = asyncio.run(ranker._read_user(engine, request, math.inf))
    assert fetched.degraded
    assert encoded.rows.history.num_rows == 2
    assert metrics.degraded == [0]
