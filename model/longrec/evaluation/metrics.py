"""Metrics of binary scores and their 95 % intervals by resampling users; a metric that is not
defined says why.

Everything takes flat arrays of N targets: labels (0 or 1), scores (probabilities), users (one
integer per target). Intervals
resample whole users, since targets of one user are not independent, and two models are compared on
the same resamples.

Shape letters: N targets, U users, B resamples, I items.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = npt.NDArray[Any]

METRICS = ("auc", "gauc", "logloss", "ne", "calibration", "ece")
CLIP = 1e-7
"""Probabilities are held to [CLIP, 1 - CLIP] in the log loss: a float32 sigmoid saturates near
there.
"""
ECE_BINS = 15
PRIOR_STRENGTH = 20.0
"""Impressions of the mean rate that the popularity baseline adds to every item."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; None where it is not defined, `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Resamples:
    """User-level bootstrap resamples, made again from the seed whenever they are read: the memory
    is one resample.

    Args:
        users: int64 [N], 0..num_users-1, the user of each target.
        num_users: U.
        num_samples: B.
        seed: every reading gives the same resamples, so that two models are compared on equal ones.
    """

    users: Int
    num_users: int
    num_samples: int
    seed: int

    @classmethod
    def of(
        cls,
        user_ids: Array,
        num_samples: int,
        seed: int,
    ) -> Resamples:
        """Returns the resamples of targets with these user ids (any integers), int [N]."""
        uniques, users = np.unique(user_ids, return_inverse=True)
        return cls(users.astype(np.int64), len(uniques), num_samples, seed)

    def __iter__(self) -> Iterator[Float]:
        """Yields B times how often each user was drawn, float64 [U]."""
        generator = np.random.default_rng(self.seed)
        for _ in range(self.num_samples):
            drawn = generator.integers(self.num_users, size=self.num_users)
            yield np.bincount(drawn, minlength=self.num_users).astype(np.float64)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """Metrics of one task: what is defined, why the rest is not, and the resampled values behind
    the intervals.

    Args:
        values: metric -> value.
        reasons: metric -> why it has no value.
        samples: metric -> float64 [B]; nan where a resample had one class only.
        num_targets, num_positives, num_users: sizes; num_ranked_users: users with both labels
            (those that GAUC sees).
    """

    values: Mapping[str, float]
    reasons: Mapping[str, str]
    samples: Mapping[str, Float]
    num_targets: int
    num_positives: int
    num_users: int
    num_ranked_users: int

    def estimate(self, metric: str) -> Estimate:
        """Returns one metric with its interval."""
        if metric not in self.values:
            return Estimate(None, reason=self.reasons.get(metric, "it was not measured"))
        return _estimate(self.values[metric], self.samples.get(metric))

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: `auc`, `auc_low`, `auc_high`, ... and the sizes; undefined values
        are null.
        """
        out: dict[str, Any] = {}
        for metric in METRICS:
            estimate = self.estimate(metric)
            out[metric] = estimate.value
            if metric in self.samples or metric in self.reasons:
                out |= {f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
        out |= {
            "num_targets": self.num_targets,
            "num_positives": self.num_positives,
            "num_users": self.num_users,
            "num_ranked_users": self.num_ranked_users,
            "undefined": dict(self.reasons),
        }
        return out


def measure(labels: Array, scores: Array, resamples: Resamples) -> Measurement:
    """Returns all metrics of one task with user-level bootstrap samples.

    Args:
        labels: [N], 0 or 1.
        scores: float [N], probabilities.
        resamples: of the same N targets.
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    users = resamples.users
    reason = _unusable(labels, scores)
    if reason:
        return Measurement(
            {},
            dict.fromkeys(METRICS, reason),
            {},
            len(labels),
            int(labels.sum()),
            resamples.num_users,
            0,
        )
    user_auc, user_weight = user_aucs(labels, scores, users, resamples.num_users)
    values, reasons = _points(labels, scores, user_auc, user_weight)
    samples = _resample(labels, scores, resamples, user_auc, user_weight)
    kept = {metric: sample for metric, sample in samples.items() if metric in values}
    ranked = int((user_weight > 0).sum())
    return Measurement(
        values, reasons, kept, len(labels), int(labels.sum()), resamples.num_users, ranked
    )


def difference(ours: Measurement, theirs: Measurement, metric: str = "auc") -> Estimate:
    """Returns ours - theirs with its paired interval; both must have been measured on the same
    resamples.
    """
    for side in (ours, theirs):
        if metric not in side.values:
            return Estimate(None, reason=side.reasons.get(metric, "it was not measured"))
    return _estimate(
        ours.values[metric] - theirs.values[metric], ours.samples[metric] - theirs.samples[metric]
    )


