"""The engine: right answers under load, deadlines, rejection, a close that loses nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import statistics
import threading
import time

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.scoring.request import encode_events
from longrec.scoring.scorer import Scorer
from longrec.scoring.unknown import count_unknown
from longrec.serving.admission.cost_model import NUM_MEASUREMENTS
from longrec.serving.admission.errors import DeadlineExceeded, EngineClosed, Overloaded
from longrec.serving.admission.limits import Limits
from longrec.serving.engine import Engine
from longrec.serving.requests import EncodedRequest, RankResult
from tests.longrec.serving import small_scorer
from tests.longrec.serving.small_scorer import SERVED_LENGTH, User

TOLERANCE = 2e-6
MAX_WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return small_scorer.make_scorer(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine(scorer):
    engine = Engine(scorer)
    yield engine
    engine.close()


def make_requests(count: int, seed: int = 0) -> list[EncodedRequest]:
    """Return requests of seven users."""
    requests = []
    for number in range(count):
        user_id = number % 7
        user = User(seed + user_id)
        user.append(10 + 9 * user_id)
        rows = user.request(
            user.timeline(),
            user.next_ms,
            1 + number % 5,
        )
        requests.append(EncodedRequest(rows, key=user_id))
    return requests


def with_deadline(request: EncodedRequest, seconds: float) -> EncodedRequest:
    return dataclasses.replace(request, deadline=time.monotonic() + seconds)


def assert_scores(result: RankResult, scorer: Scorer, request: EncodedRequest) -> None:
    """Assert that a request has the scores of a cold computation."""
    expected = scorer.score([request.rows])[0]
    np.testing.assert_allclose(result.scores, expected, atol=TOLERANCE)


class Gate:
    """Stops the engine's thread before each batch until opened; meanwhile requests gather."""

    def __init__(self, engine: Engine, monkeypatch) -> None:
        self._is_open = concurrent.futures.Future()
        self.batch_sizes = []
        self.is_reached = threading.Event()
        answer = engine._answer

        def wait_and_answer(entries):
            self.batch_sizes.append(len(entries))
            self.is_reached.set()
            self._is_open.result(MAX_WAIT_SECONDS)
            return answer(entries)

        monkeypatch.setattr(engine, "_answer", wait_and_answer)

    def wait(self) -> None:
        assert self.is_reached.wait(MAX_WAIT_SECONDS)

    def open(self) -> None:
        self._is_open.set_result(None)


def test_many_at_a_time_get_their_own_answers(engine, scorer) -> None:
    requests = make_requests(60)

    async def rank_all() -> list:
        return await asyncio.gather(*(engine.rank(request) for request in requests))

    for request, result in zip(requests, asyncio.run(rank_all()), strict=True):
        assert_scores(result, scorer, request)
        assert result.num_events == min(SERVED_LENGTH, request.rows.history.num_rows)


def test_requests_of_a_batch_count_their_own_unknown_events(scorer, monkeypatch) -> None:
    engine = Engine(scorer, Limits(batch_requests=3))
    gate = Gate(engine, monkeypatch)
    requests = make_requests(4)
    answers = [engine.submit(request) for request in requests]
    gate.open()
    encoder = scorer.bundle.encoder
    for request, answer in zip(requests, answers, strict=True):
        history = request.rows.history
        used = history.slice(max(0, history.num_rows - SERVED_LENGTH))
        items, features, _ = encode_events(encoder, used)
        expected = count_unknown(encoder, items, features)
        assert answer.result(MAX_WAIT_SECONDS).unknown_events == expected
    assert max(gate.batch_sizes) > 1
    engine.close()


def test_gathered_requests_are_scored_together_within_the_limits(scorer, monkeypatch) -> None:
    engine = Engine(scorer, Limits(batch_events=100, batch_requests=3))
    gate = Gate(engine, monkeypatch)
    requests = make_requests(12)
    answers = [engine.submit(request) for request in requests]
    gate.open()
    for request, answer in zip(requests, answers, strict=True):
        assert_scores(answer.result(MAX_WAIT_SECONDS), scorer, request)
    assert 1 < max(gate.batch_sizes) <= 3
    engine.close()


def test_one_bad_request_does_not_fail_the_others(engine, scorer, monkeypatch) -> None:
    gate = Gate(engine, monkeypatch)
    good = make_requests(3)
    bad_rows = dataclasses.replace(good[0].rows, user_features={"region": 5})
    bad = dataclasses.replace(good[0], key=None, rows=bad_rows)
    engine.submit(good[0])
    gate.wait()
    requests = (good[0], good[1], bad, good[2])
    answers = [engine.submit(request) for request in requests]
    gate.open()
    with pytest.raises(DataError, match="region"):
        answers[2].result(MAX_WAIT_SECONDS)
    for position in (0, 1, 3):
        result = answers[position].result(MAX_WAIT_SECONDS)
        assert_scores(result, scorer, requests[position])
    assert gate.batch_sizes == [1, 4, 1, 1, 1, 1]


