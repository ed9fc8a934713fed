"""Deduplication of events: which events of a push are new, and which repeat a stored event.

(user_id, timestamp, event_seq, item_id) identifies an event. Repeating an event changes nothing.
Another event with the same key is refused, because the order of arrival would decide between them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.data.columns import Int64
from longrec.data.timelines import equals_previous, group_starts
from longrec.errors import DataError
from longrec.schema import USER_ID

KEY = (USER_ID, *history.EVENT_KEY)


@dataclasses.dataclass(frozen=True, slots=True)
class DeduplicatedEvents:
    """Events of one user, divided by whether they are stored already.

    Args:
        new: events that are not stored.
        repeated: events that are stored.
        stored: the stored event of each repeated one, row by row.
    """

    new: pa.RecordBatch
    repeated: pa.RecordBatch
    stored: pa.RecordBatch


def deduplicate(events: pa.RecordBatch, stored: pa.RecordBatch) -> DeduplicatedEvents:
    """Return which events of one user are stored already.

    Args:
        events: in the order of a history, each once.
        stored: the user's history.
    """
    if not events.num_rows:
        return DeduplicatedEvents(events, events, stored.slice(0, 0))
    stored_in_range = _between(stored, history.timestamps(events))
    rows = range(stored_in_range.num_rows)
    row_of_key = dict(zip(_keys(stored_in_range), rows, strict=True))
    new_rows = []
    repeated_rows = []
    stored_rows = []
    for row, key in enumerate(_keys(events)):
        stored_row = row_of_key.get(key)
        if stored_row is None:
            new_rows.append(row)
        else:
            repeated_rows.append(row)
            stored_rows.append(stored_row)
    return DeduplicatedEvents(
        new=_take(events, new_rows),
        repeated=_take(events, repeated_rows),
        stored=_take(stored_in_range, stored_rows),
    )


def sort_distinct(events: pa.Table) -> pa.Table:
    """Return events sorted by (user_id, timestamp, event_seq, item_id), each once.

    Args:
        events: user_id and the history codec's columns.

    Raises:
        DataError: two different events share a key.
    """
    keys = [events.column(name).to_numpy() for name in KEY]
    order = np.lexsort(keys[::-1])
    events = events.take(pa.array(order))
    sorted_keys = [key[order] for key in keys]
    repeats = np.flatnonzero(equals_previous(*sorted_keys)) + 1
    if len(repeats):
        _check_rows(events.take(pa.array(repeats)), events.take(pa.array(repeats - 1)))
    first_rows = group_starts(*sorted_keys)
    return events.take(pa.array(first_rows)).combine_chunks()


def check_same_events(
    user: int,
    events: pa.RecordBatch,
    stored: pa.RecordBatch,
) -> None:
    """Check that events with equal keys are equal, row by row.

    Raises:
        DataError: two of them differ.
    """
    for event, stored_event in zip(events.to_pylist(), stored.to_pylist(), strict=True):
        differing = [
            name
            for name, value in event.items()
            if repr(value) != repr(stored_event[name])  # NaN is equal to NaN
        ]
        if not differing:
            continue
        shown = (*history.EVENT_KEY, *differing)
        raise DataError(
            f"an event of user {user} has the key of another event",
            found=", ".join(f"{name}={event[name]!r}" for name in shown),
            expected=", ".join(f"{name}={stored_event[name]!r}" for name in differing),
            fix="Give each event of a user its own event_seq.",
        )


def _between(stored: pa.RecordBatch, times: Int64) -> pa.RecordBatch:
    """Return the stored events from the first to the last of some sorted times."""
    stored_times = history.timestamps(stored)
    first = int(np.searchsorted(stored_times, times[0], side="left"))
    end = int(np.searchsorted(stored_times, times[-1], side="right"))
    return stored.slice(first, end - first)


def _take(events: pa.RecordBatch, rows: list[int]) -> pa.RecordBatch:
    return events.take(pa.array(rows, pa.int64()))


def _check_rows(events: pa.Table, others: pa.Table) -> None:
    users = events.column(USER_ID).to_pylist()
    for row, user in enumerate(users):
        check_same_events(
            user,
            _event_of_row(events, row),
            _event_of_row(others, row),
        )


def _event_of_row(table: pa.Table, row: int) -> pa.RecordBatch:
    single = table.slice(row, 1).drop_columns([USER_ID])
    return single.combine_chunks().to_batches()[0]


def _keys(events: pa.RecordBatch) -> list[tuple[int, ...]]:
    columns = []
    for name in history.EVENT_KEY:
        column = events.column(name).to_numpy()
        columns.append(column.tolist())
    return list(zip(*columns, strict=True))
