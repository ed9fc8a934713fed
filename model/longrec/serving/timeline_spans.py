"""Equal events of two versions of one user's timeline.

Events are compared column by column. Equal user ids and timestamps alone never prove that two
events are the same: a republished log may change a feature.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import history
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID, TIMESTAMP

Bool = npt.NDArray[np.bool_]
Key = tuple[int, int, int]
"""Timestamp, sequence number and item id of an event: the order of a timeline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Rows that hold the same events in an old and in a new timeline.

    Args:
        old: first row in the old timeline.
        new: first row in the new timeline.
        count: number of rows.
    """

    old: int
    new: int
    count: int

    @property
    def old_end(self) -> int:
        """Row after the last one in the old timeline."""
        return self.old + self.count

    @property
    def new_end(self) -> int:
        """Row after the last one in the new timeline."""
        return self.new + self.count

    def clipped(self, start: int, end: int) -> Span:
        """Return the part of the span within rows start:end of the new timeline."""
        first = max(self.new, start)
        last = min(self.new_end, end)
        return Span(
            old=self.old + first - self.new,
            new=first,
            count=max(0, last - first),
        )


def equal_spans(old: pa.RecordBatch, new: pa.RecordBatch) -> list[Span]:
    """Return at most two spans of equal events: the shared beginning and the shared end.

    Events between the two spans, where some came late, count as new.

    Args:
        old, new: timelines of one user, in the order of their keys.
    """
    if old.num_rows == 0 or new.num_rows == 0:
        return []
    # The timeline that begins earlier is cut where the other one begins; its start is not 0.
    old_start = _search(old, _key(new, 0), "left")
    new_start = _search(new, _key(old, 0), "left")
    num_old = old.num_rows - old_start
    num_new = new.num_rows - new_start
    count = min(num_old, num_new)
    if count <= 0:
        return []
    old_part = old.slice(old_start, count)
    new_part = new.slice(new_start, count)
    is_equal = _equal_rows(old_part, new_part)
    beginning = Span(old_start, new_start, _num_leading(is_equal))
    spans = [beginning] if beginning.count else []
    if beginning.count < count:
        spans += _end_span(old, new, beginning)
    return spans


def uncovered(
    spans: Iterable[Span],
    start: int,
    end: int,
) -> Iterator[tuple[int, int]]:
    """Yield (first row, count) of each part of rows start:end that no span covers.

    Args:
        spans: spans in the order of their rows.
        start, end: rows of the new timeline.
    """
    row = start
    for span in spans:
        if span.new > row:
            yield row, span.new - row
        row = max(row, span.new_end)
    if row < end:
        yield row, end - row


def _end_span(
    old: pa.RecordBatch,
    new: pa.RecordBatch,
    beginning: Span,
) -> list[Span]:
    """Return the span of equal events at the shared end, or nothing."""
    old_end = _search(
        old,
        _key(new, new.num_rows - 1),
        "right",
    )
    new_end = _search(
        new,
        _key(old, old.num_rows - 1),
        "right",
    )
    num_rest = min(old_end - beginning.old_end, new_end - beginning.new_end)
    if num_rest <= 0:
        return []
    is_equal = _equal_rows(
        old.slice(old_end - num_rest, num_rest),
        new.slice(new_end - num_rest, num_rest),
    )
    count = _num_leading(is_equal[::-1])
    if count == 0:
        return []
    return [Span(old_end - count, new_end - count, count)]


def _num_leading(is_equal: Bool) -> int:
    """Return the number of true values before the first false one."""
    if is_equal.all():
        return len(is_equal)
    return int(is_equal.argmin())


def _key(events: pa.RecordBatch, row: int) -> Key:
    time_ms = events.column(TIMESTAMP)[row].as_py()
    order = events.column(EVENT_SEQ)[row].as_py()
    item = events.column(ITEM_ID)[row].as_py()
    return time_ms, order, item


def _search(
    events: pa.RecordBatch,
    key: Key,
    side: Literal["left", "right"],
) -> int:
    """Return the row at which `key` belongs, as numpy.searchsorted does."""
    times = history.timestamps(events)
    start = int(np.searchsorted(times, key[0], side="left"))
    end = int(np.searchsorted(times, key[0], side="right"))
    ties = events.slice(start, end - start)
    orders = ties.column(EVENT_SEQ).to_pylist()
    items = ties.column(ITEM_ID).to_pylist()
    pairs = list(zip(orders, items, strict=True))
    bisect_side = bisect.bisect_left if side == "left" else bisect.bisect_right
    return start + bisect_side(pairs, key[1:])


def _equal_rows(old: pa.RecordBatch, new: pa.RecordBatch) -> Bool:
    """Return which rows hold the same event, features included; both have the same length."""
    # The model does not read basket ids, so keys and values do not depend on them.
    is_equal = np.ones(old.num_rows, np.bool_)
    for name in old.schema.names:
        if name != BASKET_ID:
            is_equal &= _equal_values(old.column(name), new.column(name))
    return is_equal


def _equal_values(old: pa.Array, new: pa.Array) -> Bool:
    if pa.types.is_dictionary(old.type):
        old, new = _comparable_codes(old, new)
    is_equal: Bool = _bits(old) == _bits(new)
    if old.null_count or new.null_count:
        is_old_valid = _validity(old)
        is_new_valid = _validity(new)
        # Bits under nulls say nothing: two nulls may hold codes of different words.
        is_equal &= is_old_valid & is_new_valid
        is_equal |= ~is_old_valid & ~is_new_valid
    return is_equal


def _comparable_codes(old: pa.Array, new: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the codes of two dictionary columns under one dictionary."""
    num_shared = min(len(old.dictionary), len(new.dictionary))
    old_words = old.dictionary.slice(0, num_shared)
    new_words = new.dictionary.slice(0, num_shared)
    if not old_words.equals(new_words):
        both = pa.chunked_array([old, new])
        old, new = both.unify_dictionaries().chunks
    return old.indices, new.indices


def _bits(column: pa.Array) -> npt.NDArray[np.generic]:
    """Return the bits of a fixed-width column as integers, so NaN equals itself; no copy."""
    dtype = np.dtype(f"i{column.type.bit_width // 8}")
    return np.frombuffer(
        column.buffers()[1],
        dtype,
        offset=column.offset * dtype.itemsize,
        count=len(column),
    )


def _validity(column: pa.Array) -> Bool:
    """Return which values are not null."""
    bitmap = column.buffers()[0]
    if bitmap is None:
        return np.ones(len(column), np.bool_)
    first_byte = column.offset // 8
    bits = np.frombuffer(bitmap, np.uint8, offset=first_byte)
    unpacked = np.unpackbits(bits, bitorder="little")
    start = column.offset - 8 * first_byte
    return unpacked[start : start + len(column)].astype(np.bool_)
