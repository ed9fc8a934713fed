"""Histories that come with a request, as columns (JSON) or packed (Arrow)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from longrec.data import history
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema
from longrec.serving.arrow_bounds import check_stream
from longrec.serving.requests import DEFAULT_LIMITS, BodyLimits

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
        DataError: the history is damaged, too large, or was packed for another schema.
    """
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
        raise DataError("history: not readable", found=str(error).splitlines()[0]) from error
    for field in events.schema:
        _check_nulls(field, events.column(field.name))
    return events


def history_of_columns(columns: Columns, schema: Schema) -> pa.RecordBatch:
    """Return the events of columns, in the order of their keys.

    Args:
        columns: values by name. item_id and timestamp (ms since 1970 UTC) are required. event_seq
            is the given order by default; missing event features are null.
        schema: schema of the model.

    Raises:
        DataError: a column is unknown or missing, has another length, or a value of a wrong type.
    """
    fields = history.arrow_schema(schema)
    _check_names(columns, fields)
    num_events = len(columns[ITEM_ID])
    _check_lengths(columns, num_events)
    given = {EVENT_SEQ: range(num_events), **columns}
    arrays = {}
    for field in fields:
        values = given.get(field.name)
        arrays[field.name] = _array(field, values, num_events)
    order = [(name, "ascending") for name in (TIMESTAMP, EVENT_SEQ, ITEM_ID)]
    events = pa.table(arrays).sort_by(order)
    return history.conform(events, schema)


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
        array = pa.array(values, dtype)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"history: column '{field.name}' has a value of the wrong type",
            found=str(error).splitlines()[0],
            expected=str(dtype),
        ) from error
    _check_nulls(field, array)
    return array


def _check_nulls(field: pa.Field, column: pa.Array) -> None:
    if column.null_count and not field.nullable:
        raise DataError(f"history: column '{field.name}' must not hold nulls")
