"""The rows of one request, with a fake reader and no engine."""

from __future__ import annotations

import asyncio
import contextlib
import math
from types import SimpleNamespace

import numpy as np

from bento.ranking import RequestRanker
from longrec.data import history
from longrec.data.store.user_record import UserRecord
from longrec.serving.reader import FetchResult
from longrec.serving.requests import RankRequest
from tests.longrec import small_histories

INLINE_HISTORY = {"item_id": [1, 2], "timestamp": [10, 20]}


class FakeReader:
    """A reader whose store is down, without cached rows."""

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


def test_an_inline_history_does_not_count_as_cached_while_the_store_is_down() -> None:
    metrics = FakeMetrics()
    ranker = RequestRanker(models=None, reader=FakeReader(), metrics=metrics, log=None)
    bundle = SimpleNamespace(schema=small_histories.SCHEMA)
    engine = SimpleNamespace(scorer=SimpleNamespace(bundle=bundle))
    request = RankRequest(1, np.array([5]), inline_history=INLINE_HISTORY)
    fetched, encoded = asyncio.run(ranker._read_user(engine, request, math.inf))
    assert fetched.degraded
    assert encoded.rows.history.num_rows == 2
    assert metrics.degraded == [0]
