"""What an Arrow stream states of its sizes is checked before anything is decompressed."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

from longrec.errors import DataError
from longrec.serving.arrow_bounds import check_stream

MAX_BYTES = 100_000


def stream_of(columns: dict[str, object], compression: str | None = None) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def integers(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 9, count)


def words(count: int) -> pa.Array:
    return pa.array([f"word {number}" for number in range(count)]).dictionary_encode()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_stream_within_its_bounds_passes(compression: str | None) -> None:
    stream = stream_of({"id": integers(1_000), "word": words(1_000)}, compression)
    check_stream(stream, MAX_BYTES)
    check_stream(stream + b"what follows", MAX_BYTES)
    check_stream(stream_of({}, compression), MAX_BYTES)
    check_stream(stream_of({"id": pa.array([], pa.int64())}, compression), MAX_BYTES)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_zeros_are_refused_without_decompressing_them(compression: str) -> None:
    zeros = pa.array(np.zeros(20_000_000, np.int64))
    stream = stream_of({"id": zeros}, compression)
    del zeros
    before = pa.total_allocated_bytes()
    started = time.perf_counter()
    with pytest.raises(DataError, match="160000000 decompressed bytes"):
        check_stream(stream, MAX_BYTES)
    assert time.perf_counter() - started < 0.1
    assert pa.total_allocated_bytes() == before


def test_a_large_dictionary_of_few_rows_is_refused() -> None:
    text = pa.array(["x" * 200_000]).dictionary_encode()
    for compression in (None, "zstd"):
        with pytest.raises(DataError, match="decompressed bytes"):
            check_stream(stream_of({"text": text}, compression), MAX_BYTES)


def test_a_dictionary_that_comes_twice_is_refused() -> None:
    column = words(2)
    schema = pa.schema([("word", column.type)])
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
        writer.write_batch(pa.record_batch([words(3)], schema=schema))
    with pytest.raises(DataError, match="a dictionary comes twice"):
        check_stream(sink.getvalue().to_pybytes(), MAX_BYTES)


def test_an_older_format_is_refused() -> None:
    """Its batches may be compressed without a word of it in the record batch."""
    batch = pa.record_batch({"id": integers(3)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match="metadata version 3; expected metadata version 4"):
        check_stream(sink.getvalue().to_pybytes(), MAX_BYTES)


def test_what_is_no_stream_is_refused() -> None:
    stream = stream_of({"id": integers(5)}, "zstd")
    for damaged in (b"\x00\xff" * 300, stream[:-40], stream[8:]):
        with pytest.raises(DataError):
            check_stream(damaged, MAX_BYTES)
