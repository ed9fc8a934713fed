"""Engine: one model at work for many callers. Requests come in from an event loop, one thread
scores them.

    rank() --admit or shed--> queue --all that fit a token budget--> cache --> Scorer --> answers
                                         a request alone waits for nobody

Nothing waits for a batch to fill: while one batch is scored the next one gathers. An engine belongs
to one model version; a service that
changes models makes another engine, takes it into use and closes this one, which ends what it has
accepted.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import math
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.errors import ConfigError, LongrecError
from longrec.schema import ITEM_ID
from longrec.scoring.scorer import REPLAYS, KeptEvents, RequestRows, Scorer, Scores
from longrec.serving.kv_cache import CacheCounts, HistoryCache, Wanted

logger = logging.getLogger(__name__)

WARM_EVENTS, WARM_CANDIDATES = 2_048, 256
"""Of the requests by which an engine learns, before it is ready, how fast it is."""
PATIENCE = 0.35
"""Share of the time that a caller gives of which the requests before it may take at most: the rest
is for what was not foreseen.
"""
SMOOTHING = 0.2
CAPTURED_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference of a probability that captured graphs may make; rounding to bfloat16 made
1.5e-2 (docs/log.md).
"""


class Overloaded(LongrecError):
    """There is more to do than can be done in time; the caller should come again after
    `retry_after_seconds`.
    """

    def __init__(self, what: str, retry_after_seconds: float) -> None:
        super().__init__(what, fix=f"Come again in {math.ceil(retry_after_seconds)} s.")
        self.retry_after_seconds = retry_after_seconds


class TooManyRequests(Overloaded):
    """This caller has more requests under way than one caller may have."""


class DeadlineExceeded(LongrecError):
    """The time that the caller gave is over."""


class EngineClosed(LongrecError):
    """The engine takes no more requests; another one has taken its place or the service ends."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What an engine takes on.

    Args:
        cache_bytes: of the history cache.
        batch_events, batch_requests: of what is scored at a time; a request above it goes alone.
        queue_seconds: of work that may be waiting, by the engine's own estimate.
        queue_requests: that may be under way.
        caller_requests: that one caller may have under way.
    """

    cache_bytes: int = 1 << 30
    batch_events: int = 65_536
    batch_requests: int = 32
    queue_seconds: float = 1.0
    queue_requests: int = 256
    caller_requests: int = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """One request to be ranked.

    Args:
        rows: of the user; the history may hold later events than the moment.
        length: most recent events used; None for the served length.
        key: names the user for the cache; None for a history that is not to be kept.
        deadline: monotonic seconds after which nobody waits for the answer.
    """

    rows: RequestRows
    length: int | None = None
    key: Hashable = None
    deadline: float = math.inf


@dataclasses.dataclass(frozen=True, slots=True)
class Ranked:
    """Scores of one request.

    Args:
        scores: float32 [m, K].
        num_events: events used.
        num_unknown: candidates that the model does not know.
        newest_ms: time of the newest event used, None for none.
    """

    scores: Scores
    num_events: int
    num_unknown: int
    newest_ms: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Attended:
    """What one layer and head of the model looked at for a candidate.

    Args:
        layer, head: from 0.
        rows: int64, of the events in the history used (0 the oldest), most attended first.
        weights: float32, shares of the attention; all events' shares sum to 1.
    """

    layer: int
    head: int
    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Explained:
    """Attention of one candidate over the events used, and its scores.

    Args:
        ranked: the candidate's scores.
        events: rows of the timeline that were used: first, and count.
        attended: of every layer and head.
    """

    ranked: Ranked
    events: tuple[int, int]
    attended: tuple[Attended, ...]


class Meter(Protocol):
    """Takes note of what an engine does; called from its thread, must not wait."""

    def seconds(self, stage: str, value: float) -> None:
        """Notes the time of a stage: `queue` of one request; `encode` and `score` of one batch."""

    def batch(self, queries: Sequence[Query], ranked: Sequence[Ranked]) -> None:
        """Notes what was scored together."""

    def cache(
        self, change: CacheCounts, num_bytes: int, num_users: int, ages_seconds: Sequence[float]
    ) -> None:
        """Notes what a batch did to the cache, the cache's size after it, and the ages of what was
        found.
        """


