"""Deduplication of events: what makes two events the same, and which events of a push are new.

The log decides (`Schema.has_event_numbers`):

    with numbers      Events with equal (user_id, timestamp, event_seq, item_id) are the same.
                      Another event with these values is refused, because the order of arrival
                      would decide between them.
    without numbers   Events that are equal in all columns but `event_seq` are the same, counted:
                      a history holds as many of them as the log or the push that has the most.
                      A pushed event gets a number that its content decides, above those of the
                      log. So events of equal time keep their order, whatever came first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data import history
from longrec.data.columns import Column, Int64, int64_column
from longrec.data.timelines import equals_previous, group_starts
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, USER_ID, Schema

KEY = (USER_ID, *history.EVENT_KEY)
FIRST_PUSHED_NUMBER = 2**62
"""Smallest number of a pushed event where the log has none; positions in a log are below it."""
_COPY_BITS = 22
_HASH_BYTES = 5

Row = tuple[Hashable, ...]
"""Values of an event, in the order of some columns."""
Identity = tuple[Row, int]
"""Values that identify an event, and how many events with these values are before it."""


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


def deduplicate(
    events: pa.RecordBatch,
    stored: pa.RecordBatch,
    schema: Schema,
) -> DeduplicatedEvents:
    """Return which events of one user are stored already.

    Args:
        events: in the order of a history, as `sort_distinct` leaves them.
        stored: the user's history.
        schema: schema of both.
    """
    stored = _at_times(stored, history.timestamps(events))
    row_of_identity = {}
    for row, identity in enumerate(_identities(stored, schema)):
        row_of_identity[identity] = row
    new_rows = []
    repeated_rows = []
    stored_rows = []
    for row, identity in enumerate(_identities(events, schema)):
        stored_row = row_of_identity.get(identity)
        if stored_row is None:
            new_rows.append(row)
        else:
            repeated_rows.append(row)
            stored_rows.append(stored_row)
    return DeduplicatedEvents(
        new=_take(events, new_rows),
        repeated=_take(events, repeated_rows),
        stored=_take(stored, stored_rows),
    )


def pushed_with_copies(
    stored: pa.RecordBatch,
    published: pa.RecordBatch,
    schema: Schema,
) -> pa.RecordBatch:
    """Return the pushed events of one user, and the published ones that are equal to them.

    A push of two equal events stores one where the log has the other. Together they say again that
    there are two.

    Args:
        stored: published and pushed events.
        published: the published events among them.
        schema: schema of both.
    """
    published_keys = set(_rows(published, history.EVENT_KEY))
    keys = _rows(stored, history.EVENT_KEY)
    pushed_rows = [row for row, key in enumerate(keys) if key not in published_keys]
    pushed = _take(stored, pushed_rows)
    if schema.has_event_numbers:
        return pushed
    pushed_contents = set(_contents(pushed, schema))
    candidates = _at_times(stored, history.timestamps(pushed))
    rows = []
    for row, content in enumerate(_contents(candidates, schema)):
        if content in pushed_contents:
            rows.append(row)
    return _take(candidates, rows)


def number_by_content(events: pa.Table, schema: Schema) -> pa.Table:
    """Return the events of a push, each with the number that its content decides.

    Rows that are equal in `event_seq` too are one event.

    Args:
        events: user_id and the history codec's columns, in any order.
        schema: a schema without event numbers.
    """
    users = int64_column(events, USER_ID).tolist()
    given_numbers = int64_column(events, EVENT_SEQ).tolist()
    contents = _contents(events, schema)
    seen = set()
    num_copies = Counter[tuple[int, Row]]()
    rows = []
    numbers = []
    for row, identity in enumerate(zip(users, contents, given_numbers, strict=True)):
        if identity in seen:
            continue
        seen.add(identity)
        user, content, _ = identity
        numbers.append(_number(content, num_copies[user, content]))
        num_copies[user, content] += 1
        rows.append(row)
    events = events.take(pa.array(rows, pa.int64()))
    position = events.schema.get_field_index(EVENT_SEQ)
    field = events.schema.field(position)
    return events.set_column(position, field, pa.array(numbers, pa.int64()))


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


def _at_times(stored: pa.RecordBatch, times: Int64) -> pa.RecordBatch:
    """Return the stored events at some times."""
    is_wanted = np.isin(history.timestamps(stored), times)
    return stored.filter(pa.array(is_wanted))


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


def _identities(events: pa.RecordBatch, schema: Schema) -> Iterator[Identity]:
    """Yield what identifies each event of one user."""
    if schema.has_event_numbers:
        for key in _rows(events, history.EVENT_KEY):
            yield key, 0
        return
    num_copies = Counter[Row]()
    for content in _contents(events, schema):
        yield content, num_copies[content]
        num_copies[content] += 1


def _contents(events: pa.RecordBatch | pa.Table, schema: Schema) -> list[Row]:
    """Return the values of each event without its number."""
    names = [name for name in history.arrow_schema(schema).names if name != EVENT_SEQ]
    return _rows(events, names)


def _rows(events: pa.RecordBatch | pa.Table, names: Sequence[str]) -> list[Row]:
    columns = [_comparable_values(events.column(name)) for name in names]
    return list(zip(*columns, strict=True))


def _comparable_values(column: Column) -> list[Any]:
    """Return values that are equal where events are.

    A missing value is None: null, NaN or an empty text. Zero has no sign.
    """
    if pa.types.is_integer(column.type) and not column.null_count:
        values: list[Any] = column.to_numpy().tolist()
        return values
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)
    return [None if _is_missing(value) else value for value in column.to_pylist()]


def _is_missing(value: Any) -> bool:
    is_nan = value != value
    return bool(is_nan or value == "")


def _number(content: Row, copy: int) -> int:
    """Return the number of a pushed event.

    Args:
        content: values of the event.
        copy: how many equal events of the push have a number already.
    """
    text = json.dumps(content).encode()
    digest = hashlib.blake2b(text, digest_size=_HASH_BYTES).digest()
    content_hash = int.from_bytes(digest, "big")
    return FIRST_PUSHED_NUMBER + (content_hash << _COPY_BITS) + copy