def test_a_deadline_holds_in_the_queue_and_for_the_caller(engine, monkeypatch) -> None:
    gate = Gate(engine, monkeypatch)
    request = make_requests(1)[0]
    first = engine.submit(request)
    gate.wait()
    late = engine.submit(with_deadline(request, 0.05))
    in_time = with_deadline(request, 0.1)
    with pytest.raises(DeadlineExceeded):  # while the engine is at work on the first
        asyncio.run(engine.rank(in_time))
    assert time.monotonic() >= in_time.deadline
    gate.open()
    assert first.result(MAX_WAIT_SECONDS).num_events
    with pytest.raises(DeadlineExceeded):
        late.result(MAX_WAIT_SECONDS)


def test_an_engine_admits_requests_within_its_own_limits(scorer) -> None:
    engine = Engine(scorer, Limits(queue_seconds=0.0))
    ticket = engine.admission.admit(5, 40, is_cached=True)
    with pytest.raises(Overloaded):
        engine.admission.admit(5, 40, is_cached=True)
    engine.admission.release(ticket)
    assert engine.admission.num_in_progress == 0
    engine.close()


def test_the_costs_of_the_model_are_its_own_time(scorer) -> None:
    """A wait for the interpreter, which other threads of the process use, is none of them."""
    engine = Engine(scorer)
    requests = make_requests(4)

    def measure() -> tuple[float, float]:
        """Return the mean seconds that requests cost and that they take."""
        engine._batches.costs.forget()
        started = time.perf_counter()
        for _ in range(NUM_MEASUREMENTS):
            engine.submit(requests[0]).result(MAX_WAIT_SECONDS)
        wall_seconds = (time.perf_counter() - started) / NUM_MEASUREMENTS
        return statistics.mean(engine._batches.costs.request._measured), wall_seconds

    alone, _ = measure()
    is_over = threading.Event()
    others = [threading.Thread(target=_use_the_interpreter, args=(is_over,)) for _ in range(4)]
    for thread in others:
        thread.start()
    beside_others, wall_seconds = measure()
    is_over.set()
    for thread in others:
        thread.join()
    engine.close()
    assert wall_seconds > 8 * alone, "the threads disturb nothing: nothing was tested"
    # Not compared with `alone`: where a hypervisor takes the core away, its time counts as work.
    assert beside_others < wall_seconds / 4


def _use_the_interpreter(is_over: threading.Event) -> None:
    while not is_over.is_set():
        sum(range(1_000))


def test_closing_finishes_admitted_requests_and_accepts_no_more(scorer, monkeypatch) -> None:
    engine = Engine(scorer)
    gate = Gate(engine, monkeypatch)
    ticket = engine.admission.admit(5, 40, is_cached=False)
    requests = make_requests(2)
    running = engine.submit(requests[0])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        closed = pool.submit(engine.close)
        while not engine.admission.is_closed:
            time.sleep(0.01)
        with pytest.raises(EngineClosed):
            engine.admission.admit(5, 40, is_cached=False)
        with pytest.raises(EngineClosed):
            engine.submit(requests[1])
        assert not closed.done()
        admitted = engine.submit(requests[1], ticket)  # it was admitted before
        gate.open()
        assert_scores(admitted.result(MAX_WAIT_SECONDS), scorer, requests[1])
        assert running.result(MAX_WAIT_SECONDS).num_events
        assert not closed.done()
        engine.admission.release(ticket)
        closed.result(MAX_WAIT_SECONDS)
    assert not len(engine.cache)


def test_an_explanation_names_the_events_with_most_attention(engine, scorer) -> None:
    request = make_requests(1, seed=50)[0]
    explanation = asyncio.run(engine.explain(request, 4))
    assert len(explanation.heads) == 3 * 2
    assert_scores(explanation.result, scorer, request)
    for head in explanation.heads:
        assert len(head.rows) == 4
        assert (np.diff(head.weights) <= 0).all()
        assert 0 < head.weights.sum() <= 1 + 1e-5


def test_a_negative_length_is_refused_before_it_reaches_the_engine() -> None:
    request = make_requests(1)[0]
    with pytest.raises(DataError, match="length should not be negative"):
        dataclasses.replace(request, length=-1)
