"""Item values that occur only in the rows of the log, such as a category in every row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64
from longrec.data.timelines import group_starts

UNKNOWN = -1
"""Marks a missing value."""
COMPACT_ROWS = 2_000_000
"""Number of collected rows after which they are reduced to one per item."""


class FirstKnownValues:
    """First known value of each item in a log; the memory grows with the items only."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, np.int64)
        self._values = np.zeros(0, np.int64)
        self._pending: list[tuple[Int64, Int64]] = []
        self._num_pending = 0

    def add(self, ids: Int64, values: Int64) -> None:
        """Add rows of the log.

        Args:
            ids: int64 [N], item ids.
            values: int64 [N]; a negative value is unknown.
        """
        ids, values = _first_known(ids, values)
        self._pending.append((ids, values))
        self._num_pending += len(ids)
        # Each compaction sorts all ids, so it waits for as many rows as there are ids.
        if self._num_pending > COMPACT_ROWS + len(self._ids):
            self._compact()

    def ids(self) -> Int64:
        """Return the different item ids, sorted, int64 [I]."""
        self._compact()
        return self._ids

    def values_of(self, ids: Int64) -> pa.Array:
        """Return the value of each item, int64, null when it is unknown."""
        self._compact()
        if not len(self._ids):
            return pa.nulls(len(ids), pa.int64())
        last_row = len(self._ids) - 1
        rows = np.minimum(np.searchsorted(self._ids, ids), last_row)
        values = self._values[rows]
        is_known = (self._ids[rows] == ids) & (values >= 0)
        return pa.array(values, pa.int64(), mask=~is_known)

    def _compact(self) -> None:
        if not self._pending:
            return
        ids = [self._ids, *(ids for ids, _ in self._pending)]
        values = [self._values, *(values for _, values in self._pending)]
        self._ids, self._values = _first_known(np.concatenate(ids), np.concatenate(values))
        self._pending = []
        self._num_pending = 0


def _first_known(ids: Int64, values: Int64) -> tuple[Int64, Int64]:
    """Return the different ids, sorted, and the first known value of each."""
    order = np.lexsort((values < 0, ids))  # by id, known values first, else in order of the log
    first = order[group_starts(ids[order])]
    return ids[first], np.maximum(values[first], UNKNOWN)
