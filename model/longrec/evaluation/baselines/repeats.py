"""Count the repeats of a target's value in its history, and find the last one.

One sort of the events serves all targets: E log E for the sort and N log E for N targets, per
feature. It takes 8 bytes per event, and no pair of event and target is formed.

Shape letters: E events, N targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Float: TypeAlias = npt.NDArray[np.float64]
Int: TypeAlias = npt.NDArray[np.int64]


class HistorySpans(NamedTuple):
    """The histories of N targets as spans of all events.

    Args:
        event_times: int64 [E], ms; a span is in time order.
        starts, ends: int64 [N], span of each target's history.
        request_times: int64 [N], ms.
    """

    event_times: Int
    starts: Int
    ends: Int
    request_times: Int


class Repeats(NamedTuple):
    """The repeats of each target's value.

    Args:
        counts: int64 [N], events of the history with the value.
        gap_seconds: float64 [N], time since the last of them; nan without one.
    """

    counts: Int
    gap_seconds: Float


def find_repeats(
    event_values: Array,
    target_values: Array,
    histories: HistorySpans,
) -> Repeats:
    """Return the repeats of each target's value in its history.

    Args:
        event_values: int [E], codes; negative ones match nothing.
        target_values: int [N], codes; negative ones match nothing.
        histories: of the targets.
    """
    num_events = len(event_values)
    positions = np.flatnonzero(event_values >= 0)
    # A position belongs to one user, so a key of value and position needs no user.
    keys = event_values[positions].astype(np.int64) * num_events + positions
    keys.sort()
    first_keys = target_values.astype(np.int64) * num_events
    first = np.searchsorted(keys, first_keys + histories.starts)
    end = np.searchsorted(keys, first_keys + histories.ends)
    has_value = target_values >= 0
    counts = np.where(has_value, end - first, 0)
    gap_seconds = np.full(len(counts), np.nan)
    repeated = np.flatnonzero(counts)
    last_events = keys[end[repeated] - 1] - first_keys[repeated]
    gaps_ms = histories.request_times[repeated] - histories.event_times[last_events]
    gap_seconds[repeated] = gaps_ms / 1_000
    return Repeats(counts, gap_seconds)
