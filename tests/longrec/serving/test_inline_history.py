"""Histories that come with a request, as columns or packed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.data import history
from longrec.errors import DataError
from longrec.schema import Feature
from longrec.serving.inline_history import read_inline_history
from longrec.serving.requests import BodyLimits
from tests.longrec import small_histories
from tests.longrec.serving.small_scorer import User

SCHEMA = small_histories.SCHEMA
TIME_MS = 1_700_000_000_000
ORIGIN_MS = 946_684_800_000
TIMES = st.sampled_from([TIME_MS, TIME_MS + 1, TIME_MS // 1_000, -1, 2**63 - 1, -(2**63), None])
EVENTS = st.lists(st.tuples(TIMES, st.integers(0, 2), st.sampled_from([1, 2**63 - 1, None])))


@pytest.fixture
def timeline():
    user = User(0)
    user.append(9)
    return user.timeline()


def columns_of(events) -> dict[str, list]:
    names = ("item_id", "timestamp", "event_seq", "action", "seconds")
    return {name: events.column(name).to_pylist() for name in names}


def test_columns_in_any_order_give_the_timeline(timeline) -> None:
    columns = columns_of(timeline)
    backwards = {name: values[::-1] for name, values in columns.items()}
    for sent in (columns, backwards):
        assert columns_of(read_inline_history(sent, SCHEMA)) == columns


def test_a_packed_history_gives_the_timeline(timeline) -> None:
    packed = history.pack(timeline, SCHEMA)
    assert columns_of(read_inline_history(packed, SCHEMA)) == columns_of(timeline)


def test_missing_features_are_null_and_the_given_order_is_kept() -> None:
    events = read_inline_history({"item_id": [5, 4], "timestamp": [TIME_MS, TIME_MS]}, SCHEMA)
    assert events.column("item_id").to_pylist() == [5, 4]
    assert events.column("action").to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"item_id": [1]}, "timestamp"),
        ({"item_id": [1, 2], "timestamp": [1]}, "timestamp"),
        ({"item_id": [1], "timestamp": [1], "colour": [1]}, "colour"),
        ({"item_id": ["x"], "timestamp": [TIME_MS]}, "item_id"),
        ({"item_id": [2**70], "timestamp": [TIME_MS]}, "item_id"),
        ({"item_id": [None], "timestamp": [TIME_MS]}, "item_id"),
        ({"item_id": [1.9], "timestamp": [TIME_MS]}, "item_id"),
        ({"item_id": [1, 2.0], "timestamp": [TIME_MS, TIME_MS]}, "item_id"),
        ({"item_id": [1], "timestamp": [TIME_MS + 0.5]}, "timestamp"),
        ({"item_id": [True], "timestamp": [TIME_MS]}, "item_id"),
        ({"item_id": [1], "timestamp": [TIME_MS], "event_seq": [1.5]}, "event_seq"),
        ({"item_id": [1], "timestamp": [TIME_MS], "seconds": [True]}, "seconds"),
        ({"item_id": [1], "timestamp": [None]}, "timestamp"),
        ({"item_id": [1], "timestamp": [1_700_009_000]}, "looks like seconds"),
        ({"item_id": [1], "timestamp": [TIME_MS], "action": [[1]]}, "action"),
        ({"item_id": [1], "timestamp": [TIME_MS], "action": ["\ud800"]}, "action"),
        (b"damaged", "not readable"),
    ],
)
def test_a_bad_history_is_an_error_that_names_the_column(columns, named: str) -> None:
    with pytest.raises(DataError, match=f"^history: .*{named}"):
        read_inline_history(columns, SCHEMA)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("item_id", 2**63, "found 9223372036854775808 at row 2; expected an integer of 64 bits"),
        ("item_id", 10**400, "found 1000"),
        ("item_id", "1_0", 'found "1_0" at row 2'),
        ("item_id", 1.0, "found 1.0 at row 2"),
        ("timestamp", -(2**70), "at row 2; expected an integer of 64 bits"),
        ("timestamp", "2024-05-01T00:00:00Z", 'found "2024-05-01T00:00:00Z" at row 2'),
        ("event_seq", 2**64, "at row 2"),
        ("action", 5, "found 5 at row 2; expected a text"),
        ("action", {"a": [1] * 99}, 'found {"a": \\[1, 1'),
        ("seconds", "1.5", 'found "1.5" at row 2; expected a number of 64 bits'),
        ("seconds", 10**400, "found 1000"),
        ("seconds", True, "found true at row 2"),
    ],
)
def test_a_wrong_value_is_shown_as_it_was_sent(name: str, value: object, message: str) -> None:
    columns = {"item_id": [1, 2], "timestamp": [TIME_MS] * 2}
    first = {**columns, "event_seq": [0], "action": ["view"], "seconds": [1.5]}[name][0]
    with pytest.raises(DataError, match=message) as raised:
        read_inline_history({**columns, name: [first, value]}, SCHEMA)
    assert len(str(raised.value)) < 200
    for word in ("Python", "C long", "codec", "struct<", "double"):
        assert word not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("itemId", "unknown column itemId; did you mean item_id"),
        ("Action", "unknown column Action; did you mean action"),
        ("colour", "unknown column colour; expected item_id, timestamp, "),
        ("x" * 5000, "unknown column x{40}; expected item_id"),
    ],
)
def test_a_misspelled_column_is_named(name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^history: {message}"):
        read_inline_history({"timestamp": [TIME_MS], name: [1]}, SCHEMA)


def test_ids_beyond_2_to_the_53_may_be_decimal_digits() -> None:
    columns = {"item_id": ["9007199254740993", 5], "timestamp": [TIME_MS] * 2}
    events = read_inline_history(columns, SCHEMA)
    assert events.column("item_id").to_pylist() == [2**53 + 1, 5]


def test_features_that_are_ids_may_be_decimal_digits() -> None:
    shop = Feature("shop", "id")
    schema = dataclasses.replace(SCHEMA, event=(shop,))
    columns = {"item_id": [1], "timestamp": [TIME_MS], "shop": ["9007199254740993"]}
    assert read_inline_history(columns, schema).column("shop").to_pylist() == [2**53 + 1]


def test_an_integer_beyond_int64_may_be_a_number_feature() -> None:
    columns = {"item_id": [1], "timestamp": [TIME_MS], "seconds": [2**70]}
    assert read_inline_history(columns, SCHEMA).column("seconds").to_pylist() == [2.0**70]


@given(EVENTS)
def test_packed_events_are_accepted_like_columns(events: list[tuple]) -> None:
    times, sequence_numbers, items = zip(*events, strict=True) if events else ((), (), ())
    columns = {
        "item_id": list(items),
        "timestamp": list(times),
        "event_seq": list(sequence_numbers),
    }
    in_order = all(None not in event for event in events) and events == sorted(events)
    packed = pack_anything(batch_of(columns))
    try:
        expected = read_inline_history(columns, SCHEMA)
    except DataError:
        expected = None
    if expected is None or not in_order:
        with pytest.raises(DataError, match=r"^history: "):
            read_inline_history(packed, SCHEMA)
    else:
        assert read_inline_history(packed, SCHEMA).equals(expected, check_metadata=True)


def test_a_packed_history_out_of_order_is_refused(timeline) -> None:
    backwards = timeline.take(pa.array(range(timeline.num_rows)[::-1]))
    message = "^history: the events of a history are not in order; found .* row 1"
    with pytest.raises(DataError, match=message):
        read_inline_history(pack_anything(backwards), SCHEMA)


def test_a_second_record_batch_is_refused(timeline) -> None:
    with pytest.raises(DataError, match="history: not readable; found 2 record batches"):
        read_inline_history(pack_anything(timeline, timeline), SCHEMA)


def test_times_are_counted_from_the_origin_of_the_log(timeline) -> None:
    schema = dataclasses.replace(SCHEMA, time_origin_ms=ORIGIN_MS)
    columns = {"item_id": [5, 4], "timestamp": [3_000, ORIGIN_MS + 2_000], "event_seq": [0, 1]}
    read = read_inline_history(columns, schema)
    assert history.timestamps(read).tolist() == [ORIGIN_MS + 2_000, ORIGIN_MS + 3_000]
    counted = history.timestamps(read) - ORIGIN_MS
    packed = history.pack(with_column(read, "timestamp", pa.array(counted)), schema)
    assert read_inline_history(packed, schema).equals(read, check_metadata=True)


def test_a_history_of_too_many_events_is_refused(timeline) -> None:
    limits = BodyLimits(max_events=8)
    for events in (columns_of(timeline), history.pack(timeline, SCHEMA)):
        with pytest.raises(
            DataError, match="history: too many events; found 9; expected at most 8"
        ):
            read_inline_history(events, SCHEMA, limits)
        assert read_inline_history(events, SCHEMA, BodyLimits(max_events=9)).num_rows == 9


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_history_is_refused_before_it_is_decompressed(compression: str) -> None:
    packed = compressed_zeros(2_000_000, compression)
    assert len(packed) < 300_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"history: not readable; found .* decompressed bytes"):
        read_inline_history(packed, SCHEMA)
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("index", [-1, 1, 2**31 - 1])
def test_a_packed_dictionary_index_out_of_range_is_refused(index: int) -> None:
    packed = packed_column("action", wrong_index(index))
    with pytest.raises(DataError, match=r"history: not readable; found .*out of bounds"):
        read_inline_history(packed, SCHEMA)


@pytest.mark.parametrize("name", ["item_id", "timestamp", "event_seq"])
def test_packed_nulls_among_ids_and_times_are_refused(name: str) -> None:
    packed = packed_column(name, pa.array([1, None], pa.int64()))
    with pytest.raises(DataError, match=f"history: column '{name}' must not hold nulls"):
        read_inline_history(packed, SCHEMA)


def wrong_index(index: int) -> pa.DictionaryArray:
    indices = pa.array([0, index], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, ["word"], safe=False)


def packed_column(name: str, column: pa.Array) -> bytes:
    """Return a packed history of two events with any values in one column."""
    fields = history.arrow_schema(SCHEMA)
    columns = []
    for field in fields:
        values = pa.nulls(2, field.type) if field.nullable else pa.array([1, 2], pa.int64())
        columns.append(column if field.name == name else values)
    return pack_anything(pa.record_batch(columns, schema=fields))


def compressed_zeros(num_events: int, compression: str) -> bytes:
    """Return a packed history of zeros, which `pack` would not compress."""
    fields = history.arrow_schema(SCHEMA)
    columns = []
    for field in fields:
        values = pa.array(np.zeros(num_events, np.int8))
        if pa.types.is_dictionary(field.type):
            column = pa.DictionaryArray.from_arrays(values.cast(pa.int32()), ["word"])
        else:
            column = values.cast(field.type)
        columns.append(column)
    batch = pa.record_batch(columns, schema=fields)
    return pack_anything(batch, compression=compression)


def batch_of(columns: dict[str, list]) -> pa.RecordBatch:
    """Return events, also with nulls that a history may not hold."""
    num_events = len(columns["item_id"])
    arrays = []
    for field in history.arrow_schema(SCHEMA):
        values = columns.get(field.name, [None] * num_events)
        arrays.append(pa.array(values, field.type))
    return pa.record_batch(arrays, names=history.arrow_schema(SCHEMA).names)


def with_column(events: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    position = events.schema.get_field_index(name)
    return events.set_column(position, events.schema.field(position), column)


def pack_anything(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    """Return batches as a packed history that `pack` might refuse to write."""
    fields = history.arrow_schema(SCHEMA)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, fields, options=options) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch(batch.columns, schema=fields))
    stream = sink.getvalue().to_pybytes()
    return stream + history._checksum(stream) + history.MAGIC
