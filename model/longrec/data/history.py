"""The history codec: one user's events as bytes and back. Both doors of the feature store carry
these bytes.

    payload = Arrow IPC stream of one record batch | CRC-32 of the stream, 4 bytes | b"LRH1"

Any Arrow reader can read the stream; it does not look at the 8 bytes behind it. Rows are ordered by
(timestamp, event_seq). Equal
events give equal bytes, wherever the batch was sliced from.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longrec.errors import DataError, SchemaMismatch
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema

try:
    from isal.isal_zlib import (
        crc32,
    )  # the same number, seven times as fast: it is a fifth of an online read otherwise
except ImportError:  # an environment for training alone
    from zlib import crc32

CODEC_VERSION = "1"
VERSION_KEY = b"longrec.history"
FINGERPRINT_KEY = b"longrec.schema"
MAGIC = b"LRH1"
KEY = (TIMESTAMP, EVENT_SEQ, ITEM_ID)
LATEST_MS = 4_102_444_800_000
"""2100-01-01 UTC: a later time is a time in another unit."""
"""What tells the events of one user apart, in the order of a history."""
_TRAILER = 4 + len(MAGIC)
_TEXT = pa.dictionary(pa.int32(), pa.string())
_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "string": _TEXT}


@functools.lru_cache(maxsize=16)
def arrow_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of a history: ids, time (int64 ms), tie order, [basket], event features;
    with both tags as metadata.
    """
    names = (ITEM_ID, TIMESTAMP, EVENT_SEQ, *([BASKET_ID] if schema.has_baskets else []))
    fields = [pa.field(name, pa.int64(), nullable=False) for name in names]
    fields += [pa.field(feature.name, _TYPES[feature.dtype]) for feature in schema.event]
    return pa.schema(fields, {VERSION_KEY: CODEC_VERSION, FINGERPRINT_KEY: schema.fingerprint})


@functools.lru_cache(maxsize=16)
def empty(schema: Schema) -> pa.RecordBatch:
    """Returns a history of no events."""
    wanted = arrow_schema(schema)
    return pa.record_batch([pa.array([], field.type) for field in wanted], schema=wanted)


def conform(events: pa.RecordBatch | pa.Table, schema: Schema) -> pa.RecordBatch:
    """Returns `events` as a history: the codec's columns in its order, times as int64 ms, strings
    dictionary-encoded.

    Zero-copy for columns that are right already; other columns are dropped.

    Raises:
        DataError: a column is missing, has another type, or holds a null that the codec does not
            allow.
    """
    wanted = arrow_schema(schema)
    return pa.record_batch([_conform_column(events, field) for field in wanted], schema=wanted)


def pack(events: pa.RecordBatch | pa.Table, schema: Schema) -> bytes:
    """Returns the payload of a history; equal events give equal bytes.

    Args:
        events: the codec's columns (see `conform`), oldest event first.
        schema: what the events were recorded by; its fingerprint travels with the payload.

    Raises:
        DataError: a column is missing or of the wrong type, or the events are not in order.
    """
    batch = conform(events, schema)
    _check_order(batch)
    columns = [_canonical(column) for column in batch.columns]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=batch.schema))
    stream: bytes = sink.getvalue().to_pybytes()
    return stream + crc32(stream).to_bytes(4, "little") + MAGIC


def unpack(payload: bytes | memoryview | pa.Buffer, schema: Schema) -> pa.RecordBatch:
    """Returns the history in a payload, without copying it.

    Raises:
        DataError: the payload is truncated or corrupted, or of another codec version.
        SchemaMismatch: it was packed for another schema.
    """
    view = memoryview(payload)
    stream = view[:-_TRAILER]
    if len(view) <= _TRAILER or bytes(view[-len(MAGIC) :]) != MAGIC:
        raise _unreadable(f"{len(view)} bytes without the end mark {MAGIC!r}")
    if crc32(stream).to_bytes(4, "little") != bytes(view[-_TRAILER : -len(MAGIC)]):
        raise _unreadable(f"{len(view)} bytes with another checksum than they end with")
    try:
        _check_tags(bytes(stream[: 8 + int.from_bytes(stream[4:8], "little")]), schema)
        batch: pa.RecordBatch = pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch()
    except (pa.ArrowInvalid, pa.ArrowException, OSError, StopIteration) as error:
        raise _unreadable(str(error)) from error
    return batch


def stored(payload: bytes | memoryview | pa.Buffer | None, schema: Schema) -> pa.RecordBatch:
    """Returns the history in a payload, no events where a store has none; errors as of `unpack`."""
    return empty(schema) if payload is None else unpack(payload, schema)


