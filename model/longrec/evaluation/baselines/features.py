"""Make the features of the baselines: what was known about each target before its request.

Shape letters: N targets, K tasks, C columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.label_rates import (
    LabelledTargets,
    event_counts_before,
    overall_rates_before,
    rates_before,
)
from longrec.evaluation.baselines.item_values import ItemValues
from longrec.evaluation.baselines.repeats import HistorySpans, Repeats, find_repeats

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]


@dataclasses.dataclass(
    frozen=True,
    slots=True,
)
class TargetFeatures:
    """The features of N targets.

    Args:
        item_rates, user_rates, overall_rates: float64 [N, K], smoothed mean labels of the item, of
            the user and of all training targets, before the request.
        item_counts: int64 [N], events of the item in the training window, before the request.
        repeats: item feature -> repeats of the target's value in the history.
    """

    item_rates: Float
    user_rates: Float
    overall_rates: Float
    item_counts: Int
    repeats: Mapping[str, Repeats]

    @classmethod
    def compute(
        cls,
        histories: Histories,
        encoded: EncodedHistories,
        positions: Int,
        requests: Int,
    ) -> TargetFeatures:
        """Return the features of some targets.

        Args:
            histories: raw rows.
            encoded: the same histories; only labels, times and offsets are read.
            positions: int64 [N], positions of the targets.
            requests: int64 [N], the request of each.
        """
        values = ItemValues.read(histories)
        items = values.target_items.astype(np.int64)
        times = encoded.request_timestamps[requests]
        return cls(
            *_rates(encoded, items, positions, requests),
            event_counts_before(
                values.training_items,
                values.training_times,
                items[positions],
                times,
            ),
            _find_all_repeats(values, encoded, positions, requests),
        )

    def __len__(self) -> int:
        return len(self.item_counts)

    def take(
        self,
        rows: Int | slice,
    ) -> TargetFeatures:
        """Return the features of some of the targets."""
        repeats = {}
        for name, (counts, gap_seconds) in self.repeats.items():
            repeats[name] = Repeats(counts[rows], gap_seconds[rows])
        return TargetFeatures(
            self.item_rates[rows],
            self.user_rates[rows],
            self.overall_rates[rows],
            self.item_counts[rows],
            repeats,
        )

    def matrix(
        self,
        task: int,
    ) -> Float:
        """Return all features of one task, float64 [N, C]; nan for a repeat that never was.

        Args:
            task: position of the task, 0..K-1.
        """
        columns = [
            self.item_rates[:, task],
            self.user_rates[:, task],
            self.item_counts.astype(np.float64),
        ]
        for counts, gap_seconds in self.repeats.values():
            columns += [counts.astype(np.float64), gap_seconds]
        return np.stack(columns, axis=1)


def _rates(
    encoded: EncodedHistories,
    items: Int,
    positions: Int,
    requests: Int,
) -> tuple[Float, Float, Float]:
    """Return the rates of the item, of the user and of all targets, float64 [N, K] each.

    Args:
        encoded: labels of the training requests are known from their time on.
        items: int64, item of every target of the histories.
        positions, requests: see `TargetFeatures.compute`.
    """
    known_positions, known_requests = encoded.targets_of(encoded.requests("train"))
    known_times = encoded.request_timestamps[known_requests]
    times = encoded.request_timestamps[requests]
    _, users = np.unique(encoded.request_users, return_inverse=True)
    item_rates = []
    user_rates = []
    overall_rates = []
    for labels in encoded.labels[known_positions].T:
        by_item = LabelledTargets(items[known_positions], known_times, labels)
        by_user = LabelledTargets(users[known_requests], known_times, labels)
        item_rates.append(rates_before(by_item, items[positions], times))
        user_rates.append(rates_before(by_user, users[requests], times))
        overall_rates.append(overall_rates_before(by_item, times))
    return (
        np.stack(item_rates, axis=1),
        np.stack(user_rates, axis=1),
        np.stack(overall_rates, axis=1),
    )


def _find_all_repeats(
    values: ItemValues,
    encoded: EncodedHistories,
    positions: Int,
    requests: Int,
) -> dict[str, Repeats]:
    spans = HistorySpans(
        encoded.event_timestamps,
        encoded.event_starts[requests],
        encoded.event_ends[requests],
        encoded.request_timestamps[requests],
    )
    repeats = {}
    for name, event_values, target_values in values.columns():
        repeats[name] = find_repeats(event_values, target_values[positions], spans)
    return repeats
