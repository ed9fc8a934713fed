"""Codes of the item features of all events and targets; two rows match if their codes are equal.

The codes come from the raw rows: equal codes are equal values, for rare and new values too.

Shape letters: E events, T events of the training window, P targets, I items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.schema import ITEM_ID, TIMESTAMP

Array: TypeAlias = npt.NDArray[Any]
Int: TypeAlias = npt.NDArray[np.int64]
Int32: TypeAlias = npt.NDArray[np.int32]

NO_VALUE = -1
"""Code of a missing value or an item that no target has; it matches nothing."""


@dataclasses.dataclass(
    frozen=True,
    slots=True,
)
class ItemValues:
    """The items of all events and targets, and the values of their features.

    Args:
        event_items: int32 [E], 0..I-1, or NO_VALUE for an item that no target has.
        target_items: int32 [P], 0..I-1.
        training_items, training_times: int32 and int64 [T], item and time (ms) of the events of the
            training window.
        feature_codes: name of each feature -> int32 [I + 1], codes by item; the last is NO_VALUE.
    """

    event_items: Int32
    target_items: Int32
    training_items: Int32
    training_times: Int
    feature_codes: dict[str, Int32]

    @classmethod
    def read(
        cls,
        histories: Histories,
    ) -> ItemValues:
        """Return the codes of the histories; features of kind `number` have none."""
        target_ids = int64_column(histories.targets, ITEM_ID)
        table_ids = int64_column(histories.items, ITEM_ID)
        item_ids = np.unique(np.concatenate([target_ids, table_ids]))
        event_items, _ = _read_events(histories.event_batches(), item_ids)
        training_items, training_times = _read_events(histories.training_events(), item_ids)
        return cls(
            event_items,
            _rows_of(item_ids, target_ids),
            training_items,
            training_times,
            _feature_codes(histories, item_ids),
        )

    def columns(self) -> Iterator[tuple[str, Int32, Int32]]:
        """Yield the name of each feature, and its codes by event, int32 [E], and target, [P]."""
        for name, codes in self.feature_codes.items():
            # NO_VALUE as an index reads the last code, which is NO_VALUE too.
            yield name, codes[self.event_items], codes[self.target_items]


def _read_events(
    batches: Iterable[pa.RecordBatch],
    item_ids: Int,
) -> tuple[Int32, Int]:
    """Return the item and the time (ms) of all events."""
    items = [np.zeros(0, np.int32)]
    times = [np.zeros(0, np.int64)]
    for batch in batches:
        batch_ids = int64_column(batch, ITEM_ID)
        items.append(_rows_of(item_ids, batch_ids))
        times.append(int64_column(batch, TIMESTAMP))
    return np.concatenate(items), np.concatenate(times)


def _feature_codes(
    histories: Histories,
    item_ids: Int,
) -> dict[str, Int32]:
    num_items = len(item_ids)
    rows = _rows_of(item_ids, int64_column(histories.items, ITEM_ID))
    codes = {ITEM_ID: np.append(np.arange(num_items, dtype=np.int32), np.int32(NO_VALUE))}
    for feature in histories.schema.item[1:]:
        if feature.kind == "number":
            continue
        column = histories.items.column(feature.name).combine_chunks()
        values = column.dictionary_encode().indices.fill_null(NO_VALUE)
        by_item = np.full(num_items + 1, NO_VALUE, np.int32)
        by_item[rows] = np.asarray(values, np.int32)
        codes[feature.name] = by_item
    return codes


def _rows_of(
    item_ids: Int,
    ids: Int,
) -> Int32:
    """Return the position of each id in the sorted `item_ids`; NO_VALUE if it is not there."""
    if not len(item_ids):
        return np.full(len(ids), NO_VALUE, np.int32)
    positions = np.searchsorted(item_ids, ids)
    positions = np.minimum(positions, len(item_ids) - 1)
    is_known = item_ids[positions] == ids
    return np.where(is_known, positions, NO_VALUE).astype(np.int32)
