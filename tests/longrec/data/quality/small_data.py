"""A small dataset and its histories, and changes of their files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.histories_writer import HistoriesWriter
from longrec.data.shards import part_of
from longrec.schema import Feature, Schema, Task

Change = Callable[[pa.Table], pa.Table]

DAY = 86_400_000
START = 1_700_000_000_000
SCHEMA = Schema(
    name="small",
    item=(
        Feature("item_id", "id"),
        Feature("topic", "category", max_null_share=0.2),
    ),
    user=(Feature("region", "category", "string", max_null_share=0.0),),
    event=(
        Feature("action", "category", "string", max_null_share=0.0),
        Feature("seconds", "number", "float64", minimum=0.0, maximum=600.0),
    ),
    tasks=(
        Task("click", min_rate=0.1, max_rate=0.9),
        Task("buy", min_rate=0.2, max_rate=0.9),
    ),
    has_baskets=True,
)
NUM_USERS = 24
NUM_ITEMS = 30
NUM_PARTS = 2
EVENTS_PER_USER = 40
REQUESTS_PER_USER = 6
TARGETS_PER_REQUEST = 4
MAX_HISTORY = 12
SPLIT_TIME = START + 6 * DAY


def event_table(users: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Return baskets of two events with one time; every second basket ties with the one before."""
    num_events = len(users) * EVENTS_PER_USER
    places = np.tile(np.arange(EVENTS_PER_USER), len(users))
    baskets = places // 2
    return pa.table(
        {
            "user_id": np.repeat(users, EVENTS_PER_USER),
            "item_id": places % NUM_ITEMS,
            "timestamp": pa.array(START + baskets // 2 * DAY, TIMESTAMP_TYPE),
            "event_seq": np.arange(num_events),
            "basket_id": baskets,
            "action": rng.choice(["view", "buy"], num_events),
            "seconds": rng.random(num_events) * 600,
            "click": rng.integers(0, 2, num_events).astype(np.int8),
        }
    )


def target_table(users: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Return four targets for each request; one request a day from the third day on."""
    num_requests = len(users) * REQUESTS_PER_USER
    days = np.tile(np.arange(REQUESTS_PER_USER), len(users))
    requests = np.repeat(users, REQUESTS_PER_USER) * 100 + days
    request_times = START + (2 + days) * DAY
    offsets = rng.integers(0, 6, num_requests * TARGETS_PER_REQUEST) * TARGETS_PER_REQUEST
    return pa.table(
        {
            "request_id": np.repeat(requests, TARGETS_PER_REQUEST),
            "user_id": np.repeat(users, REQUESTS_PER_USER * TARGETS_PER_REQUEST),
            "timestamp": pa.array(np.repeat(request_times, TARGETS_PER_REQUEST), TIMESTAMP_TYPE),
            "item_id": np.tile(np.arange(TARGETS_PER_REQUEST), num_requests) + offsets,
            "click": np.tile(np.array([0, 1, 0, 1], np.int8), num_requests),
            "buy": np.tile(np.array([0, 1, 0, 0], np.int8), num_requests),
        }
    )


def item_table() -> pa.Table:
    topics = [None if item == 3 else item % 5 for item in range(NUM_ITEMS)]
    return pa.table({"item_id": np.arange(NUM_ITEMS), "topic": pa.array(topics, pa.int64())})


def user_table() -> pa.Table:
    users = np.arange(NUM_USERS)
    regions = np.array(["north", "south"])[users % 2]
    return pa.table({"user_id": users, "region": regions})


def write_dataset(path: Path) -> Path:
    """Write the dataset in two parts."""
    rng = np.random.default_rng(0)
    users = np.arange(NUM_USERS)
    with DatasetWriter(
        path,
        SCHEMA,
        name="small",
        source={},
        num_parts=NUM_PARTS,
        event_labels=("click",),
    ) as writer:
        for part in range(NUM_PARTS):
            users_of_part = users[part_of(users, NUM_PARTS) == part]
            events = event_table(users_of_part, rng)
            writer.write_part(part, events, target_table(users_of_part, rng))
        writer.write_entities(item_table(), user_table())
    return path


def write_histories(path: Path) -> Path:
    """Write the histories of all requests, in the order of time."""
    rng = np.random.default_rng(0)
    users = np.arange(NUM_USERS)
    events = event_table(users, rng)
    targets = target_table(users, rng)
    timelines = {
        "user_row": users,
        "event_start": users * EVENTS_PER_USER,
        "event_end": (users + 1) * EVENTS_PER_USER,
    }
    request_times = int_column(targets, "timestamp")[::TARGETS_PER_REQUEST]
    order = np.argsort(request_times, kind="stable")
    first_targets = order * TARGETS_PER_REQUEST
    target_rows = first_targets[:, None] + np.arange(TARGETS_PER_REQUEST)
    half = NUM_USERS // 2 * EVENTS_PER_USER
    with HistoriesWriter(path, SCHEMA) as writer:
        for start in (0, half):
            writer.add(events.slice(start, half).combine_chunks())
        writer.finish(
            pa.table({**timelines, "user_id": users, "region": user_table()["region"]}),
            _request_table(events, targets.take(first_targets)),
            targets.take(target_rows.ravel()),
            item_table(),
            {"max_history": MAX_HISTORY, "split_time_ms": SPLIT_TIME},
        )
    return path


def _request_table(events: pa.Table, requests: pa.Table) -> pa.Table:
    """Return the requests with their histories; one row per request, in the order of time."""
    event_times = int_column(events, "timestamp").reshape(NUM_USERS, EVENTS_PER_USER)
    users = int_column(requests, "user_id")
    request_times = int_column(requests, "timestamp")
    num_before = (event_times[users] < request_times[:, None]).sum(axis=1)
    ends = users * EVENTS_PER_USER + num_before
    places = np.arange(len(users))
    return pa.table(
        {
            "request_id": requests["request_id"],
            "user_row": users,
            "timestamp": request_times,
            "event_start": np.maximum(users * EVENTS_PER_USER, ends - MAX_HISTORY),
            "event_end": ends,
            "target_start": places * TARGETS_PER_REQUEST,
            "target_end": (places + 1) * TARGETS_PER_REQUEST,
            "split": np.where(request_times < SPLIT_TIME, "train", "eval"),
        }
    )


def int_column(table: pa.Table, name: str) -> np.ndarray:
    """Return an integer or time column as int64, times in ms."""
    return np.asarray(table[name].cast(pa.int64()))


def replace_column(table: pa.Table, name: str, column: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def set_values(table: pa.Table, name: str, rows: npt.ArrayLike, value: object) -> pa.Table:
    """Return the table with one value in some rows of a column; times in ms."""
    values = table[name].to_pylist()
    for row in np.atleast_1d(rows):
        values[int(row)] = value
    return replace_column(table, name, pa.array(values, table[name].type))


def shift_time(table: pa.Table, row: int, days: float) -> pa.Table:
    """Return the table with the time of one row moved."""
    times = int_column(table, "timestamp").copy()
    times[row] += int(days * DAY)
    return replace_column(table, "timestamp", pa.array(times, table["timestamp"].type))


def repeat_row(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def swap_rows(table: pa.Table, row: int) -> pa.Table:
    """Return the table with a row and the next one exchanged."""
    order = np.arange(table.num_rows)
    order[[row, row + 1]] = order[[row + 1, row]]
    return table.take(order)


def rewrite_table(path: Path, change: Change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def rewrite_timelines(directory: Path, change: Change, batch_rows: int | None = None) -> None:
    """Rewrite the timelines in record batches of some rows; None for one batch."""
    path = directory / "timelines.arrow"
    reader = pa.ipc.open_file(path.read_bytes())
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    table = change(pa.Table.from_batches(batches, reader.schema))
    table = table.unify_dictionaries().combine_chunks()
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


def with_slow_marks(faults: Mapping[str, Any], slow: Collection[str]) -> list[Any]:
    """Return the names of all faults as test parameters, some of them marked as slow."""
    assert set(slow) <= set(faults)
    return [
        pytest.param(fault, marks=[pytest.mark.slow] if fault in slow else []) for fault in faults
    ]
