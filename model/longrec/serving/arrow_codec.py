"""Arrow form of requests and answers, for callers that count milliseconds.

body     Arrow IPC stream of one record batch with the int64 column item_id: the candidates
         | optional: a packed history (longrec.data.history.pack) after the stream
         a log with text ids may have a column of texts
         schema metadata, as texts: user_id; optional request_time (ms), length, timeout_ms
answer   Arrow IPC stream of one record batch with a float32 column per task, in candidate order
         schema metadata, texts or JSON: model_version, store_version, user_known, history_length,
         degraded, unknown_candidates, unknown_events
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.errors import DataError
from longrec.ids import from_decimal
from longrec.schema import ITEM_ID
from longrec.serving.arrow_bounds import check_stream
from longrec.serving.requests import DEFAULT_LIMITS, BodyLimits, CallerRequest
from longrec.spelling import nearest_name

PARAMETERS = ("request_time", "length", "timeout_ms")
"""Integers in the metadata of a request, beside `user_id`."""
MAX_SHOWN_CHARACTERS = 40
MAX_SHOWN_COLUMNS = 3


def read_request(
    body: bytes,
    limits: BodyLimits = DEFAULT_LIMITS,
) -> CallerRequest:
    """Return the request in an Arrow body; its numbers may be out of bounds.

    The history after the stream is not read yet.

    Args:
        body: bytes of the body.
        limits: largest parts of the request.

    Raises:
        DataError: the body is not a request; the message begins with the name of the bad field.
    """
    batch, end = _read_stream(body, limits.max_bytes)
    candidates = _candidate_column(batch)
    limits.check_candidates(len(candidates))
    metadata = batch.schema.metadata or {}
    _check_names(metadata)
    parameters = _read_parameters(metadata)
    return CallerRequest(
        user_id=_read_user(metadata),
        candidates=_candidate_values(candidates),
        request_time_ms=parameters.get("request_time"),
        length=parameters.get("length"),
        timeout_ms=parameters.get("timeout_ms"),
        inline_history=body[end:] or None,
    )


def write_request(
    candidates: npt.ArrayLike,
    parameters: Mapping[str, object],
    packed_history: bytes = b"",
) -> bytes:
    """Return the Arrow body of a request, for a client of POST /rank_arrow.

    Args:
        candidates: [m] item ids, numbers or texts.
        parameters: `user_id`, and any of PARAMETERS.
        packed_history: events to use instead of the stored ones (longrec.data.history.pack).
    """
    metadata = {name: str(value) for name, value in parameters.items()}
    values = np.asarray(candidates)
    column = pa.array(values if len(values) else values.astype(np.int64))
    schema = pa.schema([(ITEM_ID, column.type)], metadata)
    batch = pa.record_batch([column], schema=schema)
    return _write_stream(batch) + packed_history


def write_answer(scores: Mapping[str, Any], facts: Mapping[str, object]) -> bytes:
    """Return the Arrow form of an answer.

    Args:
        scores: [m] probabilities by task.
        facts: other keys of the answer, written as JSON; texts as they are.
    """
    metadata = {name: _text(value) for name, value in facts.items()}
    dtype = pa.float32()
    schema = pa.schema([(task, dtype) for task in scores], metadata)
    columns = [pa.array(column, dtype) for column in scores.values()]
    batch = pa.record_batch(columns, schema=schema)
    return _write_stream(batch)


def _read_stream(body: bytes, max_bytes: int) -> tuple[pa.RecordBatch, int]:
    """Return the record batch of a stream, and the position after the stream."""
    expected = f"a column {ITEM_ID}, user_id in the metadata"
    if not body:
        raise DataError("body: empty", expected=f"an Arrow IPC stream with {expected}")
    source = pa.BufferReader(body)
    try:
        check_stream(body, max_bytes)
        with pa.ipc.open_stream(source) as reader:
            batch = reader.read_next_batch()
            _expect_end(reader)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration, ValueError) as error:
        reason = error.found if isinstance(error, DataError) else error
        lines = str(reason or "").splitlines()
        raise DataError(
            "body: not an Arrow IPC stream of one record batch",
            found=lines[0] if lines else None,
            expected=expected,
        ) from error
    return batch, source.tell()


def _candidate_column(batch: pa.RecordBatch) -> pa.Array:
    """Return the only column of a batch, if it holds ids of items.

    Raises:
        DataError: the batch has other columns.
    """
    # Names may be no UTF-8, so pyarrow compares them.
    is_only_column = batch.num_columns == 1 and batch.schema.get_field_index(ITEM_ID) == 0
    is_id_column = is_only_column and batch.column(0).type in (pa.int64(), pa.string())
    if is_id_column and not batch.column(0).null_count:
        return batch.column(0)
    types = ", ".join(str(dtype) for dtype in batch.schema.types[:MAX_SHOWN_COLUMNS])
    raise DataError(
        f"{ITEM_ID}: expected one column of int64 or text without nulls",
        found=f"{batch.num_columns} columns: {types}",
    )


def _expect_end(reader: Any) -> None:
    """Read the end of a stream: bytes after it are a packed history."""
    try:
        reader.read_next_batch()
    except StopIteration:
        return
    raise ValueError("more than one record batch")


def _write_stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _check_names(metadata: Mapping[bytes, bytes]) -> None:
    """Refuse a misspelled parameter; other metadata is of no concern."""
    known = ("user_id", *PARAMETERS)
    for key in metadata:
        name = key.decode(errors="replace")
        nearest = nearest_name(name, known)
        if nearest and name not in known:
            raise DataError(f"unknown field {name}; did you mean {nearest}")


def _read_parameters(metadata: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return the integers of PARAMETERS that the metadata holds."""
    parameters = {}
    for name in PARAMETERS:
        value = metadata.get(name.encode())
        if value is None:
            continue
        text = value.decode(errors="replace")
        number = from_decimal(text)
        if number is None:
            shown = repr(text[:MAX_SHOWN_CHARACTERS])
            raise DataError(f"{name}: not an integer of 64 bits", found=shown)
        parameters[name] = number
    return parameters


def _read_user(metadata: Mapping[bytes, bytes]) -> str:
    """Return the id of the user as text; the schema of the log says what it means."""
    value = metadata.get(b"user_id")
    if value is None:
        raise DataError("user_id: missing in the metadata of the schema")
    return value.decode(errors="replace")


def _candidate_values(column: pa.Array) -> npt.NDArray[np.int64] | list[str]:
    if pa.types.is_string(column.type):
        texts: list[str] = column.to_pylist()
        return texts
    numbers: npt.NDArray[np.int64] = column.to_numpy()
    return numbers


def _text(value: object) -> str:
    """Return a fact as text: a text as it is, another value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
