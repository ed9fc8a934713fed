"""The engine: right answers under load, deadlines, shedding, an end that loses nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.scoring.scorer import Scorer
from longrec.serving.engine import (
    DeadlineExceeded,
    Engine,
    EngineClosed,
    Limits,
    Overloaded,
    Query,
    TooManyRequests,
)
from tests.longrec.serving import world
from tests.longrec.serving.world import SERVED, User

TOLERANCE, PATIENCE_SECONDS = 2e-6, 120


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return world.scorer(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine(scorer):
    engine = Engine(scorer)
    yield engine
    engine.close()


def queries(count: int, seed: int = 0) -> list[Query]:
    found = []
    for number in range(count):
        user = User(seed + number % 7)
        user.append(10 + 9 * (number % 7))
        found.append(
            Query(
                user.request(user.timeline(), user.rows[-1][0] + 1, 1 + number % 5), key=number % 7
            )
        )
    return found


class Blocked:
    """A scorer's place in which requests gather: the engine's thread waits in it until told to go
    on.
    """

    def __init__(self, engine: Engine, monkeypatch) -> None:
        self.gate, self.sizes, self.entered = concurrent.futures.Future(), [], threading.Event()
        answer = engine._answer

        def slow(jobs):
            self.sizes.append(len(jobs))
            self.entered.set()
            self.gate.result(PATIENCE_SECONDS)
            return answer(jobs)

        monkeypatch.setattr(engine, "_answer", slow)


def test_many_at_a_time_get_their_own_answers(engine, scorer) -> None:
    asked = queries(60)

    async def all_of_them() -> list:
        return await asyncio.gather(*(engine.rank(query) for query in asked))

    for query, ranked in zip(asked, asyncio.run(all_of_them()), strict=True):
        np.testing.assert_allclose(ranked.scores, scorer.score([query.rows])[0], atol=TOLERANCE)
        assert ranked.num_events == min(SERVED, query.rows.history.num_rows)


def test_what_gathers_is_scored_together_within_the_budget(scorer, monkeypatch) -> None:
    engine = Engine(scorer, Limits(batch_events=100, batch_requests=3))
    blocked = Blocked(engine, monkeypatch)
    futures = [engine.submit(query) for query in queries(12)]
    blocked.gate.set_result(None)
    for query, future in zip(queries(12), futures, strict=True):
        np.testing.assert_allclose(
            future.result(PATIENCE_SECONDS).scores, scorer.score([query.rows])[0], atol=TOLERANCE
        )
    assert 1 < max(blocked.sizes) <= 3
    engine.close()


def test_one_bad_request_does_not_spoil_the_others(engine, scorer, monkeypatch) -> None:
    blocked = Blocked(engine, monkeypatch)
    good, bad = queries(3), queries(1)[0]
    bad = dataclasses.replace(
        bad, key=None, rows=dataclasses.replace(bad.rows, user_features={"region": 5})
    )
    engine.submit(good[0])
    assert blocked.entered.wait(PATIENCE_SECONDS)
    futures = [engine.submit(query) for query in (good[0], good[1], bad, good[2])]
    blocked.gate.set_result(None)
    with pytest.raises(DataError, match="region"):
        futures[2].result(PATIENCE_SECONDS)
    for query, future in zip(good, (futures[0], futures[1], futures[3]), strict=True):
        np.testing.assert_allclose(
            future.result(PATIENCE_SECONDS).scores, scorer.score([query.rows])[0], atol=TOLERANCE
        )
    assert blocked.sizes == [1, 4, 1, 1, 1, 1]


def test_a_deadline_is_kept_by_the_queue_and_by_who_waits(engine, monkeypatch) -> None:
    blocked = Blocked(engine, monkeypatch)
    first = engine.submit(queries(1)[0])
    assert blocked.entered.wait(PATIENCE_SECONDS)
    late = engine.submit(dataclasses.replace(queries(1)[0], deadline=time.monotonic() + 0.05))
    deadline = time.monotonic() + 0.1
    with pytest.raises(DeadlineExceeded):  # while the engine is at work on the first
        asyncio.run(engine.rank(dataclasses.replace(queries(1)[0], deadline=deadline)))
    assert time.monotonic() >= deadline
    blocked.gate.set_result(None)
    assert first.result(PATIENCE_SECONDS).num_events
    with pytest.raises(DeadlineExceeded):
        late.result(PATIENCE_SECONDS)


def test_more_than_fits_is_shed_before_any_work(scorer) -> None:
    engine = Engine(scorer, Limits(queue_requests=4, caller_requests=3, queue_seconds=1_000.0))
    tickets = [engine.admit(5, 40, is_kept=True, caller="a") for _ in range(3)]
    with pytest.raises(TooManyRequests) as shed:
        engine.admit(5, 40, is_kept=True, caller="a")
    assert shed.value.retry_after_seconds > 0
    tickets.append(engine.admit(5, 40, is_kept=True, caller="b"))
    with pytest.raises(Overloaded) as shed:
        engine.admit(5, 40, is_kept=True, caller="c")
    assert not isinstance(shed.value, TooManyRequests)
    for ticket in tickets:
        engine.leave(ticket)
    assert engine.num_under_way == 0 and engine.outstanding_seconds == 0.0
    big = [engine.admit(2_000, 10**9, is_kept=True)]  # alone it is tried, however large
    with pytest.raises(Overloaded):
        engine.admit(1, 1, is_kept=True, deadline=time.monotonic() + 5)
    engine.leave(big[0])
    engine.leave(engine.admit(1, 1, is_kept=True, deadline=time.monotonic() + 5))
    engine.close()


def test_closing_ends_what_was_admitted_and_takes_nothing_more(scorer, monkeypatch) -> None:
    engine = Engine(scorer)
    blocked = Blocked(engine, monkeypatch)
    ticket, asked = engine.admit(5, 40, is_kept=False), queries(2)
    running = engine.submit(asked[0])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        closed = pool.submit(engine.close)
        while not engine._closing:
            time.sleep(0.01)
        with pytest.raises(EngineClosed):
            engine.admit(5, 40, is_kept=False)
        with pytest.raises(EngineClosed):
            engine.submit(asked[1])
        assert not closed.done()
        admitted = engine.submit(asked[1], ticket)  # it had its place before
        blocked.gate.set_result(None)
        np.testing.assert_allclose(
            admitted.result(PATIENCE_SECONDS).scores,
            scorer.score([asked[1].rows])[0],
            atol=TOLERANCE,
        )
        assert running.result(PATIENCE_SECONDS).num_events and not closed.done()
        engine.leave(ticket)
        closed.result(PATIENCE_SECONDS)
    assert not len(engine.cache)


def test_explaining_names_the_events_attended_to_most(engine, scorer) -> None:
    query = queries(1, seed=50)[0]
    explained = asyncio.run(engine.explain(query, 4))
    assert len(explained.attended) == 3 * 2
    np.testing.assert_allclose(
        explained.ranked.scores, scorer.score([query.rows])[0], atol=TOLERANCE
    )
    for part in explained.attended:
        assert (
            len(part.rows) == 4
            and (np.diff(part.weights) <= 0).all()
            and 0 < part.weights.sum() <= 1 + 1e-5
        )
