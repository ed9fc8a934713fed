"""Exact repeats: rows of a log that hold the same in every column as an earlier row.

A log that was read twice has them, but so has an order with two equal lines. They are counted, and
left out on request only.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import Int64, int64_column, single_array
from longrec.data.timelines import Mask, equals_previous
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID

KEYS = (USER_ID, TIMESTAMP, ITEM_ID)


def find_repeats(events: pa.Table, *, has_event_numbers: bool) -> Mask:
    """Return whether an earlier row holds the same in every column, bool [E].

    Args:
        events: whole users, in the order of the log; times are int64 ms or timestamps.
        has_event_numbers: whether `event_seq` is a column of the log; else it is the position of
            the row, which no two rows share.
    """
    left_out = KEYS if has_event_numbers else (*KEYS, EVENT_SEQ)
    others = [name for name in events.schema.names if name not in left_out]
    is_repeat = np.zeros(events.num_rows, bool)
    rows = _rows_with_equal_keys(events)
    if not len(rows):
        return is_repeat
    candidates = events.take(pa.array(rows))
    codes = [_codes(candidates, name) for name in (*KEYS, *others)]
    order = np.lexsort(codes)  # stable: equal rows stay in the order of the log
    is_equal = equals_previous(*(column[order] for column in codes))
    is_repeat[rows[order[1:][is_equal]]] = True
    return is_repeat


def _rows_with_equal_keys(events: pa.Table) -> Int64:
    """Return the rows that share user, time and item with another row, ascending."""
    keys = [int64_column(events, name) for name in KEYS]
    order = np.lexsort(keys)
    is_equal = equals_previous(*(key[order] for key in keys))
    is_shared = np.append(is_equal, False) | np.insert(is_equal, 0, False)
    is_shared = is_shared[: len(order)]
    return np.sort(order[is_shared])


def _codes(events: pa.Table, name: str) -> Int64:
    """Return a number for each different value of a column; null is a value."""
    column = single_array(events[name])
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column, null_encoding="encode")
    return np.asarray(column.indices, np.int64)
