"""Choose the served length on validation requests.

The choice is the shortest length that is not distinguishable from the best one: the interval of
their paired difference of AUC, over resampled users, includes 0.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap
from longrec.evaluation.bootstrap import Estimate, TaskMetrics
from longrec.evaluation.length_curve import LengthScores, score_lengths
from longrec.evaluation.sample import EvaluationSample
from longrec.scoring.scorer import Scorer

log = logging.getLogger(__name__)

BOOTSTRAP_SAMPLES = 200
NO_REQUESTS = "there are no validation requests, so it is the longest one"
NO_INTERVAL = "the validation has no interval of the AUC, so it is the longest one"
FIXED = "it was set"
CHOSEN = "the shortest length that validation does not distinguish from the best one, {best:,}"


@dataclasses.dataclass(frozen=True, slots=True)
class LengthChoice:
    """A served length and why it was chosen.

    Args:
        length: number of most recent events.
        reason: why.
        is_falling: whether the longest length is worse than the best one, beyond the interval.
        curve: `length`, `mean_events`, `auc`, `auc_low`, `auc_high`, and the paired `difference` to
            the best length with its `difference_low` and `difference_high`, by rising length; empty
            if nothing was measured.
    """

    length: int
    reason: str
    is_falling: bool = False
    curve: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def choose_served_length(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample | None,
    lengths: Sequence[int],
) -> LengthChoice:
    """Return the choice among some lengths.

    Args:
        scorer: scorer of the trained model.
        encoded: the histories.
        sample: validation requests; None for none.
        lengths: candidates, at least one.
    """
    longest = max(lengths)
    if len(lengths) == 1:
        return LengthChoice(longest, FIXED)
    if sample is None:
        return LengthChoice(longest, NO_REQUESTS)
    entries = list(score_lengths(scorer, encoded, sample, lengths))
    measured = _measure(entries, sample)
    choice = _choose(entries, measured)
    log.info("served length %d: %s", choice.length, choice.reason)
    return choice


def _measure(
    entries: Sequence[LengthScores],
    sample: EvaluationSample,
) -> dict[int, TaskMetrics]:
    """Return the metrics of the first task by length."""
    measured: dict[int, TaskMetrics] = {}
    for entry in entries:
        if entry.same_as is not None:
            measured[entry.length] = measured[entry.same_as]
            continue
        measured[entry.length] = bootstrap.measure(
            sample.labels[:, 0],
            entry.scores[:, 0],
            sample.resamples,
        )
    return measured


def _choose(
    entries: Sequence[LengthScores],
    measured: dict[int, TaskMetrics],
) -> LengthChoice:
    """Return the choice from the metrics by rising length."""
    longest = max(measured)
    aucs = {length: metrics.values.get("auc", -1.0) for length, metrics in measured.items()}
    # `max` returns the shortest one of equal AUC.
    best = max(aucs, key=lambda length: aucs[length])
    differences = {
        length: bootstrap.paired_difference(metrics, measured[best])
        for length, metrics in measured.items()
    }
    curve = tuple(_row(entry, measured[entry.length], differences) for entry in entries)
    level = [length for length, difference in differences.items() if _includes_zero(difference)]
    if not level:
        return LengthChoice(longest, NO_INTERVAL, curve=curve)
    return LengthChoice(
        min(level),
        CHOSEN.format(best=best),
        is_falling=longest not in level,
        curve=curve,
    )


def _includes_zero(difference: Estimate) -> bool:
    """Return whether a difference to the best length, which is 0 or below, has 0 inside."""
    return difference.high is not None and difference.high >= 0


def _row(
    entry: LengthScores,
    metrics: TaskMetrics,
    differences: dict[int, Estimate],
) -> dict[str, Any]:
    auc = metrics.estimate("auc")
    difference = differences[entry.length]
    return {
        "length": entry.length,
        "mean_events": entry.mean_events,
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }
