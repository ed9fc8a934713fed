"""Measure the first task at several served lengths: the AUC curve and the extrapolation.

All lengths see the same requests and the same bootstrap resamples.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap
from longrec.evaluation.bootstrap import TaskMetrics
from longrec.evaluation.sample import EvaluationInputs, EvaluationSample, score_sample_at
from longrec.scoring.scorer import Scorer

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]
Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class LengthScores:
    """The scores of a sample at one served length.

    Args:
        length: number of most recent events served.
        mean_events: mean number of events that the requests then have.
        same_as: shorter length with the same scores, if no history is cut differently; else None.
        scores: float32 [N, K].
    """

    length: int
    mean_events: float
    same_as: int | None
    scores: Array


@dataclasses.dataclass(frozen=True, slots=True)
class LengthCurve:
    """The first task at all served lengths.

    Args:
        served_scores: float32 [N, K], at the served length.
        rows: `length`, `auc`, `auc_low`, `auc_high`, `logloss`, `mean_events`, `same_as`, by
            rising length.
        extrapolation: see `EvaluationReport`.
    """

    served_scores: Array
    rows: tuple[Row, ...]
    extrapolation: Row


def score_lengths(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample,
    lengths: Iterable[int],
) -> Iterator[LengthScores]:
    """Yield the scores of the sample at each length, shortest first.

    Scores are not computed again if a length leaves every history as the previous one did.
    """
    events = encoded.event_ends[sample.requests] - encoded.event_starts[sample.requests]
    ordered = sorted(set(lengths))
    means = [float(np.minimum(events, length).mean()) for length in ordered]
    # A longer cut can only add events: with equal means, all histories are equal.
    first_equal = [ordered[means.index(mean)] for mean in means]
    distinct = sorted(set(first_equal))
    started = time.perf_counter()
    scores = score_sample_at(scorer, encoded, sample, distinct)
    by_length = dict(zip(distinct, scores, strict=True))
    seconds = time.perf_counter() - started
    log.info("scored %d served lengths in %.1f s", len(distinct), seconds)
    for length, mean, first in zip(ordered, means, first_equal, strict=True):
        same_as = None if first == length else first
        yield LengthScores(length, mean, same_as, by_length[first])


def measure_lengths(inputs: EvaluationInputs) -> LengthCurve:
    """Return the curve of the first task and the scores at the served length."""
    sample = inputs.sample
    served_length = inputs.config.served_length
    shown_lengths = {*inputs.config.lengths, served_length}
    trained_length = _trained_length(inputs.scorer)
    lengths = shown_lengths if trained_length is None else {*shown_lengths, trained_length}
    served_scores = np.zeros((0, sample.labels.shape[1]), np.float32)
    rows: list[Row] = []
    measured: dict[int, TaskMetrics] = {}
    mean_events: dict[int, float] = {}
    for entry in score_lengths(inputs.scorer, inputs.encoded, sample, lengths):
        if entry.same_as is None:
            metrics = bootstrap.measure(
                sample.labels[:, 0],
                entry.scores[:, 0],
                sample.resamples,
            )
        else:
            metrics = measured[entry.same_as]
        measured[entry.length] = metrics
        mean_events[entry.length] = entry.mean_events
        if entry.length == served_length:
            served_scores = entry.scores
        if entry.length in shown_lengths:
            row = _curve_row(entry, metrics)
            # The trained length may have no row: a row refers to an earlier row only.
            row["same_as"] = _equal_row(entry, rows)
            rows.append(row)
    extrapolation: Row = {}
    if trained_length is not None:
        gain = bootstrap.paired_difference(measured[served_length], measured[trained_length])
        cost = mean_events[served_length] / max(mean_events[trained_length], 1e-9)
        extrapolation = dataclasses.asdict(gain)
        extrapolation |= {"trained_length": trained_length, "cost": cost}
    return LengthCurve(served_scores, tuple(rows), extrapolation)


def _trained_length(scorer: Scorer) -> int | None:
    """Return the mean history length of the bundle's training; None if it is not recorded."""
    mean = scorer.bundle.facts.get("mean_length")
    if isinstance(mean, (int, float)) and mean >= 1:
        return round(mean)
    return None


def _equal_row(entry: LengthScores, rows: Iterable[Row]) -> int | None:
    """Return the length of the first row with the scores of `entry`; None if there is none."""
    for row in rows:
        if row["mean_events"] == entry.mean_events:
            return int(row["length"])
    return None


def _curve_row(entry: LengthScores, metrics: TaskMetrics) -> Row:
    auc = metrics.estimate("auc")
    auc_text = "not defined" if auc.value is None else f"{auc.value:.4f}"
    log.info("served length %d: AUC %s", entry.length, auc_text)
    return {
        "length": entry.length,
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "logloss": metrics.estimate("logloss").value,
        "mean_events": entry.mean_events,
        "same_as": entry.same_as,
    }
