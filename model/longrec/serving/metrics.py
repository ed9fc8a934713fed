"""Metrics: what a service does, as Prometheus counts it. Every name begins with `longrec_`; units
are base units and in the name.

prometheus_client is imported when the metrics are made, which must be in the process that serves:
BentoML names the directory of its
workers' counters just before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from longrec.serving.engine import Query, Ranked
from longrec.serving.kv_cache import CacheCounts

STAGE_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
EVENTS = (0, 10, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
AGES = (1, 10, 60, 600, 3_600, 6 * 3_600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)
SCORES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
SAMPLED_SCORES = 8
"""Scores of a request that enter the distribution, evenly spread over its candidates; each costs
microseconds.
"""
DIFFERENCES = (1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SHED = ("caller", "overload", "deadline", "closed")


class Metrics:
    """Counters, gauges and histograms of one worker; a Meter of every engine in it.

    Args:
        task_names: label values of the scores.
        registry: a prometheus_client registry; None for the process's own.
    """

    def __init__(self, task_names: Sequence[str], registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        where: dict[str, Any] = {"registry": registry or REGISTRY}
        self._stages = Histogram(
            "longrec_stage_seconds",
            "Time of a stage: fetch and queue of a request, encode and score of a batch.",
            ["stage"],
            buckets=STAGE_SECONDS,
            **where,
        )
        self._length = Histogram(
            "longrec_history_events",
            "Events that a request was ranked by.",
            buckets=EVENTS,
            **where,
        )
        self._batch = Histogram(
            "longrec_batch_requests",
            "Requests scored together.",
            buckets=(1, 2, 4, 8, 16, 32),
            **where,
        )
        self._freshness = Histogram(
            "longrec_newest_event_age_seconds",
            "Request time minus the newest event used.",
            buckets=AGES,
            **where,
        )
        self._scores = Histogram(
            "longrec_score", "Scores, a sample of each request.", ["task"], buckets=SCORES, **where
        )
        self._candidates = Counter(
            "longrec_candidates_total",
            "Candidates scored, by whether the model knows them.",
            ["known"],
            **where,
        )
        self._found = Counter(
            "longrec_cache_requests_total",
            "Requests whose events were all, partly or not kept.",
            ["result"],
            **where,
        )
        self._encoded = Counter(
            "longrec_encoded_events_total", "Events that had to be encoded.", **where
        )
        self._evictions = Counter(
            "longrec_cache_evictions_total", "Users dropped from the cache for others.", **where
        )
        self._bytes = Gauge(
            "longrec_cache_bytes", "Bytes of kept histories.", multiprocess_mode="livesum", **where
        )
        self._users = Gauge(
            "longrec_cache_users",
            "Users whose histories are kept.",
            multiprocess_mode="livesum",
            **where,
        )
        self._age = Histogram(
            "longrec_cache_age_seconds",
            "Time since a kept history was last added to, when used.",
            buckets=AGES,
            **where,
        )
        self._degraded = Counter(
            "longrec_degraded_total",
            "Answers without the feature store, by what they had instead.",
            ["history"],
            **where,
        )
        self._shed = Counter(
            "longrec_shed_total", "Requests not answered, by reason.", ["reason"], **where
        )
        self._workers = Gauge(
            "longrec_model_workers",
            "Workers that answer with a version.",
            ["version"],
            multiprocess_mode="livesum",
            **where,
        )
        self._swaps = Counter(
            "longrec_model_swaps_total",
            "Times that a version took another one's place in a worker.",
            **where,
        )
        self._refusals = Counter(
            "longrec_model_refusals_total",
            "Versions that could not be loaded, tries counted.",
            **where,
        )
        self._mirrored = Counter(
            "longrec_shadow_requests_total",
            "Requests copied to the challenger, by outcome.",
            ["outcome"],
            **where,
        )
        self._difference = Histogram(
            "longrec_shadow_difference",
            "Mean absolute difference of the scores of a mirrored request.",
            buckets=DIFFERENCES,
            **where,
        )
        self._tasks = list(task_names)
        for counter, values in (
            (self._found, ("hit", "partial", "miss")),
            (self._degraded, ("kept", "empty")),
            (self._shed, SHED),
            (self._mirrored, ("compared", "dropped", "failed")),
        ):
            for value in values:
                counter.labels(
                    value
                )  # a series that is there from the start has a rate from the start

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Notes how long its body took."""
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds(stage, perf_counter() - started)

    def seconds(self, stage: str, value: float) -> None:
        """Notes the time of a stage."""
        self._stages.labels(stage).observe(value)

    def batch(self, queries: Sequence[Query], ranked: Sequence[Ranked]) -> None:
        """Notes what was scored together."""
        self._batch.observe(len(ranked))
        for query, answer in zip(queries, ranked, strict=True):
            self._length.observe(answer.num_events)
            self._candidates.labels("yes").inc(len(answer.scores) - answer.num_unknown)
            self._candidates.labels("no").inc(answer.num_unknown)
            if answer.newest_ms is not None:
                self._freshness.observe((query.rows.request_time_ms - answer.newest_ms) / 1e3)
            step = max(1, len(answer.scores) // SAMPLED_SCORES)
            for task, column in zip(self._tasks, answer.scores[::step].T.tolist(), strict=True):
                for score in column[:SAMPLED_SCORES]:
                    self._scores.labels(task).observe(score)

    def cache(
        self, change: CacheCounts, num_bytes: int, num_users: int, ages_seconds: Sequence[float]
    ) -> None:
        """Notes what a batch did to the cache."""
        for result, count in (
            ("hit", change.hits),
            ("partial", change.partial),
            ("miss", change.misses),
        ):
            self._found.labels(result).inc(count)
        self._encoded.inc(change.num_encoded)
        self._evictions.inc(change.evictions)
        self._bytes.set(num_bytes)
        self._users.set(num_users)
        for age in ages_seconds:
            self._age.observe(age)

    def degraded(self, num_events: int) -> None:
        """Counts an answer without the feature store."""
        self._degraded.labels("kept" if num_events else "empty").inc()

    def shed(self, reason: str) -> None:
        """Counts a request that was not answered; the reasons are SHED."""
        self._shed.labels(reason).inc()

    def serving(self, version: str, before: str | None) -> None:
        """Notes which version answers from now on, and which did."""
        self._workers.labels(version).set(1)
        if before is not None:
            self._workers.labels(before).set(0)
            self._swaps.inc()

    def refused(self) -> None:
        """Counts a version that could not be loaded."""
        self._refusals.inc()

    def mirrored(self, outcome: str, difference: float = 0.0) -> None:
        """Counts a mirrored request: compared, dropped or failed."""
        self._mirrored.labels(outcome).inc()
        if outcome == "compared":
            self._difference.observe(difference)