class NoMeter:
    """A meter that forgets."""

    def seconds(self, stage: str, value: float) -> None:
        pass

    def batch(self, queries: Sequence[Query], ranked: Sequence[Ranked]) -> None:
        pass

    def cache(
        self, change: CacheCounts, num_bytes: int, num_users: int, ages_seconds: Sequence[float]
    ) -> None:
        pass


@dataclasses.dataclass(slots=True)
class _Pace:
    """How long things take, learned from what they took: seconds = request + pairs * pair + encoded
    events * event.
    """

    request: float = 0.005
    pair: float = 1e-8
    event: float = 1e-5

    def estimate(
        self,
        num_targets: int,
        num_events: int,
        num_new: int,
    ) -> float:
        return self.request + self.pair * num_targets * num_events + self.event * num_new

    def learn(self, name: str, seconds: float) -> None:
        """Takes in one measurement of a single cost; a slow one counts at once, a fast one little
        by little.
        """
        before: float = getattr(self, name)
        setattr(self, name, before + (SMOOTHING if seconds < before else 0.5) * (seconds - before))


@dataclasses.dataclass(slots=True)
class Ticket:
    """A place in an engine, given by `Engine.admit`; `seconds` is the work it stands for."""

    caller: str
    seconds: float


_Answer: TypeAlias = Ranked | Explained


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    query: Query
    future: concurrent.futures.Future[_Answer]
    queued_at: float
    top: int = 0


