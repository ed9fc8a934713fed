"""Pack the events of whole users into histories, after checking order and keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import IMPORT_AGAIN, Dataset
from longrec.data.timelines import (
    Mask,
    equals_previous,
    find_split_basket,
    group_spans,
    known_times,
    steps_back,
)
from longrec.errors import DataError
from longrec.schema import BASKET_ID, CREATED, EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Schema


@dataclasses.dataclass(frozen=True, slots=True)
class PackedUser:
    """The packed history of one user.

    Args:
        user_id: the user.
        last_time_ms: time of the last event.
        payload: the packed history.
        num_events: events in it.
        num_late: events that became known after they happened; 0 if late events are not held.
    """

    user_id: int
    last_time_ms: int
    payload: bytes
    num_events: int
    num_late: int


UserPacker = Callable[[Dataset, bool], Iterator[tuple[int, PackedUser]]]
"""(dataset, hold_late) -> (part, packed user) for all users of its shard.

Users come in the order of parts, and of ids within a part. `hold_late` is explained in
`pack_users`.
"""


def packing_columns(schema: Schema, *, hold_late: bool) -> list[str]:
    """Return the columns of events/ that `pack_users` reads."""
    columns = [USER_ID, *history.arrow_schema(schema).names]
    if hold_late:
        columns.append(CREATED)
    return columns


def pack_in_process(dataset: Dataset, hold_late: bool) -> Iterator[tuple[int, PackedUser]]:
    """Yield the packed users of a dataset, one part in memory at a time; a `UserPacker`."""
    columns = packing_columns(dataset.schema, hold_late=hold_late)
    for part in dataset.parts:
        table = dataset.events(part, columns)
        path = dataset.event_path(part)
        for packed in pack_users(
            table,
            dataset.schema,
            path,
            hold_late=hold_late,
        ):
            yield part, packed


def pack_users(
    table: pa.Table,
    schema: Schema,
    path: Path,
    *,
    hold_late: bool,
) -> Iterator[PackedUser]:
    """Yield the packed histories of whole users, after checking order, keys and baskets.

    Args:
        table: the columns `packing_columns`, sorted by (user_id, timestamp, event_seq).
        schema: schema of the dataset.
        path: path of the table, for errors.
        hold_late: whether a late event is put into the history at the time at which it became
            known, not at its timestamp.

    Raises:
        DataError: events are out of order or before 1970, two events share a key, or a basket has
            two times.
    """
    batch = history.conform(table, schema)
    events = _Events.of(batch, int64_column(table, USER_ID))
    _check_order(path, events)
    if hold_late:
        events = events.sorted_at(known_times(table))
    elif events.has_equal_event_seqs:
        events = events.sorted_at(events.times)  # item_id decides the order of ties
    _check_times(path, events)
    _check_keys(path, events)
    if schema.has_baskets:
        _check_baskets(path, events)
    for start, end in group_spans(events.users):
        num_events = end - start
        yield PackedUser(
            user_id=int(events.users[start]),
            last_time_ms=int(events.times[end - 1]),
            payload=history.pack(events.batch.slice(start, num_events), schema),
            num_events=num_events,
            num_late=int(events.is_late[start:end].sum()),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Events:
    """Events of whole users as a batch of the codec's columns, with views of the sort keys."""

    batch: pa.RecordBatch
    users: Int64
    times: Int64
    event_seqs: Int64
    items: Int64
    is_late: Mask

    @classmethod
    def of(
        cls,
        batch: pa.RecordBatch,
        users: Int64,
        is_late: Mask | None = None,
    ) -> _Events:
        if is_late is None:
            is_late = np.zeros(len(users), bool)
        return cls(
            batch,
            users,
            times=history.timestamps(batch),
            event_seqs=batch.column(EVENT_SEQ).to_numpy(),
            items=batch.column(ITEM_ID).to_numpy(),
            is_late=is_late,
        )

    @property
    def has_equal_event_seqs(self) -> bool:
        """Whether two events of a user have the same time and the same event_seq."""
        is_tied = equals_previous(self.users, self.times, self.event_seqs)
        return bool(is_tied.any())

    def sorted_at(self, times: Int64) -> _Events:
        """Return the events at the given times, sorted by (user, time, event_seq, item)."""
        keys = (self.users, times, self.event_seqs, self.items)
        order = np.lexsort(keys[::-1])
        position = self.batch.schema.get_field_index(TIMESTAMP)
        field = self.batch.schema.field(position)
        column = pa.array(times)
        batch = self.batch.set_column(position, field, column)
        is_late = times > self.times
        return _Events.of(
            batch.take(pa.array(order)),
            self.users[order],
            is_late[order],
        )


def _check_order(path: Path, events: _Events) -> None:
    is_back = steps_back(events.users, events.times, events.event_seqs)
    if not is_back.any():
        return
    first_row = int(is_back.argmax()) + 1
    raise DataError(
        f"{path} is out of order",
        found=f"{int(is_back.sum())} steps back, the first at row {first_row}",
        expected="user_id, timestamp, event_seq ascending",
        fix=IMPORT_AGAIN,
    )


def _check_times(path: Path, events: _Events) -> None:
    is_early = events.times < 0
    if not is_early.any():
        return
    user = events.users[events.times.argmin()]
    raise DataError(
        f"{path} holds times before 1970",
        found=f"{int(is_early.sum())}, the first of user {user}",
        expected="milliseconds since 1970 UTC",
        fix="Check the unit of the time column (--timestamp-unit).",
    )


def _check_keys(path: Path, events: _Events) -> None:
    """Raise DataError if two events of a user have the same key, by which the rows are sorted."""
    is_repeated = equals_previous(
        events.users,
        events.times,
        events.event_seqs,
        events.items,
    )
    if not is_repeated.any():
        return
    row = int(is_repeated.argmax())
    example = (
        f"user {events.users[row]}, time {events.times[row]}, event_seq {events.event_seqs[row]}"
    )
    raise DataError(
        f"{path}: events of one user have the same key (timestamp, event_seq, item_id)",
        found=f"{int(is_repeated.sum())}, for example {example}",
        expected="each event once",
        fix="Remove the repeats, or name a column that tells events apart (--seq).",
    )


def _check_baskets(path: Path, events: _Events) -> None:
    split = find_split_basket(
        events.users,
        events.batch.column(BASKET_ID).to_numpy(),
        events.times,
    )
    if split is None:
        return
    num_splits, example = split
    raise DataError(
        f"{path}: events of one basket have different times, a history could split it",
        found=f"{num_splits} such steps, for example {example}",
        expected="one time per basket",
        fix="Give all events of a basket one timestamp.",
    )
