"""History codec: one user's events as bytes, and back.

    payload = Arrow IPC stream of one record batch | CRC-32 of the stream, 4 bytes | b"LRH1"

The offline and the online store both hold these bytes. Any Arrow reader can read the stream; it
ignores the last 8 bytes. Rows are ordered by (timestamp, event_seq). Equal events give equal
bytes, also when the batch is a slice of a larger one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data.columns import Int64, single_array
from longrec.data.timelines import group_starts, steps_back
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema

# isal's crc32 is seven times as fast as zlib's, which took a fifth of an online read.
try:
    from isal.isal_zlib import crc32
except ImportError:  # an environment for training only
    from zlib import crc32

CODEC_VERSION = "1"
VERSION_KEY = b"longrec.history"
FINGERPRINT_KEY = b"longrec.schema"
MAGIC = b"LRH1"
EVENT_KEY = (TIMESTAMP, EVENT_SEQ, ITEM_ID)
"""Columns that identify an event of a user, in the order of a history."""

_CHECKSUM_BYTES = 4
_TRAILER_BYTES = _CHECKSUM_BYTES + len(MAGIC)
_TEXT_TYPE = pa.dictionary(pa.int32(), pa.string())
_FEATURE_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": _TEXT_TYPE,
}


@functools.lru_cache(maxsize=16)
def arrow_schema(schema: Schema) -> pa.Schema:
    """Return the columns of a history: item_id, timestamp, event_seq, [basket_id], features.

    Times are int64 milliseconds. The metadata hold codec version and schema fingerprint.
    """
    names = [ITEM_ID, TIMESTAMP, EVENT_SEQ]
    if schema.has_baskets:
        names.append(BASKET_ID)
    fields = []
    for name in names:
        field = pa.field(name, pa.int64(), nullable=False)
        fields.append(field)
    for feature in schema.event:
        dtype = _FEATURE_TYPES[feature.dtype]
        fields.append(pa.field(feature.name, dtype))
    metadata = {
        VERSION_KEY: CODEC_VERSION,
        FINGERPRINT_KEY: schema.fingerprint,
    }
    return pa.schema(fields, metadata)


@functools.lru_cache(maxsize=16)
def empty(schema: Schema) -> pa.RecordBatch:
    """Return a history without events."""
    fields = arrow_schema(schema)
    columns = [pa.array([], field.type) for field in fields]
    return pa.record_batch(columns, schema=fields)


def conform(events: pa.RecordBatch | pa.Table, schema: Schema) -> pa.RecordBatch:
    """Return events with the codec's columns, in its order and types; other columns are dropped.

    Times become int64 ms and strings are dictionary-encoded. A column of the right type is not
    copied.

    Raises:
        DataError: a column is missing, has another type, or holds a null that the codec does not
            allow.
    """
    fields = arrow_schema(schema)
    columns = [_conform_column(events, field) for field in fields]
    return pa.record_batch(columns, schema=fields)


def pack(events: pa.RecordBatch | pa.Table, schema: Schema) -> bytes:
    """Return the payload of a history; equal events give equal bytes.

    Args:
        events: the codec's columns (see `conform`), oldest event first.
        schema: schema of the events; its fingerprint is stored in the payload.

    Raises:
        DataError: a column is missing or has the wrong type, or the events are not in order.
    """
    batch = conform(events, schema)
    check_order(batch)
    columns = [_canonical(column) for column in batch.columns]
    canonical = pa.record_batch(columns, schema=batch.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(canonical)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream + _checksum(stream) + MAGIC


def unpack(payload: bytes | memoryview | pa.Buffer, schema: Schema) -> pa.RecordBatch:
    """Return the history in a payload, without copying it.

    Raises:
        DataError: the payload is truncated, corrupted or of another codec version.
        SchemaMismatch: it was packed for another schema.
    """
    view = memoryview(payload)
    stream = view[:-_TRAILER_BYTES]
    trailer = bytes(view[-_TRAILER_BYTES:])
    if not len(stream) or not trailer.endswith(MAGIC):
        raise _unreadable(f"{len(view)} bytes without the end mark {MAGIC.decode()}")
    if not trailer.startswith(_checksum(stream)):
        raise _unreadable(f"{len(view)} bytes with another checksum than they end with")
    try:
        _check_metadata(_schema_message(stream), schema)
        batches = list(pa.ipc.open_stream(pa.py_buffer(stream)))
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise _unreadable(str(error)) from error
    if len(batches) != 1:
        raise _unreadable(f"{len(batches)} record batches")
    return batches[0]


def unpack_or_empty(
    payload: bytes | memoryview | pa.Buffer | None, schema: Schema
) -> pa.RecordBatch:
    """Return the history in a payload, or no events for None; raises as `unpack` does."""
    if payload is None:
        return empty(schema)
    return unpack(payload, schema)


def check_order(batch: pa.RecordBatch) -> None:
    """Check that events are in the order of a history.

    Raises:
        DataError: an event comes before the one in front of it.
    """
    event_seqs = batch.column(EVENT_SEQ).to_numpy()
    is_back = steps_back(timestamps(batch), event_seqs)
    if not is_back.any():
        return
    first_row = int(is_back.argmax()) + 1
    raise DataError(
        "the events of a history are not in order",
        found=f"{int(is_back.sum())} steps back, the first at row {first_row}",
        expected="ascending timestamp, then event_seq",
        fix="Sort them before packing.",
    )


def timestamps(history: pa.RecordBatch) -> Int64:
    """Return the times of the events, int64 ms, as a view."""
    column = history.column(TIMESTAMP)
    values: Int64 = column.to_numpy(zero_copy_only=True)
    return values


def events_before(history: pa.RecordBatch, request_time_ms: int) -> pa.RecordBatch:
    """Return the events strictly before a time, as a slice.

    Events of one basket share a time, so a basket is never split.
    """
    num_events = np.searchsorted(timestamps(history), request_time_ms, side="left")
    return history.slice(0, int(num_events))


def most_recent(history: pa.RecordBatch, length: int) -> pa.RecordBatch:
    """Return the last `length` events, or all if there are fewer, as a slice."""
    return history.slice(max(0, history.num_rows - length))


def concatenate(histories: Sequence[pa.RecordBatch], schema: Schema) -> pa.RecordBatch:
    """Return histories one after another in one batch with unified dictionaries."""
    not_empty = [part for part in histories if part.num_rows]
    table = pa.Table.from_batches(not_empty, schema=arrow_schema(schema))
    batches = table.unify_dictionaries().combine_chunks().to_batches()
    return batches[0] if batches else empty(schema)


def compact_dictionaries(events: pa.RecordBatch) -> pa.RecordBatch:
    """Return the events with dictionaries that hold only texts in use, by first appearance."""
    columns = []
    for column in events.columns:
        if pa.types.is_dictionary(column.type):
            column = _canonical(column)
        columns.append(column)
    return pa.record_batch(columns, schema=events.schema)


def merge(
    base: pa.RecordBatch,
    later: pa.RecordBatch,
    schema: Schema,
) -> pa.RecordBatch:
    """Return the distinct events of two histories, sorted by (timestamp, event_seq, item_id).

    An event in both histories is taken from `base`. The result is one of the arguments when the
    other is empty. It is a plain concatenation when `later` starts after the end of `base`.
    """
    if not later.num_rows:
        return base
    if not base.num_rows:
        return later
    both = concatenate([base, later], schema)
    last_key = _key_of_row(base, base.num_rows - 1)
    first_key = _key_of_row(later, 0)
    if last_key < first_key:
        return both
    keys = [both.column(name).to_numpy() for name in EVENT_KEY]
    order = np.lexsort(keys[::-1])
    sorted_keys = [key[order] for key in keys]
    first_rows = group_starts(*sorted_keys)
    return both.take(pa.array(order[first_rows]))


def _key_of_row(events: pa.RecordBatch, row: int) -> tuple[int, ...]:
    key = []
    for name in EVENT_KEY:
        column = events.column(name)
        key.append(column[row].as_py())
    return tuple(key)


def _checksum(stream: bytes | memoryview) -> bytes:
    return crc32(stream).to_bytes(_CHECKSUM_BYTES, "little")


def _schema_message(stream: memoryview) -> bytes:
    """Return the schema message that a stream begins with.

    It is 4 bytes of marker, 4 bytes of length and the flatbuffer.
    """
    flatbuffer_bytes = int.from_bytes(stream[4:8], "little")
    return bytes(stream[: 8 + flatbuffer_bytes])


def _conform_column(events: pa.RecordBatch | pa.Table, field: pa.Field) -> pa.Array:
    position = events.schema.get_field_index(field.name)
    if position < 0:
        raise DataError(
            f"events lack the column '{field.name}'",
            found=", ".join(events.schema.names),
            expected=str(field.type),
        )
    column = single_array(events.column(position))
    if not field.nullable and column.null_count:
        raise DataError(
            f"column '{field.name}' of the events must not hold nulls",
            found=f"{column.null_count} of {len(column)}",
        )
    try:
        is_timestamp = pa.types.is_timestamp(column.type)
        if is_timestamp and field.name == TIMESTAMP:
            milliseconds = pa.timestamp("ms", column.type.tz)
            column = pc.cast(column, milliseconds).view(pa.int64())
        if column.type == field.type:
            return column
        return pc.cast(column, field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"column '{field.name}' of the events has the wrong type",
            found=str(column.type),
            expected=str(field.type),
        ) from error


def _canonical(column: pa.Array) -> pa.Array:
    """Return a column in its one canonical form.

    Dictionaries list texts by first appearance, and the values under nulls are 0.
    """
    if pa.types.is_dictionary(column.type):
        encoded = column.dictionary_decode().dictionary_encode()
        texts = encoded.dictionary
        # An empty Arrow array may or may not have an offsets buffer; equal histories need equal
        # bytes.
        if not len(texts):
            texts = pa.array([], pa.string())
        return pa.DictionaryArray.from_arrays(_canonical(encoded.indices), texts)
    if not column.null_count:
        # A copy: the IPC writer would write the whole buffer of a slice.
        return pa.array(column.to_numpy())
    is_missing = np.asarray(column.is_null())
    filled = np.asarray(column.fill_null(0))
    values = np.where(is_missing, 0, filled)
    return pa.array(values, column.type, mask=is_missing)


@functools.lru_cache(maxsize=64)
def _check_metadata(message: bytes, schema: Schema) -> None:
    """Check version and schema in a schema message; the cache makes a repeated message free."""
    found = pa.ipc.read_schema(pa.py_buffer(message))
    expected = arrow_schema(schema)
    if found.equals(expected, check_metadata=True):
        return
    metadata = found.metadata or {}
    version = metadata.get(VERSION_KEY, b"none").decode(errors="replace")
    if version != CODEC_VERSION:
        raise DataError(
            "a history has another codec version",
            found=version,
            expected=CODEC_VERSION,
            fix="Publish the features again (longrec refresh).",
        )
    fingerprint = metadata.get(FINGERPRINT_KEY, b"none").decode(errors="replace")
    if fingerprint != schema.fingerprint or not found.equals(expected):
        raise SchemaMismatch(
            "a history was packed for another schema",
            found=fingerprint,
            expected=f"{schema.fingerprint} ({schema.name})",
            fix="Publish the features of this dataset.",
        )


def _unreadable(found: str) -> DataError:
    return DataError(
        "a packed history is not readable",
        found=found,
        expected="an Arrow IPC stream with its checksum",
        fix="Publish the features again (longrec refresh).",
    )
