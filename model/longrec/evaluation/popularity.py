"""Score targets by the popularity of their items, the baseline of every evaluation.

There are two popularity scores: the item's smoothed mean label and its number of events. Both use
only data from before the split. The baseline of a task is the one with the higher AUC.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap
from longrec.evaluation.bootstrap import TaskMetrics
from longrec.evaluation.sample import EvaluationSample, targets_of
from longrec.schema import ITEM_ID, TIMESTAMP

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]

PRIOR_STRENGTH = 20.0
"""Targets with the mean label that are added to every item."""


@dataclasses.dataclass(frozen=True, slots=True)
class PopularityBaseline:
    """The better popularity score of one task.

    Args:
        name: `rate` or `count`.
        scores: float64 [N].
        metrics: of these scores on the sample.
    """

    name: str
    scores: Float
    metrics: TaskMetrics


@dataclasses.dataclass(frozen=True, slots=True)
class PopularityScores:
    """Popularity of the sample's targets before the split.

    Args:
        rates: float64 [N, K], smoothed mean label of the item over the targets of earlier requests.
        counts: float64 [N], events of the item before the split time.
    """

    rates: Float
    counts: Float

    @classmethod
    def compute(
        cls,
        histories: Histories,
        encoded: EncodedHistories,
        sample: EvaluationSample,
    ) -> PopularityScores:
        """Return the popularity of the sample's targets."""
        target_ids = int64_column(histories.targets, ITEM_ID)
        item_ids, items = np.unique(target_ids, return_inverse=True)
        sample_items = items[sample.target_positions]
        earlier = _earlier_targets(encoded)
        num_tasks = encoded.labels.shape[1]
        rates = []
        for task in range(num_tasks):
            labels = encoded.labels[earlier, task]
            item_rates = smoothed_rates(
                items[earlier],
                labels,
                len(item_ids),
            )
            rates.append(item_rates[sample_items])
        counts = _event_counts(histories, item_ids)
        return cls(np.stack(rates, axis=1), counts[sample_items].astype(np.float64))

    def best(
        self,
        sample: EvaluationSample,
        task: int,
    ) -> PopularityBaseline:
        """Return the score with the higher AUC on the sample.

        Args:
            sample: evaluated requests.
            task: position of the task, 0..K-1.
        """
        # `measure` expects probabilities. The AUC depends only on the order of the counts.
        largest_count = self.counts.max(initial=1.0) or 1.0
        candidates = {
            "rate": self.rates[:, task],
            "count": self.counts / largest_count,
        }
        baselines = []
        for name, scores in candidates.items():
            metrics = bootstrap.measure(
                sample.labels[:, task],
                scores,
                sample.resamples,
            )
            baselines.append(PopularityBaseline(name, scores, metrics))
        return max(baselines, key=lambda baseline: baseline.metrics.values.get("auc", -1.0))


def smoothed_rates(
    items: Int,
    labels: Array,
    num_items: int,
    strength: float = PRIOR_STRENGTH,
) -> Float:
    """Return the smoothed mean label of every item, float64 [I].

    An item that was never shown gets the overall mean.

    Args:
        items: int64 [N], 0..I-1.
        labels: [N], 0 or 1.
        num_items: I.
        strength: number of targets with the overall mean that are added to every item.
    """
    labels = np.asarray(labels, np.float64)
    overall_mean = float(labels.mean()) if len(labels) else 0.5
    impressions = np.bincount(items, minlength=num_items)
    positives = np.bincount(items, labels, num_items)
    return (positives + strength * overall_mean) / (impressions + strength)


def _earlier_targets(encoded: EncodedHistories) -> Int:
    """Return the positions of all targets outside the evaluation split, int64."""
    splits = [encoded.requests("warmup"), encoded.requests("train")]
    target_positions, _ = targets_of(encoded, np.concatenate(splits))
    return target_positions


def _event_counts(histories: Histories, item_ids: Int) -> Int:
    """Return the number of events of each item before the split time, int64 [I].

    Args:
        histories: raw rows.
        item_ids: int64 [I], sorted.
    """
    counts = np.zeros(len(item_ids), np.int64)
    for batch in histories.event_batches():
        is_earlier = int64_column(batch, TIMESTAMP) < histories.split_time_ms
        events = int64_column(batch, ITEM_ID)[is_earlier]
        indices = np.minimum(np.searchsorted(item_ids, events), len(item_ids) - 1)
        is_known = item_ids[indices] == events
        counts += np.bincount(indices[is_known], minlength=len(item_ids))
    return counts
