"""Item catalogue of a log: the items that negatives are drawn from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import Int64, int64_column
from longrec.data.importers.reading.log_files import value_type
from longrec.data.importers.writing.event_spill import EventSpill
from longrec.data.timelines import known_times
from longrec.schema import ITEM_ID

NO_GROUP = -1
"""Group of the items that the item table lacks, or that have no value in its group column."""


@dataclasses.dataclass(frozen=True, slots=True)
class ItemCatalogue:
    """Items of a log, with the time and the group that restrict their use as negatives.

    Args:
        ids: int64 [I], ids of the items that occur in the log, sorted.
        first_times: int64 [I], first time of each item in the log, ms.
        groups: int64 [I], group of each item; negatives share the group of their positive.
        order: int64 [I], rows of the items sorted by (group, first time).
        sorted_groups, sorted_times: int64 [I], group and first time in that order.
    """

    ids: Int64
    first_times: Int64
    groups: Int64
    order: Int64
    sorted_groups: Int64
    sorted_times: Int64

    @classmethod
    def of(
        cls,
        ids: Int64,
        first_times: Int64,
        groups: Int64 | None = None,
    ) -> ItemCatalogue:
        """Return the catalogue of some items.

        Args:
            ids: int64 [I], sorted.
            first_times: int64 [I], ms.
            groups: int64 [I]; None for a single group.
        """
        groups = np.zeros(len(ids), np.int64) if groups is None else groups
        order = np.lexsort((first_times, groups))
        return cls(
            ids=ids,
            first_times=first_times,
            groups=groups,
            order=order,
            sorted_groups=groups[order],
            sorted_times=first_times[order],
        )

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.ids)


def catalogue_of_log(
    spill: EventSpill,
    items: pa.Table | None,
    group_column: str | None,
) -> ItemCatalogue:
    """Return the catalogue of all items in the spilled events.

    Args:
        spill: all events of the log. It is closed: no event may be added later.
        items: the item table; None when there is none.
        group_column: item column with the group; None for a single group.
    """
    spill.close()
    ids = np.zeros(0, np.int64)
    first_times = np.zeros(0, np.int64)
    for part in range(spill.num_parts):
        events = spill.read(part)
        ids, first_times = _earliest(
            np.concatenate([ids, int64_column(events, ITEM_ID)]),
            np.concatenate([first_times, known_times(events)]),
        )
    if group_column is None or items is None or not len(ids):
        return ItemCatalogue.of(ids, first_times)
    return ItemCatalogue.of(
        ids,
        first_times,
        _groups_of(ids, items, group_column),
    )


def _earliest(ids: Int64, times: Int64) -> tuple[Int64, Int64]:
    """Return the different ids, sorted, and the earliest time of each."""
    order = np.lexsort((times, ids))
    unique_ids, first = np.unique(ids[order], return_index=True)
    return unique_ids, times[order][first]


def _groups_of(
    ids: Int64,
    items: pa.Table,
    group_column: str,
) -> Int64:
    """Return a number for the group of each item, int64 [I]; `NO_GROUP` when it has none."""
    values = items[group_column]
    different_values = pc.unique(values.cast(value_type(values.type)))
    codes = pc.index_in(values, value_set=different_values)
    codes = np.asarray(pc.fill_null(codes, NO_GROUP), np.int64)
    table_ids = int64_column(items, ITEM_ID)
    last_row = len(table_ids) - 1
    rows = np.minimum(np.searchsorted(table_ids, ids), last_row)
    is_in_table = table_ids[rows] == ids
    return np.where(is_in_table, codes[rows], NO_GROUP)
