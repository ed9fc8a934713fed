"""Histories that come with a request, as columns (JSON) or packed (Arrow)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from longrec.data import history
from longrec.errors import DataError, SchemaMismatch
from longrec.ids import MAX_ID, MIN_ID, from_decimal, text_id
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema
from longrec.serving.arrow_bounds import check_stream
from longrec.serving.requests import DEFAULT_LIMITS, BodyLimits
from longrec.spelling import nearest_name
from longrec.times import require_times

Columns: TypeAlias = Mapping[str, Sequence[Any]]
InlineHistory: TypeAlias = Columns | bytes
"""Columns by name, or a history packed by longrec.data.history.pack."""
MAX_SHOWN_CHARACTERS = 40
MAX_FLOAT = 2**1023
"""Integers up to it have a float64."""


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
            event_seq is the given order by default; missing event features are null. Digits in
            a text are a number, in columns of integers beside the times.
        schema: schema of the model.

    Raises:
        DataError: a column is unknown or missing, has another length, or a value of a wrong type;
            a time is out of range.
    """
    fields = history.arrow_schema(schema)
    _check_names(columns, fields)
    num_events = len(columns[ITEM_ID])
    _check_lengths(columns, num_events)
    given: dict[str, Sequence[Any]] = {EVENT_SEQ: range(num_events), **columns}
    if "item" in schema.text_ids:
        given[ITEM_ID] = _text_ids(given[ITEM_ID])
    arrays = {}
    for field in fields:
        values = given.get(field.name)
        arrays[field.name] = _array(field, values, num_events)
    arrays[TIMESTAMP] = _epoch_times(arrays[TIMESTAMP], schema)
    order = [(name, "ascending") for name in (TIMESTAMP, EVENT_SEQ, ITEM_ID)]
    events = pa.table(arrays).sort_by(order)
    return history.conform(events, schema)


def _text_ids(values: Sequence[Any]) -> Sequence[Any]:
    """Return the ids of items in a log with text ids; other values stay."""
    return [text_id(value) if isinstance(value, str) else value for value in values]


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
        raise _unknown_column(unknown[0], fields)
    for field in fields:
        is_required = not field.nullable and field.name != EVENT_SEQ
        if is_required and field.name not in columns:
            raise DataError(f"history: no column '{field.name}'", expected=expected)


def _unknown_column(name: str, fields: pa.Schema) -> DataError:
    what = f"history: unknown column {name[:MAX_SHOWN_CHARACTERS]}"
    nearest = nearest_name(name, fields.names)
    if nearest:
        return DataError(f"{what}; did you mean {nearest}")
    return DataError(what, expected=", ".join(fields.names))


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
    if pa.types.is_integer(dtype) and field.name not in (TIMESTAMP, EVENT_SEQ):
        values = _numbers(values)
    try:
        found = _inferred(values, dtype)
        if not _is_readable_as(found.type, dtype):
            raise pa.ArrowTypeError(str(found.type))
        array = found.cast(dtype)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _wrong_value(field.name, values, dtype) from error
    _check_nulls(field, array)
    return array


def _inferred(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """Return values with the type that they have.

    With a type given, pyarrow would cut floats to integers. It takes truth among numbers for one.

    Raises:
        TypeError: truth is among other values.
    """
    types = set(map(type, values))
    if bool in types and len(types - {type(None)}) > 1:
        raise TypeError("truth among other values")
    try:
        return pa.array(values)
    except OverflowError:
        if not pa.types.is_floating(dtype):
            raise
        return pa.array([float(value) if type(value) is int else value for value in values])


def _numbers(values: Sequence[Any]) -> Sequence[Any]:
    """Return values with the number of each text of digits; other values stay."""
    if not any(isinstance(value, str) for value in values):
        return values
    numbers = []
    for value in values:
        number = from_decimal(value) if isinstance(value, str) else None
        numbers.append(value if number is None else number)
    return numbers


def _wrong_value(name: str, values: Sequence[Any], dtype: pa.DataType) -> DataError:
    """Return the error of a column, with the first value that does not fit."""
    expected = "a text"
    if pa.types.is_integer(dtype):
        expected = "an integer of 64 bits"
    elif pa.types.is_floating(dtype):
        expected = "a number of 64 bits"
    for row, value in enumerate(values, start=1):
        if not _fits(value, dtype):
            shown = json.dumps(value)[:MAX_SHOWN_CHARACTERS]
            found = f"{shown} at row {row}"
            return DataError(f"history: column '{name}'", found=found, expected=expected)
    return DataError(
        f"history: column '{name}'", found="values of several types", expected=expected
    )


def _fits(value: Any, dtype: pa.DataType) -> bool:
    """Return whether a value of JSON may stand in a column; whether null may is not asked."""
    if value is None:
        return True
    if pa.types.is_string(dtype):
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    is_floating = bool(pa.types.is_floating(dtype))
    if isinstance(value, int):
        return abs(value) < MAX_FLOAT if is_floating else MIN_ID <= value <= MAX_ID
    return is_floating and isinstance(value, float)


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
