"""Live events on their way into the feature store: read from a file, brought to the schema, told
apart from what is stored.

An event is known by (user_id, timestamp, event_seq, item_id). The same event again changes nothing;
another event under the same key
is refused, for which of the two came first would otherwise decide. `event_seq` is the producer's:
the position in the source log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from longrec.data import history
from longrec.data.dataset import known_times
from longrec.errors import DataError
from longrec.schema import BASKET_ID, CREATED, TIMESTAMP, USER_ID, Schema

KEY = (USER_ID, *history.KEY)
SUFFIXES = (".parquet", ".csv", ".jsonl")

Int64 = npt.NDArray[np.int64]


def read(
    path: str | Path, schema: Schema, late_events: Literal["hold", "ignore"] = "hold"
) -> pa.Table:
    """Returns the events in a Parquet, CSV or JSONL file, as `conform` does.

    Times are milliseconds since 1970 UTC or ISO 8601. In a CSV an empty field is null and a quoted
    one a text.

    Raises:
        DataError: the file is missing or not readable, or its columns do not fit the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist", expected="a file of events")
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path} is of no known kind",
            found=path.suffix or "no suffix",
            expected=", ".join(SUFFIXES),
        )
    try:
        table = _read(path, schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read", found=str(error).splitlines()[0], expected=_columns(schema)
        ) from error
    return conform(table, schema, late_events)


def conform(
    events: pa.Table, schema: Schema, late_events: Literal["hold", "ignore"] = "hold"
) -> pa.Table:
    """Returns user_id and the codec's columns, each event once, sorted by (user_id, timestamp,
    event_seq, item_id).

    Columns that the schema does not know are dropped. An event with a later `created` has that
    time, unless late events are to be ignored;
    who sends an event again sends its first `created` again.

    Raises:
        DataError: a column is missing or has another type, an id or time is null, a time is before
            1970 or after 2099, two events share a
            key, or a basket has two times.
    """
    codec = history.conform(_held(events) if late_events == "hold" else events, schema)
    users = _users(events)
    times = history.timestamps(codec)
    if (wrong := (times < 0) | (times >= history.LATEST_MS)).any():
        raise DataError(
            f"column '{TIMESTAMP}' of the events holds a time before 1970 or after 2099",
            found=f"{int(wrong.sum())}, the first at row {int(wrong.argmax()) + 1}",
            expected="milliseconds since 1970 UTC",
        )
    table = pa.Table.from_batches([codec]).add_column(
        0, pa.field(USER_ID, pa.int64(), nullable=False), users
    )
    keys = [table.column(name).to_numpy() for name in KEY]
    order = np.lexsort(keys[::-1])
    same = np.append(False, np.all([key[order[1:]] == key[order[:-1]] for key in keys], axis=0))
    if same.any():
        at = np.flatnonzero(same)
        _check_same(table.take(pa.array(order[at])), table.take(pa.array(order[at - 1])))
    table = table.take(pa.array(order[~same])).combine_chunks()
    check_baskets(table, schema)
    return table


