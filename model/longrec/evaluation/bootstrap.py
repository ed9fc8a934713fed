"""Measure the metrics of a task with 95 % intervals from a bootstrap over users.

Intervals resample whole users: the targets of one user are not independent. Two models are
compared on the same resamples. A metric that is not defined carries its reason.

Shape letters: N targets, U users, B resamples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from longrec.evaluation import metrics
from longrec.evaluation.metrics import RankedTargets

Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = npt.NDArray[Any]

METRICS = ("auc", "gauc", "logloss", "ne", "calibration", "ece")
"""Metrics of a task, in the order of reports."""
INTERVAL_PERCENTILES = (2.5, 97.5)
NOT_MEASURED = "it was not measured"
TOO_FEW_USERS = "there are too few users for an interval"


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; None where undefined, with the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Resamples:
    """Bootstrap resamples of users, drawn again from the seed at each iteration.

    Only one resample is in memory. Every iteration yields the same ones, so two models are compared
    on equal resamples.

    Args:
        users: int64 [N], 0..U-1, the user of each target.
        num_users: U.
        num_samples: B.
        seed: of the draws.
    """

    users: Int
    num_users: int
    num_samples: int
    seed: int

    @classmethod
    def of_users(
        cls,
        user_ids: Array,
        num_samples: int,
        seed: int,
    ) -> Resamples:
        """Return the resamples of targets.

        Args:
            user_ids: int [N], any integers.
            num_samples: B.
            seed: of the draws.
        """
        uniques, users = np.unique(user_ids, return_inverse=True)
        return cls(users.astype(np.int64), len(uniques), num_samples, seed)

    def __iter__(self) -> Iterator[Float]:
        """Yield B draws: the number of times that each user was drawn, float64 [U]."""
        generator = np.random.default_rng(self.seed)
        for _ in range(self.num_samples):
            drawn = generator.integers(self.num_users, size=self.num_users)
            yield np.bincount(drawn, minlength=self.num_users).astype(np.float64)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The metrics of one task and the resampled values behind their intervals.

    Args:
        values: metric -> value, if it is defined.
        reasons: metric -> why it is not defined.
        samples: metric -> its value on each resample, float64 [B]; nan for one with one class only.
        num_targets, num_positives, num_users: sizes.
        num_ranked_users: users with both labels, the users of GAUC.
    """

    values: Mapping[str, float]
    reasons: Mapping[str, str]
    samples: Mapping[str, Float]
    num_targets: int
    num_positives: int
    num_users: int
    num_ranked_users: int

    def estimate(self, metric: str) -> Estimate:
        """Return one metric with its interval."""
        if metric not in self.values:
            reason = self.reasons.get(metric, NOT_MEASURED)
            return Estimate(None, reason=reason)
        return percentile_interval(self.values[metric], self.samples.get(metric))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: `auc`, `auc_low`, `auc_high`, ... and the sizes.

        Undefined values are null; `undefined` holds their reasons.
        """
        result: dict[str, Any] = {}
        for metric in METRICS:
            estimate = self.estimate(metric)
            result[metric] = estimate.value
            # ECE is not resampled: it has no interval.
            if metric in self.samples or metric in self.reasons:
                result[f"{metric}_low"] = estimate.low
                result[f"{metric}_high"] = estimate.high
        result["num_targets"] = self.num_targets
        result["num_positives"] = self.num_positives
        result["num_users"] = self.num_users
        result["num_ranked_users"] = self.num_ranked_users
        result["undefined"] = dict(self.reasons)
        return result


def measure(
    labels: Array,
    scores: Array,
    resamples: Resamples,
) -> TaskMetrics:
    """Return all metrics of one task with their resampled values.

    Args:
        labels: [N], 0 or 1.
        scores: float [N], probabilities.
        resamples: of the same N targets.
    """
    labels = np.asarray(labels, np.float64)
    scores = np.asarray(scores, np.float64)
    reason = _unusable_reason(labels, scores)
    if reason:
        return unmeasured(labels, resamples, reason)
    user_auc, user_weight = metrics.user_aucs(
        labels,
        scores,
        resamples.users,
        resamples.num_users,
    )
    values, reasons = _point_metrics(labels, scores, user_auc, user_weight)
    samples = _resampled_metrics(
        labels,
        scores,
        resamples,
        weighted_user_auc=user_auc * user_weight,
        user_weight=user_weight,
    )
    return TaskMetrics(
        values=values,
        reasons=reasons,
        samples={metric: sample for metric, sample in samples.items() if metric in values},
        num_targets=len(labels),
        num_positives=int(labels.sum()),
        num_users=resamples.num_users,
        num_ranked_users=int((user_weight > 0).sum()),
    )


def unmeasured(
    labels: Array,
    resamples: Resamples,
    reason: str,
) -> TaskMetrics:
    """Return metrics without values, all undefined for one reason.

    Args:
        labels: [N], 0 or 1.
        resamples: of the same N targets.
        reason: why nothing is measured.
    """
    return TaskMetrics(
        values={},
        reasons=dict.fromkeys(METRICS, reason),
        samples={},
        num_targets=len(labels),
        num_positives=int(labels.sum()),
        num_users=resamples.num_users,
        num_ranked_users=0,
    )


def paired_difference(
    ours: TaskMetrics,
    theirs: TaskMetrics,
    metric: str = "auc",
) -> Estimate:
    """Return ours minus theirs with its paired interval.

    Both must have been measured on the same resamples.
    """
    for side in (ours, theirs):
        if metric not in side.values:
            reason = side.reasons.get(metric, NOT_MEASURED)
            return Estimate(None, reason=reason)
    value = ours.values[metric] - theirs.values[metric]
    samples = ours.samples[metric] - theirs.samples[metric]
    return percentile_interval(value, samples)


def _unusable_reason(labels: Float, scores: Float) -> str:
    if not len(labels):
        return "there are no targets"
    num_bad = int((~np.isfinite(scores)).sum())
    if num_bad:
        return f"{num_bad} scores are not finite"
    return ""


def _point_metrics(
    labels: Float,
    scores: Float,
    user_auc: Float,
    user_weight: Float,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the defined metrics and the reasons of the others."""
    ranked_targets = float(user_weight.sum())
    gauc = math.nan
    if ranked_targets:
        gauc = float(user_auc @ user_weight) / ranked_targets
    computed = {
        "auc": metrics.auc(labels, scores),
        "gauc": gauc,
        "logloss": metrics.logloss(labels, scores),
        "ne": metrics.normalized_entropy(labels, scores),
        "calibration": metrics.calibration(labels, scores),
        "ece": metrics.expected_calibration_error(labels, scores),
    }
    # AUC and NE are undefined only if all labels are equal.
    one_class = f"all labels are {int(labels[0])}"
    reason_if_undefined = {
        "auc": one_class,
        "gauc": "no user has both labels",
        "ne": one_class,
        "calibration": "there are no positives",
    }
    undefined = [metric for metric, value in computed.items() if math.isnan(value)]
    values = {metric: value for metric, value in computed.items() if metric not in undefined}
    reasons = {metric: reason_if_undefined.get(metric, "") for metric in undefined}
    return values, reasons


