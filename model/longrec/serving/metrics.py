"""Metrics of a worker for Prometheus; engines report to a MetricsSink.

Every name begins with `longrec_`. Units are base units and part of the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from longrec.serving.kv_cache import CacheCounts
from longrec.serving.prometheus.exemplars import worker_exemplars
from longrec.serving.requests import EncodedRequest, RankResult
from longrec.tracing import Trace

STAGE_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
EVENTS = (0, 10, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
REQUESTS = (1, 2, 4, 8, 16, 32)
MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
AGE_SECONDS = (
    1,
    10,
    MINUTE,
    10 * MINUTE,
    HOUR,
    6 * HOUR,
    DAY,
    7 * DAY,
    30 * DAY,
    365 * DAY,
)
SCORES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
DIFFERENCES = (1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NUM_SAMPLED_SCORES = 8
"""Scores of a request that enter the histogram, evenly spread over its candidates: each one costs
microseconds.
"""
STAGES = ("fetch", "queue", "encode", "score")
STAGE_METRIC = "longrec_stage_seconds"
REJECTION_REASONS = ("caller", "overload", "deadline", "closed")
SHADOW_OUTCOMES = ("compared", "dropped", "failed")


class MetricsSink(Protocol):
    """Observer of an engine; called from the engine's thread, so it must not wait."""

    def observe_stage(
        self,
        stage: str,
        seconds: float,
        trace: Trace | None = None,
    ) -> None:
        """Observe the time of a stage: `queue` of a request; `encode` and `score` of a batch.

        Args:
            stage: one of STAGES.
            seconds: its time.
            trace: of a sampled request in it.
        """

    def observe_batch(
        self,
        requests: Sequence[EncodedRequest],
        results: Sequence[RankResult],
    ) -> None:
        """Observe requests that were scored together."""

    def observe_cache(
        self,
        change: CacheCounts,
        *,
        num_bytes: int,
        num_users: int,
        ages_seconds: Sequence[float],
    ) -> None:
        """Observe the cache after a batch.

        Args:
            change: counted during the batch.
            num_bytes, num_users: size of the cache.
            ages_seconds: times since the last encoding of the users found.
        """


class NullMetrics:
    """A metrics sink that discards everything."""

    def observe_stage(
        self,
        stage: str,
        seconds: float,
        trace: Trace | None = None,
    ) -> None:
        """Discard the time of a stage."""

    def observe_batch(
        self,
        requests: Sequence[EncodedRequest],
        results: Sequence[RankResult],
    ) -> None:
        """Discard a batch."""

    def observe_cache(
        self,
        change: CacheCounts,
        *,
        num_bytes: int,
        num_users: int,
        ages_seconds: Sequence[float],
    ) -> None:
        """Discard the state of the cache."""


