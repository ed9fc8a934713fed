"""Rates and counts of groups of targets, from what was known before each request.

A label is known if it belongs to a training request that is strictly earlier. So a training target
does not see its own label, and the evaluation uses nothing that the training did not see.

Shape letters: P all targets of the histories, N targets in question, E events, I groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]

PRIOR_STRENGTH = 20.0
"""Targets with the mean label that are added to every group."""
UNKNOWN_RATE = 0.5
"""Mean label before the first known label."""


@dataclasses.dataclass(
    frozen=True,
    slots=True,
)
class LabelledTargets:
    """Targets with known labels.

    Args:
        groups: int64 [P], 0..I-1, for example the item of each target.
        times: int64 [P], request time in ms.
        labels: [P], 0 or 1.
    """

    groups: Int
    times: Int
    labels: Array


def rates_before(
    known: LabelledTargets,
    groups: Int,
    times: Int,
    strength: float = PRIOR_STRENGTH,
) -> Float:
    """Return the smoothed mean label of each target's group before its request, float64 [N].

    A group without a known label has the mean over all groups.

    Args:
        known: targets whose labels count from their request time on.
        groups: int64 [N], group of each target.
        times: int64 [N], request time of each target in ms.
        strength: number of targets with the mean label that are added to every group.
    """
    prior = overall_rates_before(known, times)
    shown, positives = sums_before(known, groups, times)
    rates: Float = (positives + strength * prior) / (shown + strength)
    return rates


def overall_rates_before(
    known: LabelledTargets,
    times: Int,
) -> Float:
    """Return the mean label over all targets before each time, float64 [N]."""
    in_one_group = dataclasses.replace(known, groups=np.zeros_like(known.groups))
    shown, positives = sums_before(in_one_group, np.zeros_like(times), times)
    return np.where(shown > 0, positives / np.maximum(shown, 1), UNKNOWN_RATE)


def log_odds(probabilities: Float) -> Float:
    """Return the log-odds of probabilities; 0 and 1 are infinite."""
    odds: Float = np.log(probabilities) - np.log1p(-probabilities)
    return odds


def event_counts_before(
    event_groups: Array,
    event_times: Int,
    groups: Int,
    times: Int,
) -> Int:
    """Return the number of events of each target's group strictly before a time, int64 [N].

    Args:
        event_groups: int [E]; events of group -1 are left out.
        event_times: int64 [E], ms.
        groups: int64 [N], group of each target.
        times: int64 [N], ms.
    """
    is_known = event_groups >= 0
    _, first, end = _spans_before(
        event_groups[is_known].astype(np.int64),
        event_times[is_known],
        groups,
        times,
    )
    return end - first


def sums_before(
    known: LabelledTargets,
    groups: Int,
    times: Int,
) -> tuple[Float, Float]:
    """Return the number of known targets before each time, and of its positives, float64 [N]."""
    order, first, end = _spans_before(
        known.groups,
        known.times,
        groups,
        times,
    )
    ordered_labels = np.asarray(known.labels, np.float64)[order]
    positives = np.concatenate([[0.0], np.cumsum(ordered_labels)])
    return (end - first).astype(np.float64), positives[end] - positives[first]


def _spans_before(
    known_groups: Int,
    known_times: Int,
    groups: Int,
    times: Int,
) -> tuple[Int, Int, Int]:
    """Return the known rows by group and time, and the span of earlier rows of each query.

    The spans are the first and the end position in that order, int64 [N] each.
    """
    query_times = np.unique(times)
    # A known row of rank k is strictly before the query of rank r if k <= r.
    known_ranks = np.searchsorted(query_times, known_times, side="right")
    ranks = np.searchsorted(query_times, times)
    num_ranks = len(query_times) + 1
    known_keys = known_groups * num_ranks + known_ranks
    order = np.argsort(known_keys, kind="stable")
    sorted_keys = known_keys[order]
    first_keys = groups * num_ranks
    first = np.searchsorted(sorted_keys, first_keys)
    end = np.searchsorted(sorted_keys, first_keys + ranks, side="right")
    return order, first, end