def timestamps(history: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Returns the times of the events, int64 ms, as a view."""
    values: npt.NDArray[np.int64] = history.column(TIMESTAMP).to_numpy(zero_copy_only=True)
    return values


def prefix_before(history: pa.RecordBatch, request_time_ms: int) -> pa.RecordBatch:
    """Returns the events strictly before a moment, as a slice.

    Events of one basket share a time, so they are all in it or all not.
    """
    return history.slice(0, int(np.searchsorted(timestamps(history), request_time_ms, side="left")))


def most_recent(history: pa.RecordBatch, length: int) -> pa.RecordBatch:
    """Returns the last `length` events, or all where there are fewer, as a slice."""
    return history.slice(max(0, history.num_rows - length))


def joined(histories: Sequence[pa.RecordBatch], schema: Schema) -> pa.RecordBatch:
    """Returns histories one after another in one batch; dictionaries are unified."""
    wanted = arrow_schema(schema)
    table = (
        pa.Table.from_batches([part for part in histories if part.num_rows], schema=wanted)
        .unify_dictionaries()
        .combine_chunks()
    )
    batches = table.to_batches()
    return batches[0] if batches else empty(schema)


def with_own_texts(events: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the same events with dictionaries that hold their own texts only, by first
    appearance.
    """
    return pa.record_batch(
        [
            _canonical(column) if pa.types.is_dictionary(column.type) else column
            for column in events.columns
        ],
        schema=events.schema,
    )


def merged(base: pa.RecordBatch, later: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """Returns the events of two histories once each, sorted by (timestamp, event_seq, item_id).

    Those three together are the key of an event; where both histories hold one, it is taken from
    `base`. Either of them as it is when
    the other one is empty; both one after the other, unsorted work saved, when `later` begins after
    the end of `base`.
    """
    if not (base.num_rows and later.num_rows):
        return base if base.num_rows else later
    whole = joined([base, later], schema)
    if _key(base, base.num_rows - 1) < _key(later, 0):
        return whole
    keys = [whole.column(name).to_numpy() for name in KEY]
    order = np.lexsort(keys[::-1])
    changes = np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0)
    return whole.take(pa.array(order[np.append(True, changes)]))


def _key(events: pa.RecordBatch, row: int) -> tuple[int, ...]:
    return tuple(events.column(name)[row].as_py() for name in KEY)


def _conform_column(events: pa.RecordBatch | pa.Table, field: pa.Field) -> pa.Array:
    position = events.schema.get_field_index(field.name)
    if position < 0:
        raise DataError(
            f"events lack the column '{field.name}'",
            found=", ".join(events.schema.names),
            expected=str(field.type),
        )
    column = events.column(position)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not field.nullable and column.null_count:
        raise DataError(
            f"column '{field.name}' of the events must not hold nulls",
            found=f"{column.null_count} of {len(column)}",
        )
    try:
        if field.name == TIMESTAMP and pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.timestamp("ms", column.type.tz)).view(pa.int64())
        return column if column.type == field.type else pc.cast(column, field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"column '{field.name}' of the events has the wrong type",
            found=str(column.type),
            expected=str(field.type),
        ) from error


def _canonical(column: pa.Array) -> pa.Array:
    """Returns the column in its one form: dictionaries by first appearance, nothing hidden under
    nulls.
    """
    if pa.types.is_dictionary(column.type):
        encoded = column.dictionary_decode().dictionary_encode()
        texts = (
            encoded.dictionary if len(encoded.dictionary) else pa.array([], pa.string())
        )  # an empty one may have offsets or none
        return pa.DictionaryArray.from_arrays(_canonical(encoded.indices), texts)
    if not column.null_count:
        return pa.array(
            column.to_numpy()
        )  # a slice would carry its neighbours up to the next 64 bytes
    missing = np.asarray(column.is_null())
    values = np.where(missing, 0, np.asarray(column.fill_null(0)))
    return pa.array(values, column.type, mask=missing)


def _check_order(batch: pa.RecordBatch) -> None:
    times, order = timestamps(batch), batch.column(EVENT_SEQ).to_numpy()
    wrong = (times[1:] < times[:-1]) | ((times[1:] == times[:-1]) & (order[1:] < order[:-1]))
    if wrong.any():
        found = f"{int(wrong.sum())} steps back, the first at row {int(wrong.argmax()) + 1}"
        raise DataError(
            "the events of a history are not in order",
            found=found,
            expected="ascending timestamp, then event_seq",
            fix="Sort them before packing.",
        )


@functools.lru_cache(maxsize=64)
def _check_tags(message: bytes, schema: Schema) -> None:
    """Checks the schema message that a stream begins with (marker, length, flatbuffer); the same
    message passes again without a look.
    """
    found, expected = pa.ipc.read_schema(pa.py_buffer(message)), arrow_schema(schema)
    if found.equals(expected, check_metadata=True):
        return
    metadata = found.metadata or {}
    version, fingerprint = (
        metadata.get(key, b"none").decode(errors="replace")
        for key in (VERSION_KEY, FINGERPRINT_KEY)
    )
    if version != CODEC_VERSION:
        raise DataError(
            "a history has another codec version",
            found=version,
            expected=CODEC_VERSION,
            fix="Publish the features again.",
        )
    if metadata.get(FINGERPRINT_KEY) != expected.metadata[FINGERPRINT_KEY] or not found.equals(
        expected
    ):
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
        fix="Publish the features again.",
    )
