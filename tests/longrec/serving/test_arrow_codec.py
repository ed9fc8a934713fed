"""Arrow requests: what is written is read again, bad bodies name the bad field."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from longrec.errors import DataError
from longrec.ids import text_id
from longrec.schema import synthetic_schema
from longrec.serving.arrow_codec import read_request, write_request

SCHEMA = synthetic_schema()


def stream_of(columns: dict[str, object], compression: str | None = None) -> bytes:
    arrays = {name: pa.array(values) for name, values in columns.items()}
    batch = pa.record_batch(arrays)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_written_request_is_read_again() -> None:
    parameters = {"user_id": -5, "request_time": 7, "length": 20, "timeout_ms": 100}
    body = write_request([3, 1, 2], parameters, b"packed events")
    request = read_request(body).resolve(SCHEMA)
    assert request.user_id == -5
    assert request.candidates.dtype == np.int64
    assert request.candidates.tolist() == [3, 1, 2]
    assert (request.request_time_ms, request.length, request.timeout_ms) == (7, 20, 100)
    assert request.inline_history == b"packed events"


def test_a_log_with_text_ids_is_asked_by_text() -> None:
    schema = dataclasses.replace(SCHEMA, text_ids=("item", "user"))
    request = read_request(write_request(["a", "007"], {"user_id": "12"})).resolve(schema)
    assert request.user_id == text_id("12")
    assert request.candidates.tolist() == [text_id("a"), text_id("007")]


def test_optional_parameters_may_be_missing() -> None:
    request = read_request(write_request([1], {"user_id": 1}))
    assert (request.request_time_ms, request.length, request.timeout_ms) == (None, None, None)
    assert request.inline_history is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\x00\xff" * 300, "body"),
        (write_request([1], {"user_id": 1})[:-30], "body"),
        (write_request([1], {}), "user_id"),
        (write_request([1], {"user_id": "x"}), "user_id"),
        (write_request([1], {"user_id": 1, "length": "x"}), "length"),
        (write_request([1] * 2049, {"user_id": 1}), "candidates"),
        (write_request([], {"user_id": 1}), "candidates"),
        (stream_of({}), "item_id"),
        (stream_of({"item_id": [1.5]}), "item_id"),
        (stream_of({"item_id": [1]}).replace(b"item_id", b"item\xffid"), "item_id"),
        (stream_of({"item_id": [1]}, compression="zstd"), "user_id"),
        (stream_of({"item_id": np.zeros(2_000_000, np.int64)}, compression="zstd"), "body"),
    ],
)
def test_a_bad_body_names_the_bad_field(body: bytes, field: str) -> None:
    with pytest.raises(DataError, match=f"^{field}: "):
        read_request(body).resolve(SCHEMA)