class PrometheusMetrics:
    """Prometheus metrics of one worker: a MetricsSink and a RolloutListener.

    prometheus_client is imported by the constructor, which must run in the serving process: BentoML
    sets the directory of the worker's counters just before.

    Args:
        task_names: label values of the scores.
        registry: a prometheus_client registry; None for that of the process.
    """

    def __init__(self, task_names: Sequence[str], registry: Any = None) -> None:
        from prometheus_client import REGISTRY

        self._tasks = list(task_names)
        self._exemplars = worker_exemplars()
        self._options: dict[str, Any] = {"registry": registry or REGISTRY}
        self._create_traffic_metrics()
        self._create_score_metrics()
        self._create_cache_metrics()
        self._create_rollout_metrics()

    @contextmanager
    def timed(self, stage: str, trace: Trace | None = None) -> Iterator[None]:
        """Observe the time of a `with` block, and trace it for a sampled request."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            self.observe_stage(stage, seconds, trace)
            if trace is not None:
                trace.add_span(stage, seconds)

    def observe_stage(
        self,
        stage: str,
        seconds: float,
        trace: Trace | None = None,
    ) -> None:
        """Observe the time of a stage."""
        self._stages.labels(stage).observe(seconds)
        if trace is not None:
            self._exemplars.add(
                STAGE_METRIC,
                {"stage": stage},
                seconds,
                bounds=STAGE_SECONDS,
                trace=trace,
            )

    def observe_batch(
        self,
        requests: Sequence[EncodedRequest],
        results: Sequence[RankResult],
    ) -> None:
        """Observe requests that were scored together."""
        self._batch.observe(len(results))
        for request, result in zip(requests, results, strict=True):
            num_known = len(result.scores) - result.num_unknown
            self._history_length.observe(result.num_events)
            self._candidates.labels("yes").inc(num_known)
            self._candidates.labels("no").inc(result.num_unknown)
            if result.newest_ms is not None:
                age_ms = request.rows.request_time_ms - result.newest_ms
                self._newest_event_age.observe(age_ms / 1e3)
            self._observe_scores(result)

    def observe_cache(
        self,
        change: CacheCounts,
        *,
        num_bytes: int,
        num_users: int,
        ages_seconds: Sequence[float],
    ) -> None:
        """Observe the cache after a batch."""
        self._cache_requests.labels("hit").inc(change.hits)
        self._cache_requests.labels("partial").inc(change.partial_hits)
        self._cache_requests.labels("miss").inc(change.misses)
        self._encoded_events.inc(change.num_encoded)
        self._evictions.inc(change.evictions)
        self._cache_bytes.set(num_bytes)
        self._cache_users.set(num_users)
        for age in ages_seconds:
            self._cache_age.observe(age)

    def count_degraded(self, num_events: int) -> None:
        """Count an answer without the feature store, from cached or from no events."""
        self._degraded.labels("cached" if num_events else "empty").inc()

    def count_rejected(self, reason: str) -> None:
        """Count a request that was not answered, for one of REJECTION_REASONS."""
        self._rejected.labels(reason).inc()

    def observe_admission(self, concurrency_limit: int, estimated_seconds: float) -> None:
        """Observe the admission control when a request is admitted.

        Args:
            concurrency_limit: requests that may be in progress.
            estimated_seconds: estimated work of the requests in progress.
        """
        self._concurrency_limit.set(concurrency_limit)
        self._estimated_work.set(estimated_seconds)

    def model_activated(self, version: str, replaced: str | None) -> None:
        """Set the version that answers, and count the swap."""
        self._workers.labels(version).set(1)
        if replaced is not None:
            self._workers.labels(replaced).set(0)
            self._swaps.inc()

    def load_failed(self) -> None:
        """Count a failed attempt to load a version."""
        self._load_failures.inc()

    def request_mirrored(self, outcome: str, difference: float = 0.0) -> None:
        """Count a mirrored request by one of SHADOW_OUTCOMES."""
        self._mirrored.labels(outcome).inc()
        if outcome == "compared":
            self._difference.observe(difference)

    def _observe_scores(self, result: RankResult) -> None:
        num_candidates = len(result.scores)
        num_sampled = min(num_candidates, NUM_SAMPLED_SCORES)
        places = np.linspace(0, num_candidates - 1, num_sampled).astype(np.int64)
        sample = result.scores[places]
        for task, column in zip(self._tasks, sample.T.tolist(), strict=True):
            histogram = self._scores.labels(task)
            for score in column:
                histogram.observe(score)

    def _create_traffic_metrics(self) -> None:
        from prometheus_client import Counter, Histogram

        self._stages = Histogram(
            STAGE_METRIC,
            "Time of a stage: fetch and queue of a request, encode and score of a batch.",
            ["stage"],
            buckets=STAGE_SECONDS,
            **self._options,
        )
        self._batch = Histogram(
            "longrec_batch_requests",
            "Requests scored together.",
            buckets=REQUESTS,
            **self._options,
        )
        self._degraded = Counter(
            "longrec_degraded_total",
            "Answers without the feature store, by the history used instead.",
            ["history"],
            **self._options,
        )
        self._rejected = Counter(
            "longrec_rejected_requests_total",
            "Requests that were not answered, by reason.",
            ["reason"],
            **self._options,
        )
        self._create_admission_metrics()
        _create_series(self._stages, STAGES)
        _create_series(self._degraded, ("cached", "empty"))
        _create_series(self._rejected, REJECTION_REASONS)

    def _create_admission_metrics(self) -> None:
        from prometheus_client import Gauge

        self._concurrency_limit = Gauge(
            "longrec_concurrency_limit_requests",
            "Requests that may be in progress, when the last one was admitted.",
            multiprocess_mode="livesum",
            **self._options,
        )
        self._estimated_work = Gauge(
            "longrec_estimated_work_seconds",
            "Estimated work of the requests in progress, when the last one was admitted.",
            multiprocess_mode="livemax",
            **self._options,
        )

    def _create_score_metrics(self) -> None:
        from prometheus_client import Counter, Histogram

        self._history_length = Histogram(
            "longrec_history_events",
            "Events used by a request.",
            buckets=EVENTS,
            **self._options,
        )
        self._newest_event_age = Histogram(
            "longrec_newest_event_age_seconds",
            "Request time minus the newest event used.",
            buckets=AGE_SECONDS,
            **self._options,
        )
        self._scores = Histogram(
            "longrec_score",
            "Scores, a sample of each request.",
            ["task"],
            buckets=SCORES,
            **self._options,
        )
        self._candidates = Counter(
            "longrec_candidates_total",
            "Scored candidates, by whether the model knows them.",
            ["known"],
            **self._options,
        )
        _create_series(self._scores, self._tasks)
        _create_series(self._candidates, ("yes", "no"))

    def _create_cache_metrics(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._cache_requests = Counter(
            "longrec_cache_requests_total",
            "Requests that found all, some or none of their events in the cache.",
            ["result"],
            **self._options,
        )
        self._encoded_events = Counter(
            "longrec_encoded_events_total",
            "Encoded events.",
            **self._options,
        )
        self._evictions = Counter(
            "longrec_cache_evictions_total",
            "Users evicted from the cache for others.",
            **self._options,
        )
        self._cache_bytes = Gauge(
            "longrec_cache_bytes",
            "Bytes of cached histories.",
            multiprocess_mode="livesum",
            **self._options,
        )
        self._cache_users = Gauge(
            "longrec_cache_users",
            "Users with a cached history.",
            multiprocess_mode="livesum",
            **self._options,
        )
        self._cache_age = Histogram(
            "longrec_cache_age_seconds",
            "Time since the last encoding of a cached history, when used.",
            buckets=AGE_SECONDS,
            **self._options,
        )
        _create_series(self._cache_requests, ("hit", "partial", "miss"))

    def _create_rollout_metrics(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._workers = Gauge(
            "longrec_model_workers",
            "Workers that answer with a version.",
            ["version"],
            multiprocess_mode="livesum",
            **self._options,
        )
        self._swaps = Counter(
            "longrec_model_swaps_total",
            "Replacements of one version by another in a worker.",
            **self._options,
        )
        self._load_failures = Counter(
            "longrec_model_load_failures_total",
            "Failed attempts to load a version.",
            **self._options,
        )
        self._mirrored = Counter(
            "longrec_shadow_requests_total",
            "Requests copied to the challenger, by outcome.",
            ["outcome"],
            **self._options,
        )
        self._difference = Histogram(
            "longrec_shadow_difference",
            "Mean absolute difference of the scores of a mirrored request.",
            buckets=DIFFERENCES,
            **self._options,
        )
        _create_series(self._mirrored, SHADOW_OUTCOMES)


def _create_series(metric: Any, label_values: Sequence[str]) -> None:
    """Create the series of a metric, so its rate is known from the first observation on."""
    for value in label_values:
        metric.labels(value)