def auc(labels: Array, scores: Array) -> float:
    """Returns the area under the ROC curve; nan with fewer than two classes."""
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)
    if not len(labels) or labels.min() == labels.max():
        return math.nan
    return float(roc_auc_score(labels, scores))


def logloss(labels: Array, scores: Array) -> float:
    """Returns the mean log loss in nats; nan without targets."""
    return (
        float(_losses(np.asarray(labels, np.float64), np.asarray(scores, np.float64)).mean())
        if len(labels)
        else math.nan
    )


def normalized_entropy(labels: Array, scores: Array) -> float:
    """Returns the log loss over the entropy of the mean label; below 1 the scores know more than
    the mean. nan with one class.

    Source: He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, equation 3.
    """
    entropy = _entropy(float(np.mean(labels))) if len(labels) else 0.0
    return logloss(labels, scores) / entropy if entropy else math.nan


def calibration(labels: Array, scores: Array) -> float:
    """Returns the mean score over the mean label; nan without positives."""
    positives = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(scores, dtype=np.float64)) / positives if positives else math.nan


def gauc(labels: Array, scores: Array, users: Array) -> float:
    """Returns the mean AUC within users, weighted by their targets, over users with both labels;
    nan when there is none.

    Source: Zhu et al. 2017 (arXiv 1703.02091), section 3.3; ties count one half.
    """
    uniques, dense = np.unique(users, return_inverse=True)
    aucs, weights = user_aucs(
        np.asarray(labels, np.float64), np.asarray(scores, np.float64), dense, len(uniques)
    )
    return float((aucs * weights).sum() / weights.sum()) if weights.any() else math.nan


