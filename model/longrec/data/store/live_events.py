"""Live events on their way into the feature store: read from a file, cast to the schema, sorted.

`event_seq` comes from the producer only where the log has numbers of its own; else the content of
an event decides it (`deduplication`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, json

from longrec import times
from longrec.data import history
from longrec.data.columns import cast_column, int64_column, single_array
from longrec.data.store.deduplication import number_by_content, sort_distinct
from longrec.data.timelines import find_split_basket, group_spans, known_times
from longrec.errors import DataError
from longrec.ids import hash_texts
from longrec.schema import BASKET_ID, CREATED, EVENT_SEQ, ITEM_ID, TIMESTAMP, USER_ID, Schema

LateEvents = Literal["hold", "ignore"]
SUFFIXES = (".parquet", ".csv", ".jsonl")
ID_COLUMNS = {"user": USER_ID, "item": ITEM_ID, "basket": BASKET_ID}
"""Column of each entry of `Schema.text_ids`."""
_USER_FIELD = pa.field(USER_ID, pa.int64(), nullable=False)


def read_file(
    path: str | Path,
    schema: Schema,
    late_events: LateEvents = "hold",
) -> pa.Table:
    """Return the events in a Parquet, CSV or JSONL file, as `conform` returns them.

    Times are milliseconds, as `longrec.times` has them, or ISO 8601. In a CSV an empty field is
    null and a quoted one a text.

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
        table = _read_table(path, schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        columns = (USER_ID, *history.arrow_schema(schema).names)
        raise DataError(
            f"{path} cannot be read",
            found=str(error).splitlines()[0],
            expected=", ".join(columns),
        ) from error
    return conform(table, schema, late_events)


def conform(
    events: pa.Table,
    schema: Schema,
    late_events: LateEvents = "hold",
) -> pa.Table:
    """Return user_id and the codec's columns, each event once, in the order of histories.

    Columns that the schema does not know are dropped. An event with a later `created` gets that
    time, unless late events are ignored. A producer that sends an event again must send the same
    `created`, or the event counts as another one.

    Args:
        events: rows of a push.
        schema: schema of the published features.
        late_events: whether the time of a late event moves to `created` (`hold`) or not.

    Raises:
        DataError: a column is missing or has another type, an id or time is null, a time is out of
            range (`longrec.times`), two events share a key, or a basket has two times.
    """
    if not events.num_rows:
        return _no_events(schema)
    events = _with_numeric_ids(events, schema)
    events = _with_epoch_times(events, schema.time_origin_ms)
    if late_events == "hold":
        events = _at_known_times(events)
    if not schema.has_event_numbers:
        events = _with_some_numbers(events)
    events = arrange(events, schema)
    check_baskets(events, schema)
    return events


def arrange(events: pa.Table, schema: Schema) -> pa.Table:
    """Return user_id and the codec's columns, each event once, in the order of histories.

    Args:
        events: user_id and the codec's columns; others are dropped.
        schema: schema of the published features.

    Raises:
        DataError: a column is missing or has another type, an id is null, or two events share a
            key.
    """
    batch = history.conform(events, schema)
    users = _user_column(events)
    table = pa.Table.from_batches([batch])
    table = table.add_column(0, _USER_FIELD, users)
    if not schema.has_event_numbers:
        table = number_by_content(table, schema)
    return sort_distinct(table)


def split_by_user(events: pa.Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield each user and the user's events, as a slice with the codec's columns.

    Args:
        events: as `conform` returns them.
    """
    users = events.column(USER_ID).to_numpy()
    histories = events.drop_columns([USER_ID]).combine_chunks()
    for start, end in group_spans(users):
        own = histories.slice(start, end - start)
        [batch] = own.to_batches()  # combined chunks give one batch
        yield int(users[start]), batch


def check_baskets(events: pa.Table, schema: Schema) -> None:
    """Check that all events of a user's basket have one time.

    Raises:
        DataError: a basket has two times.
    """
    if not schema.has_baskets:
        return
    split = find_split_basket(
        users=events.column(USER_ID).to_numpy(),
        baskets=events.column(BASKET_ID).to_numpy(),
        times=events.column(TIMESTAMP).to_numpy(),
    )
    if split is not None:
        _, example = split
        raise DataError(
            "events of one basket have different times, a history could split it",
            found=example,
            expected="one time per basket",
            fix="Give all events of a basket one timestamp.",
        )


def _no_events(schema: Schema) -> pa.Table:
    table = pa.Table.from_batches([history.empty(schema)])
    return table.add_column(0, _USER_FIELD, pa.array([], pa.int64()))


def _with_numeric_ids(events: pa.Table, schema: Schema) -> pa.Table:
    """Return the events with the hashes of text ids, where the log has such ids."""
    for name in _text_columns(schema):
        position = events.schema.get_field_index(name)
        if position >= 0:
            column = single_array(events.column(position))
            events = events.set_column(position, name, hash_texts(column))
    return events


def _text_columns(schema: Schema) -> list[str]:
    """Return the id columns that the log names by text."""
    return [name for key, name in ID_COLUMNS.items() if key in schema.text_ids]


def _with_some_numbers(events: pa.Table) -> pa.Table:
    """Return the events with `event_seq`; where it is missing, rows get different ones."""
    names = events.schema.names
    if EVENT_SEQ in names:
        if not events.column(EVENT_SEQ).null_count:
            return events
        events = events.drop_columns([EVENT_SEQ])
    return events.append_column(EVENT_SEQ, pa.array(np.arange(events.num_rows)))


def _with_epoch_times(events: pa.Table, origin_ms: int) -> pa.Table:
    """Return the events with times and `created` as int64 ms since 1970, rounded down."""
    for name in (TIMESTAMP, CREATED):
        position = events.schema.get_field_index(name)
        if position < 0:
            continue
        column = single_array(events.column(position))
        if pa.types.is_temporal(column.type):
            milliseconds = pa.timestamp("ms", tz=getattr(column.type, "tz", None))
            column = cast_column(column, milliseconds, name, safe=False)
        numbers = int64_column(pa.table({name: column}), name)
        epoch_times = times.require_times(name, numbers, origin_ms)
        events = events.set_column(position, name, pa.array(epoch_times))
    return events


def _at_known_times(events: pa.Table) -> pa.Table:
    """Return the events with the time at which they became known."""
    names = events.schema.names
    if CREATED not in names or TIMESTAMP not in names:
        return events
    position = events.schema.get_field_index(TIMESTAMP)
    return events.set_column(position, TIMESTAMP, pa.array(known_times(events)))


def _user_column(events: pa.Table) -> pa.Array:
    if USER_ID not in events.schema.names:
        raise DataError(
            f"events lack the column '{USER_ID}'",
            found=", ".join(events.schema.names),
            expected="int64",
        )
    column = events.column(USER_ID).combine_chunks()
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


def _has_rows(path: Path) -> bool:
    """Return whether a text file holds more or less than its header."""
    num_header_lines = 1 if path.suffix == ".csv" else 0
    with open(path, "rb") as stream:
        lines = (line for line in stream if line.strip())
        first_lines = list(itertools.islice(lines, num_header_lines + 1))
    return len(first_lines) != num_header_lines


def _read_table(path: Path, schema: Schema) -> pa.Table:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as stored:
            return stored.read()
    if not _has_rows(path):
        return pa.table({})
    types = {USER_ID: pa.int64()}
    for field in history.arrow_schema(schema):
        if field.name != TIMESTAMP:  # either a number or ISO 8601
            types[field.name] = field.type
            if pa.types.is_dictionary(field.type):
                types[field.name] = pa.string()
    types |= dict.fromkeys(_text_columns(schema), pa.string())
    if path.suffix == ".csv":
        options = csv.ConvertOptions(
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        return csv.read_csv(path, convert_options=options)
    explicit = pa.schema(list(types.items()))
    return json.read_json(path, parse_options=json.ParseOptions(explicit_schema=explicit))
