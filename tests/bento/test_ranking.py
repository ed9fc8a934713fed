"""The rows of one request, with a fake reader and no engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bento.ranking import RequestRanker, _Period
from longrec.data import history
from longrec.data.store.user_record import UserRecord
from longrec.errors import DataError
from longrec.schema import Schema
from longrec.serving.admission.control import Ticket
from longrec.serving.admission.errors import DeadlineExceeded, Overloaded
from longrec.serving.requests import EncodedRequest, RankRequest
from longrec.serving.store_reader import FetchResult
from tests.longrec import small_histories

TIME_MS = 1_700_000_000_000
ORIGIN_MS = 946_684_800_000
INLINE_HISTORY = {"item_id": [1, 2], "timestamp": [TIME_MS, TIME_MS + 10]}


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

    def timed(self, stage: str, trace: object = None) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def observe_admission(self, concurrency_limit: int, estimated_seconds: float) -> None:
        pass

    def count_degraded(self, num_events: int) -> None:
        self.degraded.append(num_events)


class FakeAdmission:
    """An admission control that admits everything and remembers the numbers of events."""

    def __init__(self) -> None:
        self.num_events = []
        self.is_full = False
        self.seconds_in_progress = 2.0

    def admit(self, num_candidates: int, num_events: int, **_options: object) -> Ticket:
        self.num_events.append(num_events)
        if self.is_full:
            raise Overloaded("too much work", retry_after_seconds=1.0)
        return Ticket(seconds=0.0)

    def release(self, ticket: Ticket) -> None:
        pass


class FakeConcurrency:
    """A concurrency limit that remembers shares of the target time."""

    def __init__(self) -> None:
        self.ratios = []

    def limit(self) -> int:
        return 1

    def observe(self, arrived_at: float, seconds: float, target_seconds: float) -> None:
        self.ratios.append(seconds / target_seconds)


def make_engine() -> SimpleNamespace:
    """Return the parts of an engine that a request reads before it is ranked."""
    bundle = SimpleNamespace(schema=small_histories.SCHEMA, served_length=40)
    scorer = SimpleNamespace(bundle=bundle)
    return SimpleNamespace(scorer=scorer, admission=FakeAdmission(), mean_events=7, cache=())


def make_ranker(metrics: FakeMetrics | None = None) -> RequestRanker:
    return RequestRanker(
        models=None,
        concurrency=FakeConcurrency(),
        reader=FakeReader(),
        metrics=metrics or FakeMetrics(),
        log=None,
    )


def make_period(timeout_seconds: float = 5.0, age_seconds: float = 0.0) -> _Period:
    arrived_at = time.monotonic() - age_seconds
    return _Period(arrived_at, arrived_at + timeout_seconds)


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
    with make_ranker()._admitted(engine, request, make_period()):
        assert engine.admission.num_events == [num_expected]


REQUEST = RankRequest(1, np.array([5]))


def test_the_concurrency_limit_learns_how_long_an_answer_took() -> None:
    ranker = make_ranker()
    with ranker._admitted(make_engine(), REQUEST, make_period(age_seconds=0.5)):
        pass
    assert ranker.concurrency.ratios == pytest.approx([0.5], abs=0.2)


def test_a_rejection_and_a_missed_deadline_count_as_too_long() -> None:
    ranker = make_ranker()
    engine = make_engine()
    with pytest.raises(DeadlineExceeded), ranker._admitted(engine, REQUEST, make_period()):
        raise DeadlineExceeded("late")
    engine.admission.is_full = True
    with pytest.raises(Overloaded), ranker._admitted(engine, REQUEST, make_period()):
        pass
    assert ranker.concurrency.ratios == [1.0, 2.0]


def test_a_bad_request_tells_nothing_about_the_load() -> None:
    ranker = make_ranker()
    with pytest.raises(DataError), ranker._admitted(make_engine(), REQUEST, make_period()):
        raise DataError("bad")
    assert ranker.concurrency.ratios == []


def test_a_caller_without_patience_does_not_lower_the_limit_of_all() -> None:
    impatient = make_period(timeout_seconds=0.001)
    assert impatient.target_seconds == make_period(timeout_seconds=1.0).target_seconds > 0.3


def test_an_inline_history_does_not_count_as_cached_while_the_store_is_down() -> None:
    metrics = FakeMetrics()
    ranker = make_ranker(metrics)
    engine = make_engine()
    request = RankRequest(1, np.array([5]), inline_history=INLINE_HISTORY)
    fetched, encoded = asyncio.run(ranker._read_user(engine, request, math.inf))
    assert fetched.degraded
    assert encoded.rows.history.num_rows == 2
    assert metrics.degraded == [0]


def encode(schema: Schema, request_time_ms: int, timestamps: list[int]) -> EncodedRequest:
    """Return a request with a history of its own, as the engine gets it."""
    engine = make_engine()
    engine.scorer.bundle.schema = schema
    inline_history = {"item_id": list(range(len(timestamps))), "timestamp": timestamps}
    request = RankRequest(
        1,
        np.array([5]),
        request_time_ms=request_time_ms,
        inline_history=inline_history,
    )
    ranker = make_ranker(FakeMetrics())
    _, encoded = asyncio.run(ranker._read_user(engine, request, math.inf))
    return encoded


def test_a_request_time_in_seconds_is_refused_with_the_number_to_send() -> None:
    message = "request_time: .* looks like seconds; send milliseconds: 1700009000000"
    with pytest.raises(DataError, match=message):
        encode(small_histories.SCHEMA, 1_700_009_000, [TIME_MS])


@pytest.mark.parametrize("time", [0, -1, 2**63 - 1, -(2**63), 10**40])
def test_a_request_time_out_of_range_is_refused(time: int) -> None:
    with pytest.raises(DataError, match="request_time: not a time from 1980 to 2099"):
        encode(small_histories.SCHEMA, time, [TIME_MS])


def test_times_of_a_request_are_counted_from_the_origin_of_the_log() -> None:
    schema = dataclasses.replace(small_histories.SCHEMA, time_origin_ms=ORIGIN_MS)
    rows = encode(schema, 9_000, [5_000, ORIGIN_MS + 6_000]).rows
    assert rows.request_time_ms == ORIGIN_MS + 9_000
    assert history.timestamps(rows.history).tolist() == [ORIGIN_MS + 5_000, ORIGIN_MS + 6_000]