def by_user(events: pa.Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields each user and the user's events, as a slice with the codec's columns; `events` as from
    `conform`.
    """
    users = events.column(USER_ID).to_numpy()
    starts = (
        np.flatnonzero(np.append(True, users[1:] != users[:-1]))
        if len(users)
        else np.zeros(0, np.int64)
    )
    codec = events.drop_columns([USER_ID]).combine_chunks()
    for start, end in (
        zip(starts.tolist(), [*starts[1:].tolist(), len(users)], strict=True) if len(users) else ()
    ):
        yield int(users[start]), codec.slice(start, end - start).to_batches()[0]


def fresh(events: pa.RecordBatch, known: pa.RecordBatch) -> tuple[pa.RecordBatch, Int64, Int64]:
    """Returns the events of one user that `known` lacks; and of the others, the rows in `events`
    and in `known`.
    """
    times, stored = history.timestamps(events), history.timestamps(known)
    first, end = (
        np.searchsorted(stored, times[0], side="left"),
        np.searchsorted(stored, times[-1], side="right"),
    )
    near = known.slice(int(first), int(end - first))
    places = {key: row for row, key in enumerate(_keys(near), int(first))}
    found = np.array([places.get(key, -1) for key in _keys(events)], np.int64)
    repeated = np.flatnonzero(found >= 0)
    return events.take(pa.array(np.flatnonzero(found < 0))), repeated, found[repeated]


def check_same(user: int, events: pa.RecordBatch, known: pa.RecordBatch) -> None:
    """Raises DataError where events with one key, row by row, are not the same event."""
    for mine, stored in zip(events.to_pylist(), known.to_pylist(), strict=True):
        if repr(mine) != repr(stored):
            names = [name for name in mine if repr(mine[name]) != repr(stored[name])]
            raise DataError(
                f"an event of user {user} has the key of another event",
                found=", ".join(f"{name}={mine[name]!r}" for name in (*history.KEY, *names)),
                expected=", ".join(f"{name}={stored[name]!r}" for name in names),
                fix="Give each event of a user its own event_seq.",
            )


def check_baskets(events: pa.Table, schema: Schema) -> None:
    """Raises DataError where the events of one basket of a user have two times."""
    if not schema.has_baskets:
        return
    users, baskets, times = (
        events.column(name).to_numpy() for name in (USER_ID, BASKET_ID, TIMESTAMP)
    )
    order = np.lexsort((times, baskets, users))
    users, baskets, times = users[order], baskets[order], times[order]
    split = (users[1:] == users[:-1]) & (baskets[1:] == baskets[:-1]) & (times[1:] != times[:-1])
    if split.any():
        where = int(split.argmax())
        raise DataError(
            "events of one basket have different times, a history could split it",
            found=f"basket {baskets[where]} of user {users[where]}",
            expected="one time per basket",
        )


def _held(events: pa.Table) -> pa.Table:
    """Returns the events with the time at which they were known."""
    if CREATED not in events.schema.names or TIMESTAMP not in events.schema.names:
        return events
    try:
        times = known_times(events)
    except pa.ArrowException as error:
        raise DataError(
            f"column '{TIMESTAMP}' or '{CREATED}' of the events has the wrong type",
            found=str(error).splitlines()[0],
            expected="int64 ms or timestamps",
        ) from error
    return events.set_column(events.schema.get_field_index(TIMESTAMP), TIMESTAMP, pa.array(times))


def _keys(events: pa.RecordBatch) -> list[tuple[int, ...]]:
    return list(
        zip(*(events.column(name).to_numpy().tolist() for name in history.KEY), strict=True)
    )


def _check_same(events: pa.Table, others: pa.Table) -> None:
    users = events.column(USER_ID).to_pylist()
    for row, user in enumerate(users):
        check_same(
            user,
            *(
                table.drop_columns([USER_ID]).slice(row, 1).combine_chunks().to_batches()[0]
                for table in (events, others)
            ),
        )


def _users(events: pa.Table) -> pa.Array:
    if USER_ID not in events.schema.names:
        raise DataError(
            f"events lack the column '{USER_ID}'",
            found=", ".join(events.schema.names),
            expected="int64",
        )
    column = (
        pa.concat_arrays(events.column(USER_ID).chunks)
        if events.num_rows
        else pa.array([], events.schema.field(USER_ID).type)
    )
    if column.null_count:
        raise DataError(
            f"column '{USER_ID}' of the events must not hold nulls",
            found=f"{column.null_count} of {len(column)}",
        )
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowException as error:
        raise DataError(
            f"column '{USER_ID}' of the events has the wrong type",
            found=str(column.type),
            expected="int64",
        ) from error


def _read(path: Path, schema: Schema) -> pa.Table:
    types: dict[str, Any] = {
        field.name: pa.string() if pa.types.is_dictionary(field.type) else field.type
        for field in history.arrow_schema(schema)
        if field.name != TIMESTAMP
    } | {USER_ID: pa.int64()}
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as stored:
            return stored.read()
    if path.suffix == ".csv":
        options = csv.ConvertOptions(
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        return csv.read_csv(path, convert_options=options)
    wanted = pa.schema(list(types.items()))
    return json.read_json(path, parse_options=json.ParseOptions(explicit_schema=wanted))


def _columns(schema: Schema) -> str:
    return ", ".join((USER_ID, *history.arrow_schema(schema).names))