def user_aucs(
    labels: Float,
    scores: Float,
    users: Int,
    num_users: int,
) -> tuple[Float, Float]:
    """Returns the AUC within each user and the targets of each user that has both labels (else 0
    and 0), float64 [U] each.
    """
    order = np.lexsort((scores, users))
    ranks = _tied_ranks(users[order], scores[order])
    label, user = labels[order], users[order]
    size = np.bincount(user, minlength=num_users).astype(np.float64)
    positives = np.bincount(user, label, num_users)
    first = np.cumsum(size) - size
    rank_sum = np.bincount(user, label * ranks, num_users) - positives * first
    pairs = positives * (size - positives)
    both = pairs > 0
    value = np.zeros(num_users)
    value[both] = (rank_sum[both] - positives[both] * (positives[both] + 1) / 2) / pairs[both]
    return value, np.where(both, size, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """Targets sorted by score once, so that the AUC under any user weights costs a few passes over
    N.

    Args:
        users: int64 [N], user of each target in the order of the scores.
        positive: bool [N], in that order.
        starts: int64, where each run of equal scores starts.
    """

    users: Int
    positive: npt.NDArray[np.bool_]
    starts: Int

    @classmethod
    def of(
        cls,
        labels: Array,
        scores: Array,
        users: Int,
    ) -> Ranking:
        """Returns the ranking of N targets."""
        order = np.argsort(scores, kind="stable")
        return cls(users[order], np.asarray(labels)[order] > 0, _runs(np.asarray(scores)[order]))

    def auc(self, weights: Float) -> float:
        """Returns the AUC when every target of user u counts weights[u] times; nan when one class
        has no weight.
        """
        weight = weights[self.users]
        positive = np.where(self.positive, weight, 0.0)
        total_positive = positive.sum()
        total_negative = weight.sum() - total_positive
        if total_positive <= 0 or total_negative <= 0:
            return math.nan
        negative = weight - positive
        if len(self.starts) < len(weight):
            positive, negative = (
                np.add.reduceat(positive, self.starts),
                np.add.reduceat(negative, self.starts),
            )
        below = np.cumsum(negative) - 0.5 * negative
        return float(positive @ below / (total_positive * total_negative))


def reliability(labels: Array, scores: Array, num_bins: int = 20) -> list[dict[str, float]]:
    """Returns mean score, mean label and size of bins of nearly equal numbers of targets, by rising
    score.

    Equal scores are never parted: the order among them says nothing.
    """
    order = np.argsort(scores, kind="stable")
    labels, scores = np.asarray(labels, np.float64)[order], np.asarray(scores, np.float64)[order]
    borders = np.append(_runs(scores), len(scores))
    even = np.linspace(0, len(scores), num_bins + 1).astype(np.int64)
    edges = np.unique(borders[np.searchsorted(borders, even)])
    return [
        {
            "score": float(scores[low:high].mean()),
            "rate": float(labels[low:high].mean()),
            "num_targets": int(high - low),
        }
        for low, high in itertools.pairwise(edges)
    ]


def expected_calibration_error(labels: Array, scores: Array, num_bins: int = ECE_BINS) -> float:
    """Returns the mean distance of mean score and mean label over bins of equal numbers of targets;
    nan without targets.

    Source: Naeini, Cooper, Hauskrecht 2015, section 3, with equal-mass bins.
    """
    bins = reliability(labels, scores, num_bins)
    total = sum(entry["num_targets"] for entry in bins)
    return (
        sum(abs(entry["score"] - entry["rate"]) * entry["num_targets"] for entry in bins) / total
        if total
        else math.nan
    )


def smoothed_rates(
    items: Int, labels: Array, num_items: int, strength: float = PRIOR_STRENGTH
) -> Float:
    """Returns the mean label of every item with `strength` impressions of the overall mean added,
    float64 [I].

    Args:
        items: int64 [N], 0..I-1.
        labels: [N], 0 or 1.
        num_items: I; an item that was never shown gets the overall mean.
        strength: added impressions.
    """
    labels = np.asarray(labels, np.float64)
    prior = float(labels.mean()) if len(labels) else 0.5
    shown = np.bincount(items, minlength=num_items)
    return (np.bincount(items, labels, num_items) + strength * prior) / (shown + strength)


def _unusable(labels: Float, scores: Float) -> str:
    if not len(labels):
        return "there are no targets"
    if not np.isfinite(scores).all():
        return f"{int((~np.isfinite(scores)).sum())} scores are not finite"
    return ""


def _points(
    labels: Float, scores: Float, user_auc: Float, user_weight: Float
) -> tuple[dict[str, float], dict[str, str]]:
    one_class = f"all labels are {int(labels[0])}"
    ranked = float(user_weight.sum())
    candidates = {
        "auc": (auc(labels, scores), one_class),
        "gauc": (
            float(user_auc @ user_weight) / ranked if ranked else math.nan,
            "no user has both labels",
        ),
        "logloss": (logloss(labels, scores), ""),
        "ne": (normalized_entropy(labels, scores), one_class),
        "calibration": (calibration(labels, scores), "there are no positives"),
        "ece": (expected_calibration_error(labels, scores), ""),
    }
    values = {metric: value for metric, (value, _) in candidates.items() if not math.isnan(value)}
    return values, {
        metric: reason for metric, (value, reason) in candidates.items() if math.isnan(value)
    }


def _resample(
    labels: Float, scores: Float, resamples: Resamples, user_auc: Float, user_weight: Float
) -> dict[str, Float]:
    """Metrics but ECE on every resample; all but the AUC are sums over users, so a resample of them
    costs U only.
    """
    ranking = Ranking.of(labels, scores, resamples.users)
    per_user = np.stack(
        [
            np.bincount(resamples.users, values, resamples.num_users)
            for values in (np.ones_like(labels), labels, scores, _losses(labels, scores))
        ]
    )
    per_user = np.concatenate([per_user, (user_auc * user_weight)[None], user_weight[None]])
    aucs, sums = [], []
    for weights in resamples:
        aucs.append(ranking.auc(weights))
        sums.append(per_user @ weights)
    size, positives, score, loss, ranked_auc, ranked = np.array(sums).T
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = positives / size
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        samples = {
            "auc": np.array(aucs),
            "gauc": ranked_auc / ranked,
            "logloss": loss / size,
            "ne": loss / size / entropy,
            "calibration": score / positives,
        }
    defined = resamples.num_users > 1
    return {
        metric: np.where(np.isfinite(sample) & defined, sample, np.nan)
        for metric, sample in samples.items()
    }


def _estimate(value: float, samples: Float | None) -> Estimate:
    """The percentile interval; none when fewer than two resamples are defined."""
    if samples is None or np.isfinite(samples).sum() < 2:
        return Estimate(value, reason="there are too few users for an interval")
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _losses(labels: Float, scores: Float) -> Float:
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    losses: Float = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    return losses


def _entropy(rate: float) -> float:
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0 < rate < 1 else 0.0


def _runs(*columns: Array) -> Int:
    """Start of each run of rows that are equal in all (sorted) columns."""
    changed = np.zeros(len(columns[0]), bool)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changed)


def _tied_ranks(*columns: Array) -> Float:
    """Ranks 1..N of sorted rows; equal rows share the mean of theirs."""
    starts = _runs(*columns)
    ends = np.append(starts[1:], len(columns[0]))
    return np.repeat((starts + 1 + ends) / 2.0, ends - starts)
