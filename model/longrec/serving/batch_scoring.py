"""One batch of requests: slice the histories, encode what the cache lacks, score, count."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from longrec.data import history
from longrec.errors import ConfigError
from longrec.scoring.request import CachedEvents, RequestRows, encode_events
from longrec.scoring.scorer import Scorer, Scores
from longrec.scoring.unknown import count_unknown
from longrec.serving.admission.cost_model import CostModel
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice
from longrec.serving.metrics import MetricsSink
from longrec.serving.requests import EncodedRequest, Explanation, RankResult, TopEvents

MEAN_WEIGHT = 0.2
"""Weight of one batch in the moving average of events per request."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch:
    """A scored batch.

    Args:
        slices: events that each request attended to.
        keys_values: of the events of each slice; None for a model without a KV cache.
        results: one result for each request.
    """

    slices: Sequence[HistorySlice]
    keys_values: Sequence[CachedEvents] | None
    results: list[RankResult]


class _Clocks(NamedTuple):
    """Clocks of the engine's thread, in seconds.

    Args:
        wall: of the wall.
        worked: while the thread had a core. Under load it also waits for a core and for the
            interpreter. A wait for the GPU counts, since the driver spins.
    """

    wall: float
    worked: float

    @classmethod
    def now(cls) -> _Clocks:
        """Return both clocks."""
        return cls(time.perf_counter(), time.thread_time())


