"""Events in a request, and the Arrow form of request and answer, for callers that count
milliseconds.

body     Arrow IPC stream of one record batch with the int64 column item_id: the candidates
         | optional: a packed history (longrec.data.history.pack), behind the stream
         metadata of the stream's schema, as texts: user_id, and optional request_time (ms), length,
         timeout_ms
answer   Arrow IPC stream of one record batch with a float32 column per task, in the order of the
candidates
         metadata: model_version, user_known, history_length, unknown_candidates, degraded
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import history
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Schema

PARAMETERS = ("user_id", "request_time", "length", "timeout_ms")


@dataclasses.dataclass(frozen=True, slots=True)
class ArrowRequest:
    """What an Arrow body asks.

    Args:
        parameters: integers by name, of PARAMETERS; `user_id` is among them.
        candidates: int64 [m].
        history: packed events, empty for those of the feature store.
    """

    parameters: Mapping[str, int]
    candidates: npt.NDArray[np.int64]
    history: bytes


def read_request(body: bytes) -> ArrowRequest:
    """Returns the request in an Arrow body.

    Raises:
        DataError: it is none, with the name of the field at fault.
    """
    source = pa.BufferReader(body)
    try:
        with pa.ipc.open_stream(source) as reader:
            batch = reader.read_next_batch()
            metadata = {
                key.decode(): value.decode()
                for key, value in (reader.schema.metadata or {}).items()
            }
            _read_end(reader)
    except (pa.ArrowException, OSError, StopIteration, ValueError) as error:
        raise DataError(
            "body: not an Arrow IPC stream of one record batch",
            found=str(error).splitlines()[0] if str(error) else None,
            expected=f"a column {ITEM_ID}, user_id in the metadata",
        ) from error
    if (
        batch.schema.names != [ITEM_ID]
        or batch.column(0).type != pa.int64()
        or batch.column(0).null_count
    ):
        raise DataError(
            f"{ITEM_ID}: not a column of int64 without nulls, alone",
            found=str(batch.schema).splitlines()[0],
        )
    return ArrowRequest(_parameters(metadata), batch.column(0).to_numpy(), body[source.tell() :])


def write_answer(scores: Mapping[str, Any], facts: Mapping[str, object]) -> bytes:
    """Returns the Arrow form of an answer: scores by task, facts as texts in the metadata."""
    metadata = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in facts.items()
    }
    batch = pa.record_batch(
        [pa.array(column, pa.float32()) for column in scores.values()],
        schema=pa.schema([(task, pa.float32()) for task in scores], metadata),
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    answer: bytes = sink.getvalue().to_pybytes()
    return answer


def unpacked(packed: bytes, schema: Schema) -> pa.RecordBatch:
    """Returns the packed history of a request.

    Raises:
        DataError: it is damaged, or was packed for another schema.
    """
    try:
        return history.unpack(packed, schema)
    except (DataError, SchemaMismatch) as error:
        raise DataError(
            "history: not readable", found=error.found, expected=error.expected
        ) from error


def inline_history(columns: Mapping[str, Sequence[Any]], schema: Schema) -> pa.RecordBatch:
    """Returns the events that a request brings along, in the order of their keys.

    Args:
        columns: values by name: item_id and timestamp (ms since 1970 UTC); event_seq, by default
            the order given; event features that
            the schema declares, missing ones are null.
        schema: of the model.

    Raises:
        DataError: a column is unknown, too short or long, or has a value of the wrong type.
    """
    wanted = history.arrow_schema(schema)
    if unknown := sorted(set(columns) - set(wanted.names)):
        raise DataError(f"history: unknown column '{unknown[0]}'", expected=", ".join(wanted.names))
    if missing := [
        field.name
        for field in wanted
        if not field.nullable and field.name not in (*columns, EVENT_SEQ)
    ]:
        raise DataError(f"history: no column '{missing[0]}'", expected=", ".join(wanted.names))
    count = len(columns[ITEM_ID])
    if wrong := [name for name, values in columns.items() if len(values) != count]:
        raise DataError(
            f"history: column '{wrong[0]}' has another length",
            found=len(columns[wrong[0]]),
            expected=count,
        )
    given = {EVENT_SEQ: range(count), **columns}
    events = pa.table(
        {field.name: _column(field, given.get(field.name), count) for field in wanted}
    )
    return history.conform(
        events.sort_by([(name, "ascending") for name in (TIMESTAMP, EVENT_SEQ, ITEM_ID)]), schema
    )


def _column(field: pa.Field, values: Sequence[Any] | None, count: int) -> pa.Array:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if values is None:
        return pa.nulls(count, kind)
    try:
        column = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"history: column '{field.name}' has a value of the wrong type",
            found=str(error).splitlines()[0],
            expected=str(kind),
        ) from error
    if column.null_count and not field.nullable:
        raise DataError(f"history: column '{field.name}' must not hold nulls")
    return column


def _parameters(metadata: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for name in PARAMETERS:
        if name in metadata:
            try:
                found[name] = int(metadata[name])
            except ValueError as error:
                raise DataError(
                    f"{name}: not an integer", found=repr(metadata[name][:40])
                ) from error
    if "user_id" not in found:
        raise DataError("user_id: missing in the metadata of the schema")
    return found


def _read_end(reader: Any) -> None:
    """Reads the end of a stream, so that what lies behind it can be told."""
    try:
        reader.read_next_batch()
    except StopIteration:
        return
    raise ValueError("more than one record batch")
