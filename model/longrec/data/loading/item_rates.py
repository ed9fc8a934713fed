"""Statistics of the labels of items: what training targets say of each value of an item feature.

A training target reads what was known before its request, so it never sees its own label. All other
targets read what was known at the end of the training.

Source: ordered target statistics of CatBoost (Prokhorenkova et al. 2018, section 3.2).

Shape letters: N targets of training requests, P all targets, I items, C columns of the item table,
V values of all columns, K tasks, S = K + 1 statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.columns import Int64
from longrec.data.loading.encoded_histories import EncodedHistories, Int8
from longrec.data.loading.label_rates import (
    PRIOR_STRENGTH,
    LabelledTargets,
    log_odds,
    overall_rates_before,
    sums_before,
)

MIN_RATE = 1e-3
"""Smallest prior of a label, so that its log-odds are finite."""
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class ItemRates:
    """Statistics of item feature values.

    The statistics of a value are, for each task, the log-odds of its smoothed mean label minus
    those of all targets; and the share of the value's own targets in that mean. The share does not
    grow beyond 1, as a number of targets would from the training to the evaluation.

    Args:
        of_targets: float32 [P, C, S], as known before each target's request; 0 outside of the
            training requests.
        of_values: float32 [V, S], as known after the training; the columns one after another.
    """

    of_targets: Float32
    of_values: Float32

    @classmethod
    def compute(
        cls, encoded: EncodedHistories, values: Int64, num_values: Sequence[int]
    ) -> ItemRates:
        """Return the statistics of the training targets.

        Args:
            encoded: histories with labels.
            values: int64 [I, C], value of each item in each column.
            num_values: C numbers of values.
        """
        positions, requests = encoded.targets_of(encoded.requests("train"))
        times = encoded.request_timestamps[requests]
        labels = encoded.labels[positions]
        items = encoded.target_items[positions]
        end = np.atleast_1d(times.max(initial=0) + 1)
        priors = _priors(times, labels, times)
        priors_at_end = _priors(times, labels, end)
        num_columns = values.shape[1]
        num_statistics = labels.shape[1] + 1
        of_targets = np.zeros((len(encoded.labels), num_columns, num_statistics), np.float32)
        of_values = []
        for column in range(num_columns):
            groups = values[items, column]
            of_targets[positions, column] = _statistics(
                groups, times, labels, groups, times, priors
            )
            every_value = np.arange(num_values[column])
            at_end = np.repeat(end, len(every_value))
            of_values.append(_statistics(groups, times, labels, every_value, at_end, priors_at_end))
        return cls(of_targets, np.concatenate(of_values))


def _priors(known_times: Int64, known_labels: Int8, times: Int64) -> Float64:
    """Return the mean label of all targets before some times, float64 [N, K].

    Args:
        known_times: int64 [P], ms.
        known_labels: int8 [P, K].
        times: int64 [N], ms.
    """
    in_one_group = np.zeros_like(known_times)
    priors = [
        overall_rates_before(LabelledTargets(in_one_group, known_times, labels), times)
        for labels in known_labels.T
    ]
    return np.clip(np.stack(priors, axis=1), MIN_RATE, 1 - MIN_RATE)


def _statistics(
    known_groups: Int64,
    known_times: Int64,
    known_labels: Int8,
    groups: Int64,
    times: Int64,
    priors: Float64,
) -> Float32:
    """Return the statistics of some groups before some times, float32 [N, S].

    Args:
        known_groups, known_times: int64 [P], group and time (ms) of each known target.
        known_labels: int8 [P, K].
        groups, times: int64 [N], what is asked for.
        priors: float64 [N, K] or [1, K], mean label of all groups.
    """
    columns = []
    shown = np.zeros(len(groups))
    for labels, prior in zip(known_labels.T, priors.T, strict=True):
        known = LabelledTargets(known_groups, known_times, labels)
        shown, positives = sums_before(known, groups, times)
        rates = (positives + PRIOR_STRENGTH * prior) / (shown + PRIOR_STRENGTH)
        columns.append(log_odds(rates) - log_odds(prior))
    share = shown / (shown + PRIOR_STRENGTH)
    return np.stack([*columns, share], axis=1).astype(np.float32)
