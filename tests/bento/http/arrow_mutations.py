"""Arrow bodies for a fuzzer: valid ones, ones of odd content, and ones with damaged bytes."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.schema import Schema

COMPRESSIONS = (None, "lz4", "zstd")
INTEGERS = (0, 1, -1, 7, 8, 64, 2**15, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
"""Written over lengths, offsets and sizes."""
Mutation = Callable[[bytearray, np.random.Generator], None]


class Bodies:
    """Bodies of POST /rank_arrow.

    Args:
        schema: schema of the served model.
        timeline: events of a user, for histories that come with a request.
        items: candidates.
    """

    def __init__(
        self,
        schema: Schema,
        timeline: pa.RecordBatch,
        items: list[int],
    ) -> None:
        self._schema = schema
        self._timeline = timeline
        self._items = items

    def valid(self, rng: np.random.Generator) -> tuple[bytes, bytes]:
        """Return the stream of candidates, and the stream of a history or nothing."""
        candidates = pa.record_batch({"item_id": pa.array(self._items, pa.int64())})
        stream = write(candidates, rng, {"user_id": "1", "length": "20"})
        if rng.random() < 0.3:
            return stream, b""
        return stream, write(self._timeline, rng, self._timeline.schema.metadata)

    def odd(self, rng: np.random.Generator) -> tuple[bytes, bytes]:
        """Return streams with columns of other types, nulls, and wrong dictionary indices."""
        stream, events = self.valid(rng)
        if not events:
            column = odd_column(rng, len(self._items))
            return write(pa.record_batch({"item_id": column}), rng, {"user_id": "1"}), b""
        columns = list(self._timeline.columns)
        place = int(rng.integers(len(columns)))
        columns[place] = self._odd_values(columns[place], rng)
        fields = list(self._timeline.schema)
        fields[place] = pa.field(fields[place].name, columns[place].type)
        fields_of_codec = pa.schema(fields, self._timeline.schema.metadata)
        if columns[place].type == self._timeline.schema.field(place).type:
            fields_of_codec = self._timeline.schema
        batch = pa.RecordBatch.from_arrays(columns, schema=fields_of_codec)
        return stream, write(batch, rng, batch.schema.metadata)

    def _odd_values(self, column: pa.Array, rng: np.random.Generator) -> pa.Array:
        """Return values of the right type that no history holds, or of another type."""
        if rng.random() < 0.4:
            return odd_column(rng, len(column))
        if pa.types.is_dictionary(column.type):
            indices = rng.choice([-(2**31), -1, 0, 1, 10**6, 2**31 - 1], len(column))
            words = pa.array(rng.choice(["", "view", "\0", "x" * 999], 3))
            return pa.DictionaryArray.from_arrays(
                pa.array(indices, pa.int32()),
                words,
                safe=False,
            )
        if pa.types.is_floating(column.type):
            return pa.array(rng.choice([np.nan, np.inf, -np.inf, 1e308, 0.0], len(column)))
        values = pa.array(rng.choice(INTEGERS, len(column)), pa.int64())
        if rng.random() < 0.3:
            is_null = rng.random(len(column)) < 0.2
            values = pa.array(np.asarray(values), mask=is_null)
        return values


def write(
    batch: pa.RecordBatch,
    rng: np.random.Generator,
    metadata: dict | None,
) -> bytes:
    """Return the stream of one or two batches, compressed or not."""
    sink = pa.BufferOutputStream()
    compression = COMPRESSIONS[rng.integers(3)]
    options = pa.ipc.IpcWriteOptions(compression=compression)
    schema = batch.schema.with_metadata(metadata)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for _ in range(1 + (rng.random() < 0.05)):
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    return sink.getvalue().to_pybytes()


def odd_column(rng: np.random.Generator, count: int) -> pa.Array:
    """Return a column of any type."""
    columns = _odd_columns(count)
    return columns[rng.integers(len(columns))]


@functools.cache
def _odd_columns(count: int) -> list[pa.Array]:
    integers = pa.array(np.arange(count))
    texts = pa.array(["x"] * count)
    ends = pa.array([count], pa.int32())
    return [
        integers.cast(pa.int32()),
        integers.cast(pa.uint64()),
        integers.cast(pa.decimal128(38, 0)),
        integers.cast(pa.timestamp("ns", "UTC")),
        integers.dictionary_encode(),
        texts,
        texts.cast(pa.string_view()),
        texts.dictionary_encode(),
        pa.nulls(count),
        pa.nulls(count, pa.int64()),
        pa.array([[1]] * count),
        pa.array([{"item_id": 1}] * count),
        pa.array([float("nan")] * count),
        pa.RunEndEncodedArray.from_arrays(ends, pa.array([1])) if count else integers,
    ]


def damage(stream: bytes, rng: np.random.Generator) -> bytes:
    """Return a stream with some of its bytes changed, moved or lost."""
    content = bytearray(stream)
    for _ in range(rng.integers(1, 4)):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        if len(content) > 16:
            mutation(content, rng)
    return bytes(content)


def seal(stream: bytes) -> bytes:
    """Return a stream as a packed history, with a right checksum: the decoder sees the stream."""
    if not stream:
        return b""
    return stream + history._checksum(stream) + history.MAGIC


def _set_integer(content: bytearray, rng: np.random.Generator) -> None:
    # Numbers of a flatbuffer are aligned; most are near the beginning of their message.
    position = 4 * int(rng.integers(len(content) // 4 - 2))
    value = INTEGERS[rng.integers(len(INTEGERS))]
    if rng.random() < 0.5:
        struct.pack_into("<q", content, position, value)
    else:
        struct.pack_into("<I", content, position, value % 2**32)


def _change_byte(content: bytearray, rng: np.random.Generator) -> None:
    content[rng.integers(len(content))] = rng.integers(256)


def _add_one(content: bytearray, rng: np.random.Generator) -> None:
    position = rng.integers(len(content))
    content[position] = (content[position] + 1) % 256


def _truncate(content: bytearray, rng: np.random.Generator) -> None:
    del content[rng.integers(len(content)) :]


def _remove(content: bytearray, rng: np.random.Generator) -> None:
    start = 8 * int(rng.integers(len(content) // 8))
    del content[start : start + 8 * int(rng.integers(1, 16))]


def _repeat(content: bytearray, rng: np.random.Generator) -> None:
    start = 8 * int(rng.integers(len(content) // 8))
    part = content[start : start + 8 * int(rng.integers(1, 64))]
    content[start:start] = part


MUTATIONS: tuple[Mutation, ...] = (
    _set_integer,
    _set_integer,
    _change_byte,
    _add_one,
    _truncate,
    _remove,
    _repeat,
)
