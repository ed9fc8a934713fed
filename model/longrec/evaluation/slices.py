"""Measure the first task by slices: history length, item age, user activity, cold start.

All slices use what was known before the request. An item is as old as its first event in the
histories. A user is as active as in the last 28 days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap, metrics
from longrec.evaluation.bootstrap import Resamples
from longrec.evaluation.champion_comparison import ChampionScores
from longrec.evaluation.sample import EvaluationInputs, EvaluationSample

Array: TypeAlias = npt.NDArray[Any]
Int: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Row: TypeAlias = dict[str, Any]

HISTORY_BOUNDS = (0, 1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000)
"""Lower ends of the slices by history length, in events."""
ITEM_AGE_BOUNDS = (0, 1, 7, 30, 365)
"""Lower ends of the slices by item age, in days."""
ACTIVITY_BOUNDS = (0, 1, 10, 100, 1_000)
"""Lower ends of the slices by events in the last `ACTIVITY_DAYS`."""
ACTIVITY_DAYS = 28
DAY_MS = 86_400_000
INT64_MAX = np.iinfo(np.int64).max
INT64_MIN = np.iinfo(np.int64).min


class Slice(NamedTuple):
    """A part of the targets: its family, its name in reports, and bool [N]."""

    family: str
    name: str
    mask: Mask


def measure_slices(
    inputs: EvaluationInputs,
    scores: Array,
    baseline_scores: Array,
    champion: ChampionScores,
) -> list[Row]:
    """Return the first task by slice, with popularity and the champion on the same targets.

    Args:
        inputs: of the evaluation.
        scores: float32 [N], of the ranker.
        baseline_scores: float64 [N], of the popularity baseline.
        champion: compared if it has scores.
    """
    length = inputs.config.served_length
    rows = []
    for part in iterate_slices(inputs.encoded, inputs.sample, length):
        row = _slice_row(
            part,
            inputs,
            scores=scores,
            baseline_scores=baseline_scores,
            champion=champion,
        )
        rows.append(row)
    return rows


def _slice_row(
    part: Slice,
    inputs: EvaluationInputs,
    *,
    scores: Array,
    baseline_scores: Array,
    champion: ChampionScores,
) -> Row:
    sample = inputs.sample
    mask = part.mask
    labels = sample.labels[mask, 0]
    resamples = Resamples.of_users(
        sample.resamples.users[mask],
        inputs.config.bootstrap_samples,
        sample.resamples.seed,
    )
    measured = bootstrap.measure(labels, scores[mask], resamples)
    auc = measured.estimate("auc")
    popularity_auc = metrics.auc(labels, baseline_scores[mask])
    row = {
        "family": part.family,
        "name": part.name,
        "num_requests": len(np.unique(sample.target_requests[mask])),
        "num_targets": len(labels),
        "rate": float(labels.mean()),
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "popularity_auc": popularity_auc if np.isfinite(popularity_auc) else None,
        "calibration": measured.estimate("calibration").value,
        "ece": measured.estimate("ece").value,
        "reason": auc.reason,
    }
    if champion.scores is not None:
        theirs = bootstrap.measure(
            labels,
            champion.scores[mask, 0],
            resamples,
        )
        difference = bootstrap.paired_difference(measured, theirs)
        row["difference"] = difference.value
        row["difference_low"] = difference.low
        row["difference_high"] = difference.high
    return row


def iterate_slices(
    encoded: EncodedHistories,
    sample: EvaluationSample,
    served_length: int,
) -> Iterator[Slice]:
    """Yield the slices of the sample, without empty ones.

    Args:
        encoded: the histories.
        sample: evaluated requests.
        served_length: histories are cut to it.
    """
    served = np.minimum(sample.history_lengths, served_length)
    yield from _slices_by_range("history", served, HISTORY_BOUNDS, "events")
    age = item_ages(encoded, sample)
    yield from _slices_by_mask("item age", {"not seen before": age < 0})
    yield from _slices_by_range("item age", age, ITEM_AGE_BOUNDS, "days")
    activity = user_activity(encoded, sample)
    unit = f"events in {ACTIVITY_DAYS} days"
    yield from _slices_by_range("activity", activity, ACTIVITY_BOUNDS, unit)
    has_user, has_item = seen_in_training(encoded, sample)
    cold_start = {
        "user with training requests": has_user,
        "user without": ~has_user,
        "item seen in training": has_item,
        "item not seen": ~has_item,
    }
    yield from _slices_by_mask("cold start", cold_start)


def item_ages(encoded: EncodedHistories, sample: EvaluationSample) -> Int:
    """Return the age of each target's item at the request in whole days, int64 [N].

    The age counts from the item's first event; -1 without an earlier event.
    """
    items = encoded.target_items[sample.target_positions]
    first_event = np.full(_num_items(encoded), INT64_MAX)
    np.minimum.at(
        first_event,
        encoded.event_items,
        encoded.event_timestamps,
    )
    request_times = encoded.request_timestamps[sample.target_requests]
    first_times = first_event[items]
    is_known = first_times < request_times
    known_times = np.where(is_known, first_times, request_times)
    elapsed_ms = request_times - known_times
    return np.where(is_known, elapsed_ms // DAY_MS, -1)


def user_activity(encoded: EncodedHistories, sample: EvaluationSample) -> Int:
    """Return the user's events in the `ACTIVITY_DAYS` before each target's request, int64 [N]."""
    requests, request_index = np.unique(sample.target_requests, return_inverse=True)
    counts = np.zeros(len(requests), np.int64)
    for row, request in enumerate(requests.tolist()):
        start = encoded.event_starts[request]
        end = encoded.event_ends[request]
        times = encoded.event_timestamps[start:end]
        earliest = encoded.request_timestamps[request] - ACTIVITY_DAYS * DAY_MS
        counts[row] = len(times) - np.searchsorted(times, earliest)
    return counts[request_index]


def seen_in_training(encoded: EncodedHistories, sample: EvaluationSample) -> tuple[Mask, Mask]:
    """Return whether training saw the user and the item of each target, bool [N] each.

    A user is seen in a training request. An item is seen in an event or as a target.
    """
    requests = encoded.requests("train")
    trained_users = np.unique(encoded.request_users[requests])
    users = encoded.request_users[sample.target_requests]
    target_positions, _ = encoded.targets_of(requests)
    is_seen = np.zeros(_num_items(encoded), bool)
    is_seen[encoded.target_items[target_positions]] = True
    last_request_ms = encoded.request_timestamps[requests].max(initial=INT64_MIN)
    is_earlier = np.asarray(encoded.event_timestamps <= last_request_ms)
    is_seen[encoded.event_items[is_earlier]] = True
    items = encoded.target_items[sample.target_positions]
    return np.isin(users, trained_users), is_seen[items]


def _num_items(encoded: EncodedHistories) -> int:
    """Return the size of an array that every item row of the histories indexes."""
    largest_event_item = encoded.event_items.max(initial=0)
    largest_target_item = encoded.target_items.max(initial=0)
    return int(max(largest_event_item, largest_target_item)) + 1


def _slices_by_mask(family: str, masks: Mapping[str, Mask]) -> Iterator[Slice]:
    for name, mask in masks.items():
        if mask.any():
            yield Slice(family, name, mask)


def _slices_by_range(
    family: str,
    values: Int,
    bounds: tuple[int, ...],
    unit: str,
) -> Iterator[Slice]:
    """Yield the slices of values from each bound to the next one; the last has no upper end."""
    for low, high in zip(bounds, (*bounds[1:], None), strict=True):
        mask = values >= low
        if high is not None:
            mask &= values < high
        if mask.any():
            yield Slice(family, f"{_range_text(low, high)} {unit}", mask)


def _range_text(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} and more"
    if high == low + 1:
        return f"{low:,}"
    return f"{low:,} to {high - 1:,}"
