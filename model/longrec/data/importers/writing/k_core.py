"""K-core: the events of a log of users and items that have at least K events among themselves."""

from __future__ import annotations

import numpy as np

from longrec.data.columns import Int64, int64_column
from longrec.data.importers.reading.rejects import Rejects
from longrec.data.importers.writing.event_spill import EventSpill
from longrec.data.timelines import Mask
from longrec.schema import ITEM_ID, USER_ID


def leave_out_rare(
    spill: EventSpill,
    rejects: Rejects,
    minimum: int,
) -> None:
    """Leave out events of rare users and items until there are none; count them.

    Args:
        spill: all events of the log. It is closed: no event may be added later.
        rejects: counts the events.
        minimum: smallest number of events of a user and of an item.
    """
    spill.close()
    num_left_out = 0
    while count := _leave_out_once(spill, minimum):
        num_left_out += count
    rejects.filter("events", f"not in the {minimum}-core of users and items", num_left_out)


def _leave_out_once(spill: EventSpill, minimum: int) -> int:
    items, item_counts = _count_items(spill)
    rare_items = items[item_counts < minimum]
    num_left_out = 0
    for part in range(spill.num_parts):
        events = spill.load(part)
        is_rare = np.isin(int64_column(events, ITEM_ID), rare_items)
        is_rare |= _is_rare(int64_column(events, USER_ID), minimum)  # a part has whole users
        spill.leave_out(part, is_rare)
        num_left_out += int(is_rare.sum())
    return num_left_out


def _count_items(spill: EventSpill) -> tuple[Int64, Int64]:
    """Return the different items, sorted, and their numbers of events, int64 [I] each."""
    items = np.zeros(0, np.int64)
    counts = np.zeros(0, np.int64)
    for part in range(spill.num_parts):
        part_items, part_counts = np.unique(
            int64_column(spill.load(part), ITEM_ID),
            return_counts=True,
        )
        all_items = np.concatenate([items, part_items])
        all_counts = np.concatenate([counts, part_counts])
        items, rows = np.unique(all_items, return_inverse=True)
        counts = np.bincount(rows, weights=all_counts, minlength=len(items)).astype(np.int64)
    return items, counts


def _is_rare(ids: Int64, minimum: int) -> Mask:
    """Return whether the id of each row occurs in fewer rows than the minimum, bool [N]."""
    _, rows, counts = np.unique(
        ids,
        return_inverse=True,
        return_counts=True,
    )
    is_rare: Mask = counts[rows] < minimum
    return is_rare
