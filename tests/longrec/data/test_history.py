"""History codec: exact round trip, equal bytes for equal events, damage is always found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longrec.data import history
from longrec.errors import DataError, LongrecError, SchemaMismatch
from longrec.schema import Feature, Schema, Task

SCHEMA = Schema(
    name="codec",
    item=(Feature("item_id", "id"),),
    user=(),
    tasks=(Task("click"),),
    has_baskets=True,
    event=(
        Feature("action", "category", "string"),
        Feature("seconds", "number", "float64"),
        Feature("source", "id"),
    ),
)
INT64 = st.integers(-(2**63), 2**63 - 1)
EVENT = st.tuples(
    INT64,
    st.integers(0, 6),
    st.one_of(st.none(), st.text(max_size=3)),
    st.one_of(st.none(), st.floats()),
    st.one_of(st.none(), INT64),
)


def batch_of(rows: list[Any]) -> pa.RecordBatch:
    """Return events in order; times repeat, and each time is one basket."""
    rows = sorted(rows, key=lambda row: row[1])
    columns = list(zip(*rows, strict=True)) or [()] * 5
    items, times, actions, seconds, sources = columns
    batch = {
        "item_id": pa.array(items, pa.int64()),
        "timestamp": pa.array(times, pa.int64()),
        "event_seq": pa.array(range(len(rows)), pa.int64()),
        "basket_id": pa.array([time * 10 for time in times], pa.int64()),
        "action": pa.array(actions, pa.string()),
        "seconds": pa.array(seconds, pa.float64()),
        "source": pa.array(sources, pa.int64()),
    }
    return pa.record_batch(batch)


def packed(count: int) -> bytes:
    rows = [(row, row, "view", 0.5, None) for row in range(count)]
    return history.pack(batch_of(rows), SCHEMA)


def round_trip(events: pa.RecordBatch) -> pa.RecordBatch:
    return history.unpack(history.pack(events, SCHEMA), SCHEMA)


@given(st.lists(EVENT, max_size=40))
def test_a_round_trip_is_exact(rows: list[Any]) -> None:
    events = batch_of(rows)
    payload = history.pack(events, SCHEMA)
    back = history.unpack(payload, SCHEMA)
    assert repr(back.to_pydict()) == repr(events.to_pydict())  # repr: NaN equals NaN
    assert back.schema.equals(history.arrow_schema(SCHEMA))
    assert history.pack(back, SCHEMA) == payload


# A view at the start: Arrow writes its buffers up to 64 bytes.
@example([(1, 1, "view", None, None), (2, 2, "buy", 0.5, 7)], 0, 1)
@example([(1, 1, None, None, None), (2, 2, "buy", 0.5, 7)], 0, 1)
@given(st.lists(EVENT, max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_equal_events_give_equal_bytes_wherever_they_were_sliced_from(
    rows: list[Any], start: int, length: int
) -> None:
    events = batch_of(rows)
    start = min(start, len(rows))
    view = events.slice(start, length)
    alone = pa.RecordBatch.from_pylist(view.to_pylist(), schema=events.schema)
    of_unpacked = round_trip(events).slice(start, length)
    expected = history.pack(alone, SCHEMA)
    assert history.pack(view, SCHEMA) == expected
    assert history.pack(of_unpacked, SCHEMA) == expected


def test_values_under_nulls_do_not_reach_the_bytes() -> None:
    events = batch_of([(1, 1, "view", None, None), (2, 2, "buy", 0.5, 7)])
    valid = events.column("source").buffers()[0]
    payloads = set()
    for hidden in (0, 99):
        values = pa.py_buffer(np.array([hidden, 7]))
        source = pa.Array.from_buffers(pa.int64(), 2, [valid, values])
        changed = events.set_column(6, "source", source)
        payloads.add(history.pack(changed, SCHEMA))
    assert payloads == {history.pack(events, SCHEMA)}


@given(st.lists(EVENT, max_size=40), st.integers(-1, 8))
def test_a_prefix_holds_exactly_the_events_strictly_before(
    rows: list[Any], request_time: int
) -> None:
    events = round_trip(batch_of(rows))
    prefix = history.events_before(events, request_time)
    earlier = [row for row in events.to_pylist() if row["timestamp"] < request_time]
    assert repr(prefix.to_pylist()) == repr(earlier)
    rest = events.slice(prefix.num_rows)
    baskets = set(prefix.column("basket_id").to_pylist())
    later_baskets = set(rest.column("basket_id").to_pylist())
    assert not baskets & later_baskets  # a basket is never split


@given(st.integers(0, 20), st.integers(0, 25))
def test_most_recent_keeps_the_end(count: int, length: int) -> None:
    events = history.unpack(packed(count), SCHEMA)
    recent = history.most_recent(events, length)
    first = max(0, count - length)
    assert recent.column("item_id").to_pylist() == list(range(first, count))


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_payload_is_refused(data: st.DataObject) -> None:
    payload = packed(5)
    position = data.draw(st.integers(0, len(payload) - 1))
    flipped = bytearray(payload)
    flipped[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError, match="not readable"):
        history.unpack(bytes(flipped), SCHEMA)
    with pytest.raises(DataError, match="not readable"):
        history.unpack(payload[:position], SCHEMA)
    with pytest.raises(DataError, match="not readable"):
        history.unpack(data.draw(st.binary(max_size=64)), SCHEMA)


def test_another_schema_is_refused() -> None:
    other = dataclasses.replace(SCHEMA, name="other")
    message = f"{SCHEMA.fingerprint}.*{other.fingerprint} \\(other\\)"
    with pytest.raises(SchemaMismatch, match=message):
        history.unpack(packed(3), other)


def test_another_codec_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    history.arrow_schema.cache_clear()
    monkeypatch.setattr(history, "CODEC_VERSION", "2")
    payload = packed(3)
    history.arrow_schema.cache_clear()
    monkeypatch.undo()
    with pytest.raises(DataError, match="found 2; expected 1"):
        history.unpack(payload, SCHEMA)


def test_unpack_does_not_copy() -> None:
    payload = pa.py_buffer(packed(1000))
    buffer = history.unpack(payload, SCHEMA).column("timestamp").buffers()[1]
    assert payload.address <= buffer.address < payload.address + payload.size


def test_any_arrow_reader_reads_a_payload() -> None:
    table = pa.ipc.open_stream(packed(4)).read_all()
    assert table.column("item_id").to_pylist() == [0, 1, 2, 3]
    assert table.schema.metadata == {
        b"longrec.history": b"1",
        b"longrec.schema": SCHEMA.fingerprint.encode(),
    }


def test_no_events() -> None:
    nothing = history.empty(SCHEMA)
    assert round_trip(nothing).equals(nothing)
    assert history.events_before(nothing, 5).num_rows == 0
    assert history.most_recent(nothing, 5).num_rows == 0
    assert history.concatenate([], SCHEMA).equals(nothing)
    assert history.concatenate([nothing, nothing], SCHEMA).equals(nothing)


@given(st.lists(st.lists(EVENT, max_size=6), max_size=6))
def test_concatenated_histories_are_their_events_in_turn(groups: list[list[Any]]) -> None:
    parts = [round_trip(batch_of(rows)) for rows in groups]
    whole = history.concatenate(parts, SCHEMA)
    expected = []
    for part in parts:
        expected += part.to_pylist()
    assert repr(whole.to_pylist()) == repr(expected)


def test_times_with_a_zone_become_milliseconds() -> None:
    events = batch_of([(1, 3, None, None, None)])
    times = events.column(1).view(pa.timestamp("ms", "UTC"))
    stamped = events.set_column(1, "timestamp", times)
    assert history.pack(stamped, SCHEMA) == history.pack(events, SCHEMA)


@pytest.mark.parametrize(
    ("position", "column", "message"),
    [
        (0, None, "lack the column 'item_id'"),
        (0, pa.array(["a"]), "'item_id' of the events has the wrong type"),
        (1, pa.array([None], pa.int64()), "'timestamp' of the events must not hold nulls"),
        (4, pa.array([1.5]), "'action' of the events has the wrong type"),
    ],
)
def test_wrong_columns_are_named(
    position: int,
    column: pa.Array | None,
    message: str,
) -> None:
    events = batch_of([(1, 3, "view", None, None)])
    name = events.schema.names[position]
    wrong = events.remove_column(position)
    if column is not None:
        wrong = events.set_column(position, name, column)
    with pytest.raises(DataError, match=message):
        history.pack(wrong, SCHEMA)


def test_events_out_of_order_are_refused() -> None:
    times = [3, 3, 4]
    events = batch_of([(item, time, None, None, None) for item, time in enumerate(times)])
    for rows in ([2, 0, 1], [1, 0, 2]):  # by time, by sequence
        with pytest.raises(DataError, match="not in order"):
            history.pack(events.take(pa.array(rows)), SCHEMA)


def test_every_error_names_a_fix() -> None:
    nine_bytes = bytes(range(9))
    for payload in (b"", b"LRH1", b"\x00" * 100, packed(2)[:-1], nine_bytes):
        with pytest.raises(LongrecError) as caught:
            history.unpack(payload, SCHEMA)
        assert "Publish the features again" in str(caught.value)
