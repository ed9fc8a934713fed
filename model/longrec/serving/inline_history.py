"""Histories that come with a request, as columns (JSON) or packed (Arrow)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from longrec.data import history
from longrec.errors import DataError, SchemaMismatch
from longrec.ids import to_id
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema
from longrec.serving.arrow_bounds import check_stream
from longrec.serving.requests import DEFAULT_LIMITS, BodyLimits
from longrec.times import require_times

Columns: TypeAlias = Mapping[str, Sequence[Any]]
InlineHistory: TypeAlias = Columns | bytes
"""Columns by name, or a history packed by longrec.data.history.pack."""


def read_inline_history(
    events: InlineHistory,
    schema: Schema,
    limits: BodyLimits = DEFAULT_LIMITS,
) -> pa.RecordBatch:
    """Return the events that came with a request, oldest first.

    Args:
        events: columns by name, or a packed history.
        schema: schema of the model.
        limits: largest number of events, and of bytes that they decompress to.

    Raises:
        DataError: there are too many events; see also `unpack_history` and `history_of_columns`.
    """
    if isinstance(events, bytes):
        unpacked = unpack_history(events, schema, limits.max_bytes)
        limits.check_events(unpacked.num_rows)
        return unpacked
    limits.check_events(max(map(len, events.values()), default=0))
    return history_of_columns(events, schema)


def unpack_history(
    packed: bytes,
    schema: Schema,
    max_bytes: int = DEFAULT_LIMITS.max_bytes,
) -> pa.RecordBatch:
    """Return the events of a packed history.

    Args:
        packed: the history (longrec.data.history.pack).
        schema: schema of the model.
        max_bytes: bytes that it decompresses to.

    Raises:
        DataError: the history is damaged, too large, was packed for another schema, or holds a null
            id or time, a time that is out of range or events out of order.
    """
    events = _unpack(packed, schema, max_bytes)
    for field, column in zip(events.schema, events.columns, strict=True):
        _check_nulls(field, column)
    position = events.schema.get_field_index(TIMESTAMP)
    times = _epoch_times(events.column(position), schema)
    events = events.set_column(position, events.schema.field(position), times)
    _check_order(events)
    return events


def history_of_columns(columns: Columns, schema: Schema) -> pa.RecordBatch:
    """Return the events of columns, in the order of their keys.

    Args:
        columns: values by name. item_id and timestamp (ms, see `longrec.times`) are required.
            event_seq is the given order by default; missing event features are null.
        schema: schema of the model.

    Raises:
        DataError: a column is unknown or missing, has another length, or a value of a wrong type;
            a time is out of range.
    """
    fields = history.arrow_schema(schema)
    _check_names(columns, fields)
    num_events = len(columns[ITEM_ID])
    _check_lengths(columns, num_events)
    given = {EVENT_SEQ: range(num_events), **columns, ITEM_ID: _item_ids(columns, schema)}
    arrays = {}
    for field in fields:
        values = given.get(field.name)
        arrays[field.name] = _array(field, values, num_events)
    arrays[TIMESTAMP] = _epoch_times(arrays[TIMESTAMP], schema)
    order = [(name, "ascending") for name in (TIMESTAMP, EVENT_SEQ, ITEM_ID)]
    events = pa.table(arrays).sort_by(order)
    return history.conform(events, schema)


def _item_ids(columns: Columns, schema: Schema) -> Sequence[Any]:
    """Return the items of events; a text becomes a number, as in `longrec.ids`."""
    values = columns[ITEM_ID]
    is_text = "item" in schema.text_ids
    name = f"history: column '{ITEM_ID}'"
    return [
        to_id(name, value, is_text=is_text) if isinstance(value, str) else value for value in values
    ]


def _unpack(packed: bytes, schema: Schema, max_bytes: int) -> pa.RecordBatch:
    """Return the events of a packed history, with valid buffers but any values."""
    try:
        check_stream(packed, max_bytes)
        events = history.unpack(packed, schema)
        # Offsets or indices out of range would make pyarrow read outside of its memory.
        events.validate(full=True)
    except (DataError, SchemaMismatch) as error:
        raise DataError(
            "history: not readable",
            found=error.found or str(error),
            expected=error.expected,
        ) from error
    except pa.ArrowException as error:
        raise DataError("history: not readable", found=_first_line(error)) from error
    return events


def _check_names(columns: Columns, fields: pa.Schema) -> None:
    expected = ", ".join(fields.names)
    unknown = sorted(set(columns) - set(fields.names))
    if unknown:
        raise DataError(f"history: unknown column '{unknown[0]}'", expected=expected)
    for field in fields:
        is_required = not field.nullable and field.name != EVENT_SEQ
        if is_required and field.name not in columns:
            raise DataError(f"history: no column '{field.name}'", expected=expected)


def _check_lengths(columns: Columns, num_events: int) -> None:
    for name, values in columns.items():
        if len(values) != num_events:
            raise DataError(
                f"history: column '{name}' has another length",
                found=len(values),
                expected=num_events,
            )


def _array(
    field: pa.Field,
    values: Sequence[Any] | None,
    num_events: int,
) -> pa.Array:
    """Return the values of a column, nulls for a missing one."""
    is_dictionary = pa.types.is_dictionary(field.type)
    dtype = field.type.value_type if is_dictionary else field.type
    if values is None:
        return pa.nulls(num_events, dtype)
    try:
        # With a type given, pyarrow would cut floats to integers and take truth for a number.
        found = pa.array(values)
        if not _is_readable_as(found.type, dtype):
            raise pa.ArrowTypeError(str(found.type))
        array = found.cast(dtype)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"history: column '{field.name}' has a value of the wrong type",
            found=_first_line(error),
            expected=str(dtype),
        ) from error
    _check_nulls(field, array)
    return array


def _is_readable_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether values of a type may stand for another type; only nulls have no type."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found))
    if pa.types.is_integer(found):
        return True
    return bool(pa.types.is_floating(wanted) and pa.types.is_floating(found))


def _check_nulls(field: pa.Field, array: pa.Array) -> None:
    if array.null_count and not field.nullable:
        raise DataError(f"history: column '{field.name}' must not hold nulls")


def _epoch_times(column: pa.Array, schema: Schema) -> pa.Array:
    """Return the times of events as ms since 1970."""
    name = f"history: column '{TIMESTAMP}'"
    return pa.array(require_times(name, column.to_numpy(), schema.time_origin_ms))


def _check_order(events: pa.RecordBatch) -> None:
    try:
        history.check_order(events)
    except DataError as error:
        raise DataError(
            f"history: {error.what}",
            found=error.found,
            expected=error.expected,
            fix=error.fix,
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