class Engine:
    """Ranks with one model: its cache of histories, its batches, its limits. Made warm: what the
    first request would pay is paid here.

    Args:
        scorer: the model; nobody else may use it at the same time.
        limits: what is taken on.
        meter: is told what happens.
    """

    def __init__(
        self, scorer: Scorer, limits: Limits | None = None, meter: Meter | None = None
    ) -> None:
        self.scorer, self.limits, self._meter = scorer, limits or Limits(), meter or NoMeter()
        self.cache = HistoryCache(scorer, self.limits.cache_bytes)
        self._queue: collections.deque[_Job] = collections.deque()
        self._wake, self._closing = threading.Condition(), False
        self._callers: collections.Counter[str] = collections.Counter()
        self._outstanding_seconds, self._pace, self._mean_events = 0.0, _Pace(), 0.0
        self._thread = threading.Thread(
            target=self._run,
            name="longrec-engine",
            daemon=True,
        )
        self._started = concurrent.futures.Future[None]()
        self._thread.start()
        self._started.result()

    def measured_by(self, meter: Meter) -> None:
        """Tells another meter what happens from now on."""
        self._meter = meter

    @property
    def num_under_way(self) -> int:
        """Requests that were admitted and are not answered yet."""
        return self._callers.total()

    @property
    def outstanding_seconds(self) -> float:
        """The work that they are, by the engine's estimate."""
        return self._outstanding_seconds

    @property
    def mean_events(self) -> int:
        """Events that recent requests had: what to expect of one that nothing is known of."""
        return round(self._mean_events)

    def admit(
        self,
        num_targets: int,
        num_events: int,
        *,
        is_kept: bool,
        deadline: float = math.inf,
        caller: str = "",
    ) -> Ticket:
        """Returns a place for a request, to be given back by `leave`; sheds what would not be
        answered in time before any work is done.

        Args:
            num_targets, num_events: of the request, as far as is known yet.
            is_kept: whether most of its events are in the cache.
            deadline: monotonic seconds.
            caller: whose request it is.

        Raises:
            TooManyRequests: the caller has too many requests under way.
            Overloaded: the queue is full, or what is in it takes longer than the caller waits.
            EngineClosed: the engine is closed.
        """
        seconds = self._pace.estimate(num_targets, num_events, 0 if is_kept else num_events)
        with self._wake:
            if self._closing:
                raise EngineClosed("the engine is closed")
            waiting = self._outstanding_seconds
            if self._callers[caller] >= self.limits.caller_requests:
                raise TooManyRequests(
                    "this caller has too many requests under way", waiting + seconds
                )
            allowed = min(
                self.limits.queue_seconds, PATIENCE * (deadline - time.monotonic()) - seconds
            )
            if self.num_under_way and (
                waiting > allowed or self.num_under_way >= self.limits.queue_requests
            ):
                raise Overloaded(
                    "the service has more requests than it can answer in time", waiting + seconds
                )
            self._callers[caller] += 1
            self._outstanding_seconds += seconds
        return Ticket(caller, seconds)

    def leave(self, ticket: Ticket) -> None:
        """Gives a place back; once per ticket."""
        with self._wake:
            self._callers[ticket.caller] -= 1
            if not self._callers[ticket.caller]:
                del self._callers[ticket.caller]
            self._outstanding_seconds = (
                max(0.0, self._outstanding_seconds - ticket.seconds) if self._callers else 0.0
            )
            self._wake.notify_all()

    async def rank(self, query: Query, ticket: Ticket | None = None) -> Ranked:
        """Returns the scores of a request, those that a cold computation gives.

        Raises:
            DataError: the history does not fit the schema.
            DeadlineExceeded: the query's deadline passed before.
            EngineClosed: the engine was closed before.
        """
        answer = await self._answered(query, ticket, 0)
        assert isinstance(answer, Ranked)
        return answer

    async def explain(
        self,
        query: Query,
        top: int,
        ticket: Ticket | None = None,
    ) -> Explained:
        """Returns the `top` events that each layer and head attends to most for the first
        candidate; raises as `rank` does.
        """
        answer = await self._answered(query, ticket, top)
        assert isinstance(answer, Explained)
        return answer

    async def _answered(
        self,
        query: Query,
        ticket: Ticket | None,
        top: int,
    ) -> _Answer:
        future = asyncio.wrap_future(self.submit(query, ticket, top))
        try:
            return await asyncio.wait_for(
                future, None if query.deadline == math.inf else query.deadline - time.monotonic()
            )
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the request was scored") from error

    def submit(
        self, query: Query, ticket: Ticket | None = None, top: int = 0
    ) -> concurrent.futures.Future[_Answer]:
        """Returns the answer to come: Ranked, or with `top` above 0 Explained. For callers without
        an event loop.
        """
        job = _Job(query, concurrent.futures.Future(), time.monotonic(), top)
        with self._wake:
            if self._closing and ticket is None:
                raise EngineClosed("the engine is closed")
            self._queue.append(job)
            self._wake.notify_all()
        return job.future

    def close(self) -> None:
        """Takes no more requests, ends those that were admitted, gives the memory back. Waits for
        it; may be called twice.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self.cache.clear()

    def _run(self) -> None:
        torch.get_num_threads()  # products of a new thread take all cores until torch is asked
        try:
            self._warm_up()
            self._started.set_result(None)
        except BaseException as error:
            self._started.set_exception(error)
            return
        while jobs := self._next_batch():
            self._work(jobs)

    def _next_batch(self) -> list[_Job]:
        """Returns what is scored next, in the order of arrival; nothing when the engine is closed
        and has no more to do.
        """
        with self._wake:
            while not self._queue:
                if self._closing and not self._callers:
                    return []
                self._wake.wait()
            jobs = [self._queue.popleft()]
            total = self._num_events(jobs[0])
            while self._queue and len(jobs) < self.limits.batch_requests and not self._queue[0].top:
                total += self._num_events(self._queue[0])
                if total > self.limits.batch_events or jobs[0].top:
                    break
                jobs.append(self._queue.popleft())
            return jobs

    def _num_events(self, job: _Job) -> int:
        known: int = job.query.rows.history.num_rows
        return min(known, self._length(job.query))

    def _length(self, query: Query) -> int:
        return self.scorer.bundle.served_length if query.length is None else query.length

    def _work(self, jobs: list[_Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            self._meter.seconds("queue", now - job.queued_at)
            if job.query.deadline <= now and job.future.set_running_or_notify_cancel():
                job.future.set_exception(
                    DeadlineExceeded("the deadline passed before the request could be scored")
                )
        jobs = [
            job
            for job in jobs
            if not job.future.done() and job.future.set_running_or_notify_cancel()
        ]
        if not jobs:
            return
        try:
            answers = self._answer(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one of them may be at fault; the others are answered
                self._work_alone(job)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)

    def _work_alone(self, job: _Job) -> None:
        try:
            job.future.set_result(self._answer([job])[0])
        except Exception as error:
            job.future.set_exception(error)

    def _answer(self, jobs: list[_Job]) -> list[_Answer]:
        queries = [job.query for job in jobs]
        wanted = [self._wanted(query) for query in queries]
        ages = [
            age
            for ask in wanted
            if ask.key is not None and (age := self.cache.age_seconds(ask.key)) is not None
        ]
        before, started = dataclasses.replace(self.cache.counts), time.perf_counter()
        kept = self.cache.kept(wanted) if self.scorer.is_separable else None
        encoded = time.perf_counter()
        ranked = self._score(queries, wanted, kept)
        scored = time.perf_counter()
        pairs = sum(
            len(query.rows.candidates) * answer.num_events
            for query, answer in zip(queries, ranked, strict=True)
        )
        self._mean_events += SMOOTHING * (
            float(np.mean([answer.num_events for answer in ranked])) - self._mean_events
        )
        change = self.cache.counts.since(before)
        self._learn(len(jobs), change.num_encoded, pairs, encoded - started, scored - encoded)
        self._meter.seconds("encode", encoded - started)
        self._meter.seconds("score", scored - encoded)
        self._meter.batch(queries, ranked)
        self._meter.cache(change, self.cache.num_bytes, len(self.cache), ages)
        if jobs[0].top:
            return [self._explained(queries[0], wanted[0], kept, ranked[0], jobs[0].top)]
        return list(ranked)

    def _wanted(self, query: Query) -> Wanted:
        timeline, request_time = query.rows.history, query.rows.request_time_ms
        end = history.prefix_before(timeline, request_time).num_rows
        return Wanted(query.key, timeline, max(0, end - self._length(query)), end, request_time)

    def _score(
        self, queries: Sequence[Query], wanted: Sequence[Wanted], kept: Sequence[KeptEvents] | None
    ) -> list[Ranked]:
        if kept is None:  # the model reads histories in another way than STCA
            cut = [
                dataclasses.replace(
                    query.rows, history=ask.timeline.slice(ask.start, ask.end - ask.start)
                )
                for query, ask in zip(queries, wanted, strict=True)
            ]
            scores = self.scorer.score(cut, max(ask.end - ask.start for ask in wanted))
        else:
            scores = self.scorer.score_kept([query.rows for query in queries], kept)
        encoder = self.scorer.bundle.encoder
        return [
            Ranked(
                part,
                ask.end - ask.start,
                int((encoder.item_rows(query.rows.candidates) == 0).sum()),
                int(history.timestamps(ask.timeline)[ask.end - 1]) if ask.end > ask.start else None,
            )
            for query, ask, part in zip(queries, wanted, scores, strict=True)
        ]

    def _explained(
        self, query: Query, ask: Wanted, kept: Sequence[KeptEvents] | None, ranked: Ranked, top: int
    ) -> Explained:
        if kept is None:
            raise ConfigError(
                "this model cannot be explained",
                found=f"model.kind {self.scorer.bundle.config.kind}",
                expected="stca",
            )
        rows = dataclasses.replace(query.rows, candidates=query.rows.candidates[:1])
        weights = self.scorer.attention(rows, kept[0])[:, :, 0]
        attended = []
        for layer, heads in enumerate(weights):
            for head, shares in enumerate(heads):
                order = np.argsort(-shares, kind="stable")[:top]
                attended.append(Attended(layer, head, order, shares[order]))
        return Explained(ranked, (ask.start, ask.end - ask.start), tuple(attended))

    def _learn(
        self,
        num_requests: int,
        num_new: int,
        pairs: int,
        encode_seconds: float,
        score_seconds: float,
    ) -> None:
        """Takes the time of a batch into the estimates, each cost where it is the greater part."""
        if num_new > WARM_EVENTS:
            self._pace.learn("event", encode_seconds / num_new)
        over = score_seconds - self._pace.request
        if pairs >= WARM_EVENTS * WARM_CANDIDATES and over > 0:
            self._pace.learn("pair", over / pairs)
        elif pairs < WARM_EVENTS * WARM_CANDIDATES // 16:
            self._pace.learn("request", score_seconds / num_requests)

    def _warm_up(self) -> None:
        """Scores made-up requests, so that torch has done what it does once, and the estimates fit
        this machine.
        """
        self.scorer.warm_up()
        first = [(0, 8, 1), (64, 8, 1)]
        if (
            self.scorer.captured is not None
        ):  # more requests than are replayed go by kernels that are compiled on first use
            sizes = zip(
                itertools.cycle((WARM_EVENTS, WARM_EVENTS + 8)),
                (8, 32, 64, WARM_CANDIDATES, 250),
                strict=False,
            )
            first += [
                (num_events, num_candidates, REPLAYS + 1) for num_events, num_candidates in sizes
            ]
        for size in first:
            self._score_made_up(*size)
        self._pace = _Pace()  # what is done once is no pace
        for num_events in (0, 64, WARM_EVENTS + 8, WARM_EVENTS + 8):
            rows = self._score_made_up(num_events, WARM_CANDIDATES if num_events > 64 else 8)
        self._check_captured(rows)
        self.cache.counts, self._mean_events = (
            CacheCounts(),
            float(self.scorer.bundle.served_length),
        )

    def _score_made_up(
        self, num_events: int, num_candidates: int, num_requests: int = 1
    ) -> RequestRows:
        """Returns a made-up request, after it was scored as often as said, all at once."""
        candidates = np.arange(num_candidates, dtype=np.int64)
        rows = RequestRows(
            _made_up(self.scorer.bundle.encoder, num_events), None, num_events + 1, candidates
        )
        self._answer(
            [
                _Job(Query(rows, num_events), concurrent.futures.Future(), time.monotonic())
                for _ in range(num_requests)
            ]
        )
        return rows

    def _check_captured(self, rows: RequestRows) -> None:
        """Raises LongrecError where captured graphs score a request unlike the model without them
        in float32, as it was evaluated.
        """
        if self.scorer.captured is None:
            return
        plain = dataclasses.replace(self.scorer, replays=0, precision=torch.float32)
        length, bound = (
            min(rows.history.num_rows, self.scorer.captured.max_events),
            CAPTURED_ERROR[self.scorer.precision],
        )
        found = float(
            np.abs(self.scorer.score([rows], length)[0] - plain.score([rows], length)[0]).max()
        )
        if not found <= bound:  # nan is not
            raise LongrecError(
                "captured graphs do not score as the model does",
                found=f"probabilities that differ by {found:.2g}",
                expected=f"{bound:g} at most",
                fix="Serve with LONGREC_DEVICE=cpu, and look for another driver or torch.",
            )


def _made_up(encoder: Encoder, num_events: int) -> pa.RecordBatch:
    """Returns a history of so many events, one a millisecond, of as many items as there are: equal
    ones would cost less than real ones.
    """
    whole, items = (
        pa.array(np.arange(num_events, dtype=np.int64)),
        pa.array(np.resize(encoder.item_ids, num_events)),
    )
    wanted = history.arrow_schema(encoder.schema)
    columns = [
        pa.nulls(num_events, field.type)
        if field.nullable
        else items
        if field.name == ITEM_ID
        else whole
        for field in wanted
    ]
    return pa.record_batch(columns, schema=wanted)