class BatchScorer:
    """Scorer of whole batches, for one thread at a time.

    Args:
        scorer: the model.
        cache: history KV cache of the model.
        costs: learns from the time of each batch.
        metrics: observes each batch.
    """

    def __init__(
        self,
        scorer: Scorer,
        cache: HistoryKVCache,
        costs: CostModel,
        metrics: MetricsSink,
    ) -> None:
        self.scorer = scorer
        self.cache = cache
        self.costs = costs
        self.metrics = metrics
        self.mean_events = 0.0

    def rank(self, requests: Sequence[EncodedRequest]) -> list[RankResult]:
        """Return the result of each request, equal to that of scoring it alone.

        Raises:
            DataError: a history does not fit the schema.
        """
        return self._run(requests).results

    def explain(self, request: EncodedRequest, num_top_events: int) -> Explanation:
        """Return the events that each layer and head weighs most for the first candidate.

        Raises:
            ConfigError: the model attends in another way than STCA.
            DataError: the history does not fit the schema.
        """
        batch = self._run([request])
        if batch.keys_values is None:
            raise ConfigError(
                "this model cannot be explained",
                found=f"model.kind {self.scorer.bundle.config.kind}",
                expected="stca",
            )
        first_candidate = request.rows.candidates[:1]
        rows = dataclasses.replace(request.rows, candidates=first_candidate)
        weights = self.scorer.attention(rows, batch.keys_values[0])  # [M, H, 1, L]
        num_layers, num_heads = weights.shape[:2]
        heads = []
        for layer, head in np.ndindex(num_layers, num_heads):
            weights_of_head = weights[layer, head, 0]
            order = np.argsort(-weights_of_head, kind="stable")
            rows_of_head = order[:num_top_events]
            top = TopEvents(
                layer=layer,
                head=head,
                rows=rows_of_head,
                weights=weights_of_head[rows_of_head],
            )
            heads.append(top)
        return Explanation(
            batch.results[0],
            batch.slices[0].start,
            tuple(heads),
        )

    def num_events(self, request: EncodedRequest) -> int:
        """Return an upper bound of the events that a request uses."""
        num_rows = int(request.rows.history.num_rows)
        return min(num_rows, self._length(request))

    def observe_stage(
        self,
        stage: str,
        seconds: float,
        requests: Sequence[EncodedRequest],
        *,
        ended_seconds_ago: float = 0.0,
    ) -> None:
        """Observe the time of a stage, and trace it for each sampled request.

        Args:
            stage: one of longrec.serving.metrics.STAGES.
            seconds: its time.
            requests: those that it worked for.
            ended_seconds_ago: time since its end.
        """
        traces = [request.trace for request in requests if request.trace is not None]
        self.metrics.observe_stage(stage, seconds, traces[0] if traces else None)
        for trace in traces:
            trace.add_span(
                stage,
                seconds,
                ended_seconds_ago=ended_seconds_ago,
                attributes={"longrec.batch.requests": len(requests)},
            )

    def _run(self, requests: Sequence[EncodedRequest]) -> _Batch:
        slices = [self._slice(request) for request in requests]
        ages_seconds = self._cache_ages(slices)
        before = dataclasses.replace(self.cache.counts)
        started = _Clocks.now()
        events = self.cache.get_or_encode(slices) if self.scorer.is_separable else None
        encoded = _Clocks.now()
        scores = self._score(requests, slices, events)
        unknown = self._count_unknown(slices, events)
        results = [
            self._result(*facts) for facts in zip(requests, slices, scores, unknown, strict=True)
        ]
        scored = _Clocks.now()
        change = self.cache.counts.since(before)
        self._learn(requests, results, scored.worked - encoded.worked)
        self.costs.learn_encoding(change.num_encoded, encoded.worked - started.worked)
        score_seconds = scored.wall - encoded.wall
        self.observe_stage(
            "encode",
            encoded.wall - started.wall,
            requests,
            ended_seconds_ago=score_seconds,
        )
        self.observe_stage("score", score_seconds, requests)
        self.metrics.observe_batch(requests, results)
        self.metrics.observe_cache(
            change,
            num_bytes=self.cache.num_bytes,
            num_users=len(self.cache),
            ages_seconds=ages_seconds,
        )
        return _Batch(slices, events, results)

    def _cache_ages(self, slices: Sequence[HistorySlice]) -> list[float]:
        """Return the ages of the entries of these users, in seconds."""
        ages = []
        for used in slices:
            if used.key is None:
                continue
            age = self.cache.age_seconds(used.key)
            if age is not None:
                ages.append(age)
        return ages

    def _slice(self, request: EncodedRequest) -> HistorySlice:
        """Return the most recent events before the request time."""
        timeline = request.rows.history
        request_time_ms = request.rows.request_time_ms
        end = history.events_before(timeline, request_time_ms).num_rows
        start = max(0, end - self._length(request))
        return HistorySlice(
            key=request.key,
            timeline=timeline,
            start=start,
            end=end,
            request_time_ms=request_time_ms,
        )

    def _length(self, request: EncodedRequest) -> int:
        if request.length is None:
            return self.scorer.bundle.served_length
        return request.length

    def _score(
        self,
        requests: Sequence[EncodedRequest],
        slices: Sequence[HistorySlice],
        events: Sequence[CachedEvents] | None,
    ) -> list[Scores]:
        if events is not None:
            return self.scorer.score_cached([request.rows for request in requests], events)
        # The model does not encode histories apart from candidates: there is nothing to cache.
        rows = [
            _with_history(request.rows, used)
            for request, used in zip(requests, slices, strict=True)
        ]
        longest = max(used.num_events for used in slices)
        return self.scorer.score(rows, longest)

    def _count_unknown(
        self,
        slices: Sequence[HistorySlice],
        events: Sequence[CachedEvents] | None,
    ) -> list[dict[str, int]]:
        """Return the events of each slice with unknown values, by column."""
        encoder = self.scorer.bundle.encoder
        if events is None:
            encoded = [encode_events(encoder, used.events) for used in slices]
            return [count_unknown(encoder, rows, features) for rows, features, _ in encoded]
        # One copy from a GPU for the whole batch: each one waits for the device.
        ends = np.cumsum([len(found.encoded) for found in events])
        all_rows = torch.cat([found.encoded for found in events]).cpu().numpy()
        cached = np.split(all_rows, ends[:-1])
        return [count_unknown(encoder, rows[:, 0], rows[:, 1:]) for rows in cached]

    def _result(
        self,
        request: EncodedRequest,
        used: HistorySlice,
        scores: Scores,
        unknown_events: Mapping[str, int],
    ) -> RankResult:
        newest_ms = None
        if used.num_events:
            times = history.timestamps(used.timeline)
            newest_ms = int(times[used.end - 1])
        item_rows = self.scorer.bundle.encoder.item_rows(request.rows.candidates)
        return RankResult(
            scores=scores,
            num_events=used.num_events,
            num_unknown=int((item_rows == 0).sum()),
            unknown_events=unknown_events,
            newest_ms=newest_ms,
        )

    def _learn(
        self,
        requests: Sequence[EncodedRequest],
        results: Sequence[RankResult],
        seconds: float,
    ) -> None:
        """Update the cost of scoring, and the mean number of events."""
        num_events = [result.num_events for result in results]
        mean_of_batch = float(np.mean(num_events))
        self.mean_events += MEAN_WEIGHT * (mean_of_batch - self.mean_events)
        num_candidates = [len(request.rows.candidates) for request in requests]
        num_pairs = int(np.dot(num_candidates, num_events))
        self.costs.learn_scoring(len(requests), num_pairs, seconds)


def _with_history(rows: RequestRows, used: HistorySlice) -> RequestRows:
    return dataclasses.replace(rows, history=used.events)
