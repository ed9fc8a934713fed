"""One request, from the decoded body to the answer: admit, read the user, rank, log."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bento.settings import BODY_LIMITS, SETTINGS
from longrec.schema import ITEM_ID, TIMESTAMP
from longrec.serving.admission.control import MAX_QUEUE_SHARE
from longrec.serving.admission.errors import DeadlineExceeded, Overloaded
from longrec.serving.admission.gate import arrival_time
from longrec.serving.inline_history import read_inline_history
from longrec.serving.requests import CallerRequest, EncodedRequest, RankRequest
from longrec.times import require_time
from longrec.tracing import current_trace

if TYPE_CHECKING:
    from longrec.release.request_log import RequestLog
    from longrec.schema import Schema
    from longrec.serving.admission.concurrency import ConcurrencyLimit
    from longrec.serving.admission.control import Ticket
    from longrec.serving.engine import Engine
    from longrec.serving.metrics import PrometheusMetrics
    from longrec.serving.requests import Explanation, RankResult, TopEvents
    from longrec.serving.rollout.model_manager import ModelManager
    from longrec.serving.store_reader import FetchResult, StoreReader

SHORTEST_TIMEOUT_SECONDS = 1.0
"""A shorter timeout of a caller does not lower the concurrency limit of all."""
MAX_FETCH_SHARE = 0.5
"""Largest share of the deadline that reading the feature store may use."""
TRACED_FACTS = ("model_version", "store_version", "user_known", "history_length", "degraded")
"""Keys of an answer that become attributes of the request's span."""
Answer = dict[str, Any]
"""JSON object of an answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Period:
    """Time of a request, in monotonic seconds.

    Args:
        arrived_at: when its headers were read.
        deadline: when the answer is due.
    """

    arrived_at: float
    deadline: float

    @property
    def seconds(self) -> float:
        """Seconds since the arrival."""
        return time.monotonic() - self.arrived_at

    @property
    def target_seconds(self) -> float:
        """Longest time that it should wait under load."""
        timeout = max(SHORTEST_TIMEOUT_SECONDS, self.deadline - self.arrived_at)
        return min(SETTINGS.queue_seconds, MAX_QUEUE_SHARE * timeout)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestRanker:
    """The path of every request of one worker.

    Args:
        models: gives the engine of the current version.
        concurrency: learns how long requests take.
        reader: reads users from the feature store.
        metrics: observes requests.
        log: takes a share of the answers.
    """

    models: ModelManager[Engine]
    concurrency: ConcurrencyLimit
    reader: StoreReader
    metrics: PrometheusMetrics
    log: RequestLog

    async def rank(self, sent: CallerRequest) -> Answer:
        """Return the scores of the candidates.

        Raises:
            LongrecError: the request is bad, rejected or too late (bento.errors).
        """
        period = _period(sent)
        with self._accepted(sent, period) as (version, engine, ticket, request):
            fetched, encoded = await self._read_user(engine, request, period.deadline)
            started = time.perf_counter()
            result = await engine.rank(encoded, ticket)
            milliseconds = 1e3 * (time.perf_counter() - started)
            self.models.shadow.mirror(
                encoded,
                version,
                result.scores.T,
                milliseconds,
            )
            answer = _answer(version, engine, fetched, result)
            _describe(encoded, answer)
            self._log(encoded, fetched, answer)
            return answer

    async def explain(self, sent: CallerRequest, num_top_events: int) -> Answer:
        """Return the scores of one candidate, and the events that each head weighs most.

        Raises:
            LongrecError: the request is bad, rejected or too late (bento.errors).
        """
        period = _period(sent)
        with self._accepted(sent, period) as (version, engine, ticket, request):
            fetched, encoded = await self._read_user(engine, request, period.deadline)
            explanation = await engine.explain(encoded, num_top_events, ticket)
            answer = _answer(version, engine, fetched, explanation.result)
            _describe(encoded, answer)
            attention = _attention(explanation, encoded.rows.history)
            return {**answer, "attention": attention}

    @contextlib.contextmanager
    def _accepted(
        self,
        sent: CallerRequest,
        period: _Period,
    ) -> Iterator[tuple[str, Engine, Ticket, RankRequest]]:
        """Yield the current version and engine, a ticket, and the request with the ids of the log.

        Another version may replace this one during the request.
        """
        with self.models.acquire() as (version, engine):
            request = sent.resolve(engine.scorer.bundle.schema)
            with self._admitted(engine, request, period) as ticket:
                yield version, engine, ticket, request

    @contextlib.contextmanager
    def _admitted(
        self,
        engine: Engine,
        request: RankRequest,
        period: _Period,
    ) -> Iterator[Ticket]:
        """Yield a ticket of the engine, and release it; the concurrency limit learns the time."""
        admission = engine.admission
        try:
            ticket = self._admit(engine, request, period.deadline)
        except Overloaded:
            self._observe_time(period, admission.seconds_in_progress)
            raise
        try:
            yield ticket
        except DeadlineExceeded:
            seconds = max(period.seconds, period.target_seconds)
            self._observe_time(period, seconds)
            raise
        else:
            waited = period.seconds - ticket.seconds
            self._observe_time(period, waited)
        finally:
            admission.release(ticket)

    def _admit(
        self,
        engine: Engine,
        request: RankRequest,
        deadline: float,
    ) -> Ticket:
        is_stored_history = request.inline_history is None
        ticket = engine.admission.admit(
            len(request.candidates),
            self._expected_events(engine, request),
            is_cached=is_stored_history and request.user_id in engine.cache,
            deadline=deadline,
        )
        self.metrics.observe_admission(
            self.concurrency.limit(),
            engine.admission.seconds_in_progress,
        )
        return ticket

    def _observe_time(self, period: _Period, seconds: float) -> None:
        self.concurrency.observe(period.arrived_at, seconds, period.target_seconds)

    def _expected_events(self, engine: Engine, request: RankRequest) -> int:
        """Return the number of events that a request will use, as far as known."""
        length = request.length
        if length is None:
            length = engine.scorer.bundle.served_length
        if isinstance(request.inline_history, bytes):
            return length  # a packed history tells its length only when it is unpacked
        if request.inline_history is not None:
            columns = request.inline_history.values()
            num_inline = max((len(column) for column in columns), default=0)
            return min(length, num_inline)
        num_stored = self.reader.num_events(request.user_id)
        if num_stored is None:
            num_stored = engine.mean_events
        return min(length, num_stored)

    async def _read_user(
        self,
        engine: Engine,
        request: RankRequest,
        deadline: float,
    ) -> tuple[FetchResult, EncodedRequest]:
        """Return the rows read of the user, and the request with these rows."""
        from longrec.scoring.request import RequestRows

        schema = engine.scorer.bundle.schema
        request_time_ms = _request_time(request, schema)
        timeout = MAX_FETCH_SHARE * (deadline - time.monotonic())
        trace = current_trace()
        with self.metrics.timed("fetch", trace):
            fetched = await self.reader.fetch(request.user_id, timeout)
        if fetched.degraded:
            self.metrics.count_degraded(fetched.rows.history.num_rows)
        if request.inline_history is not None:
            events = await asyncio.to_thread(
                read_inline_history,
                request.inline_history,
                schema,
                BODY_LIMITS,
            )
            rows = dataclasses.replace(fetched.rows, history=events)
            fetched = dataclasses.replace(fetched, rows=rows)
        request_rows = RequestRows(
            history=fetched.rows.history,
            user_features=fetched.rows.features,
            request_time_ms=request_time_ms,
            candidates=request.candidates,
        )
        return fetched, EncodedRequest(
            rows=request_rows,
            length=request.length,
            key=request.user_id if request.inline_history is None else None,
            deadline=deadline,
            trace=trace,
        )

    def _log(
        self,
        request: EncodedRequest,
        fetched: FetchResult,
        answer: Mapping[str, Any],
    ) -> None:
        self.log.add(
            fetched.rows.user_id,
            request.rows.request_time_ms,
            request.rows.candidates.tolist(),
            answer["scores"],
            history_length=answer["history_length"],
            model_version=answer["model_version"],
            degraded=answer["degraded"],
        )


def _request_time(request: RankRequest, schema: Schema) -> int:
    """Return the request time in ms since 1970, by default now."""
    if request.request_time_ms is None:
        return time.time_ns() // 1_000_000
    return require_time("request_time", request.request_time_ms, schema.time_origin_ms)


def _period(request: CallerRequest) -> _Period:
    """Return the period of a request."""
    timeout = SETTINGS.timeout_seconds
    if request.timeout_ms is not None:
        timeout = request.timeout_ms / 1e3
    arrived_at = arrival_time()
    return _Period(arrived_at, arrived_at + timeout)


def _answer(
    version: str,
    engine: Engine,
    fetched: FetchResult,
    result: RankResult,
) -> Answer:
    """Return the JSON object of a result."""
    columns = result.scores.T.tolist()
    rows = fetched.rows
    return {
        "scores": dict(zip(engine.scorer.task_names, columns, strict=True)),
        "model_version": version,
        "store_version": rows.store_version,
        "user_known": rows.features is not None or rows.history.num_rows > 0,
        "history_length": result.num_events,
        "unknown_candidates": result.num_unknown,
        "unknown_events": dict(result.unknown_events),
        "degraded": bool(fetched.degraded),
    }


def _describe(request: EncodedRequest, answer: Mapping[str, Any]) -> None:
    """Add facts of an answer to the span of a sampled request; none names the user."""
    if request.trace is None:
        return
    facts = {f"longrec.{name}": answer[name] for name in TRACED_FACTS}
    num_candidates = len(request.rows.candidates)
    request.trace.set_attributes({**facts, "longrec.candidates": num_candidates})


def add_id_texts(answer: Answer) -> Answer:
    """Return the answer of `explain` with each item id as a text too."""
    heads = []
    for head in answer["attention"]:
        events = [{**event, "item_id_text": str(event["item_id"])} for event in head["events"]]
        heads.append({**head, "events": events})
    return {**answer, "attention": heads}


def _attention(explanation: Explanation, timeline: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the JSON form of the events that each head weighs most."""
    used = timeline.slice(explanation.first_row, explanation.result.num_events)
    return [
        {
            "layer": head.layer,
            "head": head.head,
            "events": _events(head, used),
        }
        for head in explanation.heads
    ]


def _events(head: TopEvents, used: pa.RecordBatch) -> list[dict[str, Any]]:
    items = used.column(ITEM_ID).to_numpy()[head.rows]
    times = used.column(TIMESTAMP).to_numpy()[head.rows]
    columns = (head.rows, items, times, head.weights)
    keys = ("row", "item_id", "timestamp", "weight")
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(keys, row, strict=True)) for row in values]
