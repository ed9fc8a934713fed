"""Engine: one model that ranks for many callers at once.

    admission.admit --> rank --> queue --as many as fit a batch--> BatchScorer --> results
                       (event loop)           (one thread)

No request waits for a batch to fill: while one batch is scored, the next one gathers. An engine
belongs to one model version. To change models, a service starts another engine and closes this one,
which finishes its admitted requests first.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import math
import threading
import time
from typing import TypeAlias

import torch

from longrec.scoring.scorer import Scorer
from longrec.serving.admission.control import AdmissionControl, Ticket
from longrec.serving.admission.cost_model import CostModel
from longrec.serving.admission.errors import DeadlineExceeded, EngineClosed
from longrec.serving.admission.limits import Limits
from longrec.serving.batch_scoring import BatchScorer
from longrec.serving.kv_cache import HistoryKVCache
from longrec.serving.metrics import MetricsSink, NullMetrics
from longrec.serving.requests import EncodedRequest, Explanation, RankResult
from longrec.serving.warm_up import warm_up

Answer: TypeAlias = RankResult | Explanation


@dataclasses.dataclass(frozen=True, slots=True)
class _QueueEntry:
    """A request that waits to be scored.

    Args:
        request: the request.
        answer: set by the engine's thread.
        queued_at: monotonic seconds.
        num_top_events: events to name for each head; 0 to rank only.
    """

    request: EncodedRequest
    answer: concurrent.futures.Future[Answer]
    queued_at: float
    num_top_events: int


class Engine:
    """One model at work, with its history KV cache, queue and admission control.

    The constructor returns once the engine is warm.

    Args:
        scorer: the model; nothing else may use it at the same time.
        limits: bounds of the engine.
        metrics: observes what the engine does.
    """

    def __init__(
        self,
        scorer: Scorer,
        limits: Limits | None = None,
        metrics: MetricsSink | None = None,
    ) -> None:
        self.scorer = scorer
        self.limits = limits or Limits()
        self.cache = HistoryKVCache(scorer, self.limits.cache_bytes)
        self._changed = threading.Condition()
        costs = CostModel()
        self.admission = AdmissionControl(self.limits, costs, self._changed)
        self._batches = BatchScorer(
            scorer,
            self.cache,
            costs,
            metrics or NullMetrics(),
        )
        self._queue: collections.deque[_QueueEntry] = collections.deque()
        self._is_warm = concurrent.futures.Future[None]()
        self._thread = threading.Thread(
            target=self._run,
            name="longrec-engine",
            daemon=True,
        )
        self._thread.start()
        self._is_warm.result()

    def set_metrics(self, metrics: MetricsSink) -> None:
        """Report to another metrics sink from now on."""
        self._batches.metrics = metrics

    @property
    def mean_events(self) -> int:
        """Mean number of events of recent requests: the guess for an unknown user."""
        return round(self._batches.mean_events)

    async def rank(self, request: EncodedRequest, ticket: Ticket | None = None) -> RankResult:
        """Return the scores of a request, equal to those of a cold computation.

        Raises:
            DataError: the history does not fit the schema.
            DeadlineExceeded: the deadline passed before the request was scored.
            EngineClosed: the engine is closed, and the request has no ticket.
        """
        # The queue holds requests of both kinds, so the types of answers are checked here.
        result = await self._answer_in_time(request, ticket)
        assert isinstance(result, RankResult)
        return result

    async def explain(
        self,
        request: EncodedRequest,
        num_top_events: int,
        ticket: Ticket | None = None,
    ) -> Explanation:
        """Return the events that each layer and head weighs most for the first candidate.

        Raises:
            ConfigError: the model cannot be explained.
            DataError, DeadlineExceeded, EngineClosed: as `rank` does.
        """
        explanation = await self._answer_in_time(request, ticket, num_top_events)
        assert isinstance(explanation, Explanation)
        return explanation

    def submit(
        self,
        request: EncodedRequest,
        ticket: Ticket | None = None,
        num_top_events: int = 0,
    ) -> concurrent.futures.Future[Answer]:
        """Queue a request; return its future answer, for callers without an event loop.

        Args:
            request: to be ranked.
            ticket: ticket of an admitted request, which is accepted even while the engine closes.
            num_top_events: above 0 for an Explanation instead of a RankResult.

        Raises:
            EngineClosed: the engine is closed, and the request has no ticket.
        """
        entry = _QueueEntry(
            request=request,
            answer=concurrent.futures.Future(),
            queued_at=time.monotonic(),
            num_top_events=num_top_events,
        )
        with self._changed:
            if self.admission.is_closed and ticket is None:
                raise EngineClosed("the engine is closed")
            self._queue.append(entry)
            self._changed.notify_all()
        return entry.answer

    def close(self) -> None:
        """Finish the admitted requests, then free the memory; it is safe to call this twice."""
        self.admission.close()
        self._thread.join()
        self.cache.clear()

    async def _answer_in_time(
        self,
        request: EncodedRequest,
        ticket: Ticket | None,
        num_top_events: int = 0,
    ) -> Answer:
        answer = self.submit(request, ticket, num_top_events)
        timeout = None
        if request.deadline != math.inf:
            timeout = request.deadline - time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the request was scored") from error

    def _run(self) -> None:
        torch.get_num_threads()  # a new thread uses all cores until torch is asked once
        try:
            warm_up(self._batches)
        except BaseException as error:
            self._is_warm.set_exception(error)
            return
        self._is_warm.set_result(None)
        while entries := self._next_batch():
            self._process(entries)

    def _next_batch(self) -> list[_QueueEntry]:
        """Wait for requests; return a batch in order of arrival, nothing once all is finished."""
        with self._changed:
            while not self._queue:
                if self.admission.is_closed and self.admission.num_in_progress == 0:
                    return []
                self._changed.wait()
            entries = [self._queue.popleft()]
            if entries[0].num_top_events:
                return entries
            num_events = self._batches.num_events(entries[0].request)
            while self._queue and len(entries) < self.limits.batch_requests:
                following = self._queue[0]
                num_events += self._batches.num_events(following.request)
                if num_events > self.limits.batch_events or following.num_top_events:
                    break
                entries.append(self._queue.popleft())
            return entries

    def _process(self, entries: list[_QueueEntry]) -> None:
        """Answer a batch, or set the error of each request."""
        now = time.monotonic()
        for entry in entries:
            self._batches.observe_stage("queue", now - entry.queued_at, [entry.request])
        in_time = [entry for entry in entries if _is_wanted(entry, now)]
        if not in_time:
            return
        try:
            answers = self._answer(in_time)
        except Exception as error:
            if len(in_time) == 1:
                in_time[0].answer.set_exception(error)
                return
            for entry in in_time:  # one bad request must not fail the others
                self._process_alone(entry)
            return
        for entry, answer in zip(in_time, answers, strict=True):
            entry.answer.set_result(answer)

    def _process_alone(self, entry: _QueueEntry) -> None:
        try:
            entry.answer.set_result(self._answer([entry])[0])
        except Exception as error:
            entry.answer.set_exception(error)

    def _answer(self, entries: list[_QueueEntry]) -> list[Answer]:
        first = entries[0]
        if first.num_top_events:
            return [self._batches.explain(first.request, first.num_top_events)]
        requests = [entry.request for entry in entries]
        return [*self._batches.rank(requests)]


def _is_wanted(entry: _QueueEntry, now: float) -> bool:
    """Return whether someone still waits for the answer; fail a request past its deadline."""
    if not entry.answer.set_running_or_notify_cancel():
        return False
    if entry.request.deadline > now:
        return True
    reason = "the deadline passed before the request could be scored"
    entry.answer.set_exception(DeadlineExceeded(reason))
    return False