def _resampled_metrics(
    labels: Float,
    scores: Float,
    resamples: Resamples,
    *,
    weighted_user_auc: Float,
    user_weight: Float,
) -> dict[str, Float]:
    """Return all metrics except ECE on every resample, float64 [B] each.

    All except AUC are ratios of sums over users, so a resample of them takes O(U).
    """
    ranked = RankedTargets.sort(labels, scores, resamples.users)
    losses = metrics.log_losses(labels, scores)
    user_sums = []
    for values in (np.ones_like(labels), labels, scores, losses):
        sums_of_values = np.bincount(resamples.users, values, resamples.num_users)
        user_sums.append(sums_of_values)
    per_user = np.stack([*user_sums, weighted_user_auc, user_weight])
    aucs = []
    sums = []
    for user_weights in resamples:
        aucs.append(ranked.auc(user_weights))
        sums.append(per_user @ user_weights)
    samples = {"auc": np.array(aucs), **_ratios(np.array(sums))}
    has_interval = resamples.num_users > 1
    result = {}
    for metric, sample in samples.items():
        is_defined = np.isfinite(sample) & has_interval
        result[metric] = np.where(is_defined, sample, np.nan)
    return result


def _ratios(sums: Float) -> dict[str, Float]:
    """Return the metrics that are ratios of sums.

    Args:
        sums: float64 [B, 6]: targets, positives, scores, losses, weighted AUC, ranked targets.
    """
    size, positives, score, loss, weighted_auc, ranked_targets = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = positives / size
        entropy = entr(rate) + entr(1 - rate)
        return {
            "gauc": weighted_auc / ranked_targets,
            "logloss": loss / size,
            "ne": loss / size / entropy,
            "calibration": score / positives,
        }


def percentile_interval(value: float, samples: Float | None) -> Estimate:
    """Return a value and its 95 % interval; no interval if fewer than two resamples are defined.

    Args:
        value: the value.
        samples: float64 [B], its resampled values, nan where undefined; None without any.
    """
    if samples is None or np.isfinite(samples).sum() < 2:
        return Estimate(value, reason=TOO_FEW_USERS)
    low, high = np.nanpercentile(samples, INTERVAL_PERCENTILES)
    return Estimate(value, float(low), float(high))
