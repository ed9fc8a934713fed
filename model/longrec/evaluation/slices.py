"""Slices: the evaluated targets by history length, item age, user activity and cold start; names
for people, masks of targets.

Everything is of before the request: an item is as old as its first event in the histories, a user
as active as the last 28 days.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.loader import EncodedHistories, RequestStream

Int: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Slice: TypeAlias = tuple[str, str, Mask]

HISTORY = (0, 1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000)
"""Lower ends of the slices by history length, in events."""
AGES = (0, 1, 7, 30, 365)
"""Lower ends of the slices by item age, in days."""
ACTIVITY = (0, 1, 10, 100, 1_000)
"""Lower ends of the slices by events in the last `ACTIVE_DAYS`."""
ACTIVE_DAYS = 28
DAY_MS = 86_400_000


def slices(
    encoded: EncodedHistories, positions: Int, owners: Int, served_length: int
) -> Iterator[Slice]:
    """Yields (family, name, bool [N] of the targets in it); empty slices are left out.

    Args:
        encoded: the histories.
        positions: int64 [N], positions of the targets; owners: int64 [N], the request of each.
        served_length: histories are cut to it.
    """
    served = np.minimum(encoded.event_ends[owners] - encoded.event_starts[owners], served_length)
    yield from _spans("history", served, HISTORY, "events")
    age = item_ages(encoded, positions, owners)
    yield from _named("item age", {"not seen before": age < 0})
    yield from _spans("item age", age, AGES, "days")
    yield from _spans(
        "activity", activity(encoded, owners), ACTIVITY, f"events in {ACTIVE_DAYS} days"
    )
    user, item = trained(encoded, positions, owners)
    yield from _named(
        "cold start",
        {
            "user with training requests": user,
            "user without": ~user,
            "item seen in training": item,
            "item not seen": ~item,
        },
    )


def item_ages(encoded: EncodedHistories, positions: Int, owners: Int) -> Int:
    """Returns whole days from the first event of each target's item to the request, int64 [N]; -1
    where there was none before it.
    """
    items = encoded.target_items[positions]
    num_items = int(max(encoded.event_items.max(initial=0), items.max(initial=0))) + 1
    first = np.full(num_items, np.iinfo(np.int64).max)
    np.minimum.at(first, encoded.event_items, encoded.event_timestamps)
    request_times = np.asarray(encoded.request_timestamps[owners], np.int64)
    known = first[items] < request_times
    return np.where(
        known, (request_times - np.where(known, first[items], request_times)) // DAY_MS, -1
    )


def activity(encoded: EncodedHistories, owners: Int) -> Int:
    """Returns the events of the user in the `ACTIVE_DAYS` before the request of each target, int64
    [N].
    """
    requests, place = np.unique(owners, return_inverse=True)
    counts = np.zeros(len(requests), np.int64)
    for row, request in enumerate(requests.tolist()):
        times = encoded.event_timestamps[
            encoded.event_starts[request] : encoded.event_ends[request]
        ]
        counts[row] = len(times) - np.searchsorted(
            times, encoded.request_timestamps[request] - ACTIVE_DAYS * DAY_MS
        )
    return counts[place]


def trained(encoded: EncodedHistories, positions: Int, owners: Int) -> tuple[Mask, Mask]:
    """Returns whether training saw the user of each target in a request, and its item in an event
    or as a target; bool [N] each.
    """
    requests = encoded.requests("train")
    stream = RequestStream.serving(encoded, requests, 0, token_budget=1, max_requests=1)
    users = np.isin(encoded.request_users[owners], np.unique(encoded.request_users[requests]))
    seen = np.zeros(
        int(max(encoded.target_items.max(initial=0), encoded.event_items.max(initial=0))) + 1, bool
    )
    seen[encoded.target_items[stream.target_positions]] = True
    split_ms = encoded.request_timestamps[requests].max(initial=np.iinfo(np.int64).min)
    seen[encoded.event_items[np.asarray(encoded.event_timestamps <= split_ms)]] = True
    return users, seen[encoded.target_items[positions]]


def _named(family: str, masks: dict[str, Mask]) -> Iterator[Slice]:
    yield from ((family, name, mask) for name, mask in masks.items() if mask.any())


def _spans(
    family: str,
    values: Int,
    bounds: tuple[int, ...],
    unit: str,
) -> Iterator[Slice]:
    for low, high in zip(bounds, (*bounds[1:], None), strict=True):
        inside = (values >= low) & (values < high if high is not None else True)
        if inside.any():
            yield family, f"{_span(low, high)} {unit}", inside


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} and more"
    return f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}"
