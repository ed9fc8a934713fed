"""Measure how often the targets of a log repeat what their user touched before.

Shape letters: T events, N targets, I items.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import Int64, int64_column, require_column, single_array
from longrec.data.dataset import Dataset
from longrec.schema import ITEM_ID, TIMESTAMP, USER_ID

Bool = npt.NDArray[np.bool_]
NO_CODE = -1
"""Code of a missing value, which repeats nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class RepeatRate:
    """How often the targets of the first task repeat a value of their user's earlier events.

    Args:
        column: item feature, for example `item_id`.
        positives: share of the positive targets with such an event, 0 to 1.
        negatives: share of the negative targets.
    """

    column: str
    positives: float
    negatives: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of events or targets: users, times in ms and positions in the item table, int64 [T]."""

    users: Int64
    times: Int64
    items: Int64

    @classmethod
    def read(cls, table: pa.Table, item_ids: Int64) -> _Rows:
        return cls(
            int64_column(table, USER_ID),
            int64_column(table, TIMESTAMP),
            _positions(item_ids, int64_column(table, ITEM_ID)),
        )


def measure_repeats(dataset: Dataset, part: int = 0) -> tuple[RepeatRate, ...]:
    """Return the repeat rates of the item and of each of its category features.

    Args:
        dataset: only one part of it and the item table are read.
        part: number of that part; it holds whole users.
    """
    items = dataset.items()
    item_ids = int64_column(items, ITEM_ID)
    events = _Rows.read(dataset.events(part, [USER_ID, TIMESTAMP, ITEM_ID]), item_ids)
    task = dataset.schema.task_names[0]
    target_table = dataset.targets(part, [USER_ID, TIMESTAMP, ITEM_ID, task])
    targets = _Rows.read(target_table, item_ids)
    is_positive = int64_column(target_table, task) == 1
    rates = []
    for feature in dataset.schema.item:
        if feature.kind == "number":
            continue
        codes = _codes(items, feature.name)
        is_repeat = _is_repeat(events, targets, codes)
        rates.append(
            RepeatRate(
                feature.name,
                positives=_share(is_repeat, is_positive),
                negatives=_share(is_repeat, ~is_positive),
            )
        )
    return tuple(rates)


def _codes(items: pa.Table, name: str) -> Int64:
    """Return one code per row of the item table, equal for equal values, int64 [I]."""
    column = single_array(require_column(items, name))
    indices = pc.dictionary_encode(column).indices
    return np.asarray(pc.fill_null(indices.cast(pa.int64()), NO_CODE))


def _is_repeat(events: _Rows, targets: _Rows, codes: Int64) -> Bool:
    """Return whether a strictly earlier event of the user has the target's code, bool [N]."""
    num_codes = int(codes.max(initial=0)) + 1
    users = np.unique(events.users)
    event_keys = _keys(events, codes, users, num_codes)
    # Events are sorted by user and time: the first of each key is its earliest.
    keys, first = np.unique(event_keys, return_index=True)
    target_keys = _keys(targets, codes, users, num_codes)
    found = _positions(keys, target_keys)
    is_repeat = (found != NO_CODE) & (target_keys != NO_CODE)
    earliest = events.times[first[found[is_repeat]]]
    is_repeat[is_repeat] = earliest < targets.times[is_repeat]
    return np.asarray(is_repeat)


def _keys(rows: _Rows, codes: Int64, users: Int64, num_codes: int) -> Int64:
    """Return one number per pair of user and code, int64 [T]; -1 for a missing value."""
    # An unknown item reads the last code; the mask removes it.
    row_codes = codes[rows.items] if len(codes) else np.full(len(rows.items), NO_CODE)
    user_positions = _positions(users, rows.users)
    is_known = (user_positions != NO_CODE) & (rows.items != NO_CODE) & (row_codes != NO_CODE)
    return np.where(is_known, user_positions * num_codes + row_codes, NO_CODE)


def _positions(sorted_values: Int64, values: Int64) -> Int64:
    """Return the position of each value among sorted values, int64; NO_CODE for a missing one."""
    if not len(sorted_values):
        return np.full(len(values), NO_CODE)
    positions = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.where(sorted_values[positions] == values, positions, NO_CODE)


def _share(is_repeat: Bool, mask: Bool) -> float:
    return float(is_repeat[mask].mean()) if mask.any() else 0.0
