"""The checks find every synthetic fault, name it and who it concerns, pass clean data, and leave a
page that needs no network.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import ChecksConfig
from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.histories_writer import HistoriesWriter
from longrec.data.quality import checks, profiles
from longrec.data.shards import part_of
from longrec.errors import CheckFailed, DataError
from longrec.schema import Feature, Schema, Task
from tests.longrec.pages import text_of

DAY = 86_400_000
START = 1_700_000_000_000
CONFIG = ChecksConfig(min_requests=5)
SCHEMA = Schema(
    name="small",
    item=(Feature("item_id", "id"), Feature("topic", "category", max_null_share=0.2)),
    user=(Feature("region", "category", "string", max_null_share=0.0),),
    event=(
        Feature("action", "category", "string", max_null_share=0.0),
        Feature("seconds", "number", "float64", minimum=0.0, maximum=600.0),
    ),
    tasks=(Task("click", min_rate=0.1, max_rate=0.9), Task("buy", min_rate=0.2, max_rate=0.9)),
    has_baskets=True,
)
NUM_USERS, NUM_ITEMS, NUM_PARTS, PER_USER, REQUESTS = 24, 30, 2, 40, 6


def _events(users: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Baskets of two events that share a time; half of the baskets of a user tie with the one
    before.
    """
    size = len(users) * PER_USER
    baskets = np.tile(np.arange(PER_USER) // 2, len(users))
    return pa.table(
        {
            "user_id": np.repeat(users, PER_USER),
            "item_id": np.tile(np.arange(PER_USER) % NUM_ITEMS, len(users)),
            "timestamp": pa.array(START + baskets // 2 * DAY, TIMESTAMP_TYPE),
            "event_seq": np.arange(size),
            "basket_id": baskets,
            "action": rng.choice(["view", "buy"], size),
            "seconds": rng.random(size) * 600,
            "click": rng.integers(0, 2, size).astype(np.int8),
        }
    )


def _targets(users: np.ndarray, rng: np.random.Generator) -> pa.Table:
    owners = np.repeat(users, REQUESTS * 4)
    requests = owners * 100 + np.tile(np.repeat(np.arange(REQUESTS), 4), len(users))
    request_times = START + (2 + requests % 100) * DAY
    return pa.table(
        {
            "request_id": requests,
            "user_id": owners,
            "timestamp": pa.array(request_times, TIMESTAMP_TYPE),
            "item_id": np.tile(np.arange(4), len(owners) // 4)
            + rng.integers(0, 6, len(owners)) * 4,
            "click": np.tile(np.array([0, 1, 0, 1], np.int8), len(owners) // 4),
            "buy": np.tile(np.array([0, 1, 0, 0], np.int8), len(owners) // 4),
        }
    )


def _items() -> pa.Table:
    topics = [None if item == 3 else item % 5 for item in range(NUM_ITEMS)]
    return pa.table({"item_id": np.arange(NUM_ITEMS), "topic": pa.array(topics, pa.int64())})


def _users() -> pa.Table:
    return pa.table(
        {
            "user_id": np.arange(NUM_USERS),
            "region": np.array(["north", "south"])[np.arange(NUM_USERS) % 2],
        }
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    users = np.arange(NUM_USERS)
    with DatasetWriter(
        tmp_path / "data",
        SCHEMA,
        name="small",
        source={},
        num_parts=NUM_PARTS,
        event_labels=("click",),
    ) as writer:
        for part in range(NUM_PARTS):
            mine = users[part_of(users, NUM_PARTS) == part]
            writer.write_part(part, _events(mine, rng), _targets(mine, rng))
        writer.write_entities(_items(), _users())
    return tmp_path / "data"


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    users = np.arange(NUM_USERS)
    events, targets = _events(users, rng), _targets(users, rng)
    request_times = np.asarray(targets["timestamp"].cast(pa.int64()))[::4]
    owners, times = (
        np.asarray(targets["user_id"])[::4],
        np.asarray(events["timestamp"].cast(pa.int64())),
    )
    order = np.argsort(request_times, kind="stable")
    counts = np.array(
        [
            (times[user * PER_USER : (user + 1) * PER_USER] < request_time).sum()
            for user, request_time in zip(owners, request_times, strict=True)
        ]
    )
    ends = (owners * PER_USER + counts)[order]
    with HistoriesWriter(tmp_path / "histories", SCHEMA) as writer:
        for half in (0, NUM_USERS // 2):
            writer.add(events.slice(half * PER_USER, NUM_USERS // 2 * PER_USER).combine_chunks())
        spans = {
            "user_row": users,
            "event_start": users * PER_USER,
            "event_end": (users + 1) * PER_USER,
        }
        requests = pa.table(
            {
                "request_id": np.asarray(targets["request_id"])[::4][order],
                "user_row": owners[order],
                "timestamp": request_times[order],
                "event_start": np.maximum(owners[order] * PER_USER, ends - 12),
                "event_end": ends,
                "target_start": np.arange(len(order)) * 4,
                "target_end": np.arange(1, len(order) + 1) * 4,
                "split": np.where(request_times[order] < START + 6 * DAY, "train", "eval"),
            }
        )
        writer.finish(
            pa.table({**spans, **{name: _users()[name] for name in _users().column_names}}),
            requests,
            targets.take(np.concatenate([np.arange(4) + 4 * row for row in order])),
            _items(),
            {"max_history": 12, "split_time_ms": START + 6 * DAY},
        )
    return tmp_path / "histories"


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(
        table[name].cast(pa.int64()) if pa.types.is_timestamp(table[name].type) else table[name]
    )


def _put(table: pa.Table, name: str, rows: object, value: object) -> pa.Table:
    """The table with one value in some rows of a column."""
    values = table[name].to_pylist()
    for row in np.atleast_1d(rows):
        values[int(row)] = value
    kind = table[name].type
    column = (
        pa.array(values, pa.int64()).cast(kind)
        if pa.types.is_timestamp(kind) and isinstance(value, int)
        else pa.array(values, kind)
    )
    return table.set_column(table.column_names.index(name), name, column)


def _ms(table: pa.Table, name: str = "timestamp") -> pa.Table:
    """The table with times as plain int64, so that `_put` can change one."""
    return table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))


def _shift(table: pa.Table, row: int, days: float) -> pa.Table:
    moved = _ms(table)
    moved = _put(moved, "timestamp", row, moved["timestamp"][row].as_py() + int(days * DAY))
    return table.set_column(
        table.column_names.index("timestamp"),
        "timestamp",
        moved["timestamp"].cast(table["timestamp"].type),
    )


def _rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def _rewrite_timelines(directory: Path, change, batch_rows: int | None = None) -> None:
    path = directory / "timelines.arrow"
    reader = pa.ipc.open_file(path.read_bytes())
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    table = (
        change(pa.Table.from_batches(batches, reader.schema)).unify_dictionaries().combine_chunks()
    )
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


def _repeat_row(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def _swap(table: pa.Table, row: int) -> pa.Table:
    order = np.arange(table.num_rows)
    order[[row, row + 1]] = order[[row + 1, row]]
    return table.take(order)


def test_a_clean_dataset_passes(dataset: Path, tmp_path: Path) -> None:
    report = checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    assert report.passed and not report.failures and not report.warnings
    assert report.num_expectations > 50 and report.seconds > 0
    assert report.path == str(tmp_path / "events.html")
    assert json.loads(json.dumps(report.to_dict()))["num_expectations"] == report.num_expectations
    text = text_of(tmp_path / "events.html")
    assert (
        "passed" in text
        and "Great Expectations" in text
        and "failed" not in re.sub("0 failed", "", text)
    )


# fault -> (table below the dataset, change, what the message says, who is named)
EVENTS = "events/part-00000.parquet"
TARGETS = "targets/part-00000.parquet"
FIRST = int(np.flatnonzero(part_of(np.arange(NUM_USERS), NUM_PARTS) == 0)[0])
DATASET_FAULTS = {
    "a null item of an event": (
        EVENTS,
        lambda t: _put(t, "item_id", 3, None),
        "item_id is never null",
        f"user {FIRST}",
    ),
    "a null user": (EVENTS, lambda t: _put(t, "user_id", 3, None), "user_id is never null", ""),
    "a null time": (
        EVENTS,
        lambda t: _put(t, "timestamp", 3, None),
        "timestamp is never null",
        f"user {FIRST}",
    ),
    "a negative id": (
        EVENTS,
        lambda t: _put(t, "item_id", 3, -7),
        "item_id is never below its bound",
        f"user {FIRST}",
    ),
    "a time before 1970": (
        EVENTS,
        lambda t: _shift(t, 0, -30_000),
        "timestamp is never below its bound",
        f"user {FIRST}",
    ),
    "a time in another unit": (
        EVENTS,
        lambda t: _shift(t, t.num_rows - 1, 100_000),
        "timestamp is never above its bound",
        "user ",
    ),
    "events out of order": (
        EVENTS,
        lambda t: _swap(t, 3),
        "never go back in time",
        f"user {FIRST}",
    ),
    "a user in two places": (
        EVENTS,
        lambda t: pa.concat_tables([t.slice(2), t.slice(0, 2)]),
        "lie together",
        f"user {FIRST}",
    ),
    "an event twice": (
        EVENTS,
        lambda t: _repeat_row(t, 3),
        "equal another one of the user in item, time and sequence",
        f"user {FIRST}",
    ),
    "an unknown item": (
        EVENTS,
        lambda t: _put(t, "item_id", np.arange(80), 999),
        "an item that is not in the item table",
        f"user {FIRST}",
    ),
    "a basket with two times": (
        EVENTS,
        lambda t: _put(_put(t, "basket_id", 4, 0), "basket_id", 5, 0),
        "a basket has a single time",
        f"user {FIRST}",
    ),
    "a feature out of bounds": (
        EVENTS,
        lambda t: _put(t, "seconds", 5, 601.0),
        "seconds is never above its bound",
        f"user {FIRST}",
    ),
    "a null feature": (
        EVENTS,
        lambda t: _put(t, "action", 5, None),
        "action is never null",
        f"user {FIRST}",
    ),
    "a label of an event that is 2": (
        EVENTS,
        lambda t: _put(t, "click", 5, 2),
        "click is never above its bound",
        f"user {FIRST}",
    ),
    "events lost": (EVENTS, lambda t: t.slice(0, t.num_rows - 1), "the rows that were counted", ""),
    "a column lost": (
        EVENTS,
        lambda t: t.drop_columns(["action"]),
        "the columns of the schema",
        "action is missing",
    ),
    "a column of another type": (
        EVENTS,
        lambda t: t.set_column(1, "item_id", t["item_id"].cast(pa.float64())),
        "the columns of the schema",
        "item_id is float64 instead of int64",
    ),
    "a null label": (
        TARGETS,
        lambda t: _put(t, "buy", 3, None),
        "buy is never null",
        f"user {FIRST}",
    ),
    "a label that is 2": (
        TARGETS,
        lambda t: _put(t, "buy", 3, 2),
        "buy is never above its bound",
        f"user {FIRST}",
    ),
    "labels that are all 0": (
        TARGETS,
        lambda t: _put(t, "buy", np.arange(t.num_rows), 0),
        "the rate of buy lies within",
        "",
    ),
    "a request with two moments": (
        TARGETS,
        lambda t: _shift(t, 3, 0.5),
        "the same moment",
        f"request {FIRST * 100} of user {FIRST}",
    ),
    "targets with unknown items": (
        TARGETS,
        lambda t: _put(t, "item_id", np.arange(100), 999),
        "an item that is not in the item table",
        f"user {FIRST}",
    ),
    "an item twice": (
        "items.parquet",
        lambda t: _repeat_row(t, 3),
        "item_id rises from row to row",
        "",
    ),
    "too many null features of items": (
        "items.parquet",
        lambda t: _put(t, "topic", np.arange(10), None),
        "topic is seldom null",
        "item 0",
    ),
    "a null user feature": (
        "users.parquet",
        lambda t: _put(t, "region", 5, None),
        "region is never null",
        "user 5",
    ),
    "no users": ("users.parquet", lambda t: t.slice(0, 0), "the table has rows", ""),
}


SLOW_DATASET_FAULTS = {
    "a null user",
    "a null time",
    "a time before 1970",
    "a user in two places",
    "a label of an event that is 2",
    "events lost",
    "a null label",
    "a label that is 2",
    "targets with unknown items",
    "an item twice",
    "a null user feature",
    "no users",
    "a column of another type",
}
"""Slow as one of many: each is a run of Great Expectations."""


def _marked(faults: dict, slow: set[str]) -> list:
    assert slow <= set(faults)
    return [
        pytest.param(fault, marks=[pytest.mark.slow] if fault in slow else []) for fault in faults
    ]


@pytest.mark.parametrize("fault", _marked(DATASET_FAULTS, SLOW_DATASET_FAULTS))
def test_a_fault_in_a_dataset_fails(dataset: Path, tmp_path: Path, fault: str) -> None:
    table, change, says, who = DATASET_FAULTS[fault]
    _rewrite(dataset / table, change)
    with pytest.raises(CheckFailed) as caught:
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    message = str(caught.value)
    assert (
        says in message
        and who in message
        and "found" in message
        and str(tmp_path / "events.html") in message
    )
    text = text_of(tmp_path / "events.html")
    assert says in text and who in text


def test_a_request_of_two_users_fails(dataset: Path, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        owners = _column(table, "user_id")
        return _put(
            table,
            "request_id",
            int(np.flatnonzero(owners != owners[0])[0]),
            int(table["request_id"][0].as_py()),
        )

    _rewrite(dataset / TARGETS, change)
    with pytest.raises(CheckFailed, match="all targets of a request have the same user"):
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)


def test_a_user_whose_targets_moved_to_another_part_fails(dataset: Path, tmp_path: Path) -> None:
    first, second = (dataset / "targets" / f"part-0000{part}.parquet" for part in (0, 1))
    left, right = pq.read_table(first), pq.read_table(second)
    pq.write_table(left.slice(24), first)
    pq.write_table(pa.concat_tables([left.slice(0, 24), right]), second)
    with pytest.raises(CheckFailed, match="parts of one number"):
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)


def test_warnings_are_reported_and_pass(dataset: Path, tmp_path: Path) -> None:
    _rewrite(dataset / "users.parquet", lambda t: t.slice(2))
    _rewrite(
        dataset / EVENTS, lambda t: _put(t, "item_id", np.arange(1, 40, 2), t["item_id"][0].as_py())
    )
    report = checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    assert report.passed and report.num_warnings == len(report.warnings) == 3
    assert any(
        "every user has a row in the user table" in line and "user 0" in line
        for line in report.warnings
    )
    assert any("repeat item and time" in line for line in report.warnings)
    assert report.warnings[0] in text_of(tmp_path / "events.html") or "warning" in text_of(
        tmp_path / "events.html"
    )


def test_label_rates_only_warn_when_told_so(dataset: Path, tmp_path: Path) -> None:
    for part in range(NUM_PARTS):
        _rewrite(
            dataset / "targets" / f"part-0000{part}.parquet",
            lambda t: _put(t, "click", np.arange(t.num_rows), 1),
        )
    with pytest.raises(CheckFailed, match="rate of click"):
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    report = checks.check_events(
        dataset, tmp_path / "events.html", dataclasses.replace(CONFIG, check_label_rates=False)
    )
    assert any("rate of click" in line for line in report.warnings)


def test_at_most_ten_users_are_named(dataset: Path, tmp_path: Path) -> None:
    for part in range(NUM_PARTS):
        _rewrite(
            dataset / "events" / f"part-0000{part}.parquet",
            lambda t: _put(t, "seconds", np.arange(t.num_rows), -1.0),
        )
    with pytest.raises(CheckFailed) as caught:
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    assert len(re.findall(r"user \d+", str(caught.value))) == 10


@pytest.mark.parametrize("name", ["events/part-00001.parquet", "items.parquet"])
def test_a_truncated_file_is_an_error_that_names_it(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    content = (dataset / name).read_bytes()
    (dataset / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=Path(name).name):
        checks.check_events(dataset, tmp_path / "events.html", CONFIG)


def test_a_directory_of_something_else_is_an_error(histories: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        checks.check_events(histories, tmp_path / "events.html", CONFIG)
    (histories / "manifest.json").write_text("[]")
    with pytest.raises(
        DataError, match=r"manifest\.json is incomplete; found no schema, max_history"
    ):
        checks.check_histories(histories, tmp_path / "histories.html", CONFIG)
    assert list(tmp_path.glob("*.html")) == []


def test_values_of_the_data_cannot_write_into_the_page(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "name": "<script>alert(1)</script>"}))
    checks.check_events(dataset, tmp_path / "events.html", CONFIG)
    assert "<script>alert(1)</script>" in text_of(tmp_path / "events.html")


def test_clean_histories_pass(histories: Path, tmp_path: Path) -> None:
    report = checks.check_histories(histories, tmp_path / "histories.html", CONFIG)
    assert report.passed and not report.warnings and report.num_expectations > 40
    assert "passed" in text_of(tmp_path / "histories.html")


def _advance(name: str, steps: int, pick=lambda table: 100):
    def change(table: pa.Table) -> pa.Table:
        row = pick(table)
        return _put(table, name, row, table[name][row].as_py() + steps)

    return change


def _earlier_moment(table: pa.Table) -> pa.Table:
    """The last request of the training moved to the time of its newest event: that event is now at
    its moment.
    """
    row = int(np.flatnonzero(np.asarray(table["split"]) == "eval")[0])
    return _put(table, "timestamp", row, table["timestamp"][row].as_py() - DAY)


def _split_at(row_of_split: str, to: str, last: bool):
    def change(table: pa.Table) -> pa.Table:
        rows = np.flatnonzero(np.asarray(table["split"]) == row_of_split)
        return _put(table, "split", int(rows[-1 if last else 0]), to)

    return change


HISTORY_FAULTS = {
    "an event after its request": (
        "requests",
        _advance("event_end", 2),
        "no history holds an event at or after the moment",
        "user ",
    ),
    "an event at its request": (
        "requests",
        _earlier_moment,
        "no history holds an event at or after the moment",
        "user ",
    ),
    "a split basket": ("requests", _advance("event_end", -1), "splits no basket", "user "),
    "a history that stops short": (
        "requests",
        _advance("event_end", -2),
        "leaves out no event just before its request",
        "user ",
    ),
    "a history that is too long": (
        "requests",
        _advance("event_start", -1),
        "no history is longer than max_history",
        "user ",
    ),
    "a history that starts late": (
        "requests",
        _advance("event_start", 1),
        "shorter than max_history starts with the timeline",
        "user ",
    ),
    "a history of somebody else": (
        "requests",
        _advance("user_row", 1, lambda t: 5),
        "a history lies inside the timeline of its user",
        "user ",
    ),
    "a request of nobody": (
        "requests",
        lambda t: _put(t, "user_row", 5, NUM_USERS),
        "every request names a user",
        "",
    ),
    "a training request in the evaluation": (
        "requests",
        _split_at("eval", "train", True),
        "every train request is before the first eval",
        "request ",
    ),
    "no evaluation": (
        "requests",
        lambda t: _put(t, "split", np.arange(t.num_rows), "train"),
        "the split eval has enough requests",
        "",
    ),
    "a split of another name": (
        "requests",
        _split_at("eval", "test", True),
        "every split is one of",
        "",
    ),
    "requests not in time order": (
        "requests",
        lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]),
        "in the order of time",
        "",
    ),
    "a request twice": (
        "requests",
        lambda t: _put(t, "request_id", 5, t["request_id"][6].as_py()),
        "request_id is there once",
        "",
    ),
    "targets of nobody": (
        "requests",
        _advance("target_end", -1),
        "every target belongs to one request",
        "",
    ),
    "a request without targets": (
        "requests",
        _advance("target_end", -4),
        "every request has targets inside the table",
        "request ",
    ),
    "short histories only": (
        "requests",
        lambda t: t.set_column(3, "event_start", t["event_end"]),
        "the longest history has enough events",
        "",
    ),
    "a label that is 2": ("targets", lambda t: _put(t, "buy", 3, 2), "labels are 0 or 1", ""),
    "a null label": ("targets", lambda t: _put(t, "buy", 3, None), "labels are 0 or 1", ""),
    "a null target": (
        "targets",
        lambda t: _put(t, "item_id", 3, None),
        "no target is without an item",
        "",
    ),
    "unknown targets": (
        "targets",
        lambda t: _put(t, "item_id", np.arange(90), 777),
        "few of the targets have an item that is not",
        "",
    ),
    "training labels that are all 1": (
        "targets",
        lambda t: _put(t, "click", np.arange(t.num_rows * 2 // 3), 1),
        "rate of click in train",
        "",
    ),
    "features that came back null": (
        "items",
        lambda t: _put(t, "topic", np.arange(NUM_ITEMS), None),
        "topic is seldom null",
        "item 0",
    ),
    "user features that came back null": (
        "users",
        lambda t: _put(t, "region", 4, None),
        "region is never null",
        "user 4",
    ),
    "a user twice": ("users", lambda t: _put(t, "user_id", 4, 5), "user_id is there once", ""),
    "a gap between users": (
        "users",
        lambda t: _put(t, "event_end", 4, 3 * PER_USER),
        "spans of users follow each other",
        "user ",
    ),
    "a user outside": (
        "users",
        lambda t: _put(t, "event_end", NUM_USERS - 1, 10**6),
        "lies inside the timelines",
        f"user {NUM_USERS - 1}",
    ),
    "a column lost": (
        "requests",
        lambda t: t.drop_columns(["event_end"]),
        "the columns of the schema",
        "event_end is missing",
    ),
}


SLOW_HISTORY_FAULTS = {
    "a history that starts late",
    "a request of nobody",
    "no evaluation",
    "a split of another name",
    "requests not in time order",
    "a request twice",
    "a request without targets",
    "a label that is 2",
    "a null label",
    "a null target",
    "unknown targets",
    "user features that came back null",
    "a user twice",
    "a gap between users",
    "a column lost",
    "short histories only",
}


@pytest.mark.parametrize("fault", _marked(HISTORY_FAULTS, SLOW_HISTORY_FAULTS))
def test_a_fault_in_histories_fails(histories: Path, tmp_path: Path, fault: str) -> None:
    table, change, says, who = HISTORY_FAULTS[fault]
    _rewrite(histories / f"{table}.parquet", change)
    config = dataclasses.replace(CONFIG, min_history=8)
    with pytest.raises(CheckFailed) as caught:
        checks.check_histories(histories, tmp_path / "histories.html", config)
    assert says in str(caught.value) and who in str(caught.value)
    text = text_of(tmp_path / "histories.html")
    assert says in text and who in text


TIMELINE_FAULTS = {
    "a future event put in": (
        lambda t: _put(t, "timestamp", 7, START + 400 * DAY),
        "never go back in time",
        "user 0",
    ),
    "events out of order across record batches": (
        lambda t: _put(t, "timestamp", NUM_USERS // 2 * PER_USER + 1, START - DAY),
        "never go back in time",
        f"user {NUM_USERS // 2}",
    ),
    "a late basket": (
        lambda t: _put(t, "basket_id", np.arange(18, 21), 9),
        "splits no basket",
        "user 0",
    ),
    "a null feature": (lambda t: _put(t, "action", 5, None), "action is never null", ""),
    "a feature out of bounds": (
        lambda t: _put(t, "seconds", 5, -1.0),
        "seconds is never below its bound",
        "",
    ),
    "a time in another unit": (
        lambda t: _put(t, "timestamp", PER_USER - 1, START * 1000),
        "timestamp is never above its bound",
        "",
    ),
    "unknown items": (
        lambda t: _put(t, "item_id", np.arange(200), 777),
        "few of the events have an item that is not",
        "",
    ),
}


@pytest.mark.parametrize("fault", TIMELINE_FAULTS)
def test_a_fault_in_timelines_fails(histories: Path, tmp_path: Path, fault: str) -> None:
    change, says, who = TIMELINE_FAULTS[fault]
    _rewrite_timelines(histories, change)
    with pytest.raises(CheckFailed) as caught:
        checks.check_histories(histories, tmp_path / "histories.html", CONFIG)
    assert says in str(caught.value) and who in str(caught.value)


def test_order_is_looked_at_across_record_batches(histories: Path, tmp_path: Path) -> None:
    """The first event of a record batch in the midst of a user lies before the last event of the
    batch before it.
    """
    row = 3 * PER_USER + 20
    _rewrite_timelines(histories, lambda t: t, row)
    checks.check_histories(histories, tmp_path / "histories.html", CONFIG)
    late = START + (PER_USER // 4 - 1) * DAY  # rows before the border still rise
    _rewrite_timelines(
        histories, lambda t: _put(t, "timestamp", np.arange(row - 2, row), late), row
    )
    with pytest.raises(CheckFailed, match=r"never go back in time.*1 of 24 users.*\(user 3\)"):
        checks.check_histories(histories, tmp_path / "histories.html", CONFIG)


def test_truncated_timelines_are_an_error(histories: Path, tmp_path: Path) -> None:
    path = histories / "timelines.arrow"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"timelines\.arrow"):
        checks.check_histories(histories, tmp_path / "histories.html", CONFIG)


def test_user_facts_equal_a_loop(tmp_path: Path) -> None:
    """Small random parts with every kind of disorder, against one row after another."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tables = [
            pa.table(
                {
                    "user_id": np.sort(rng.integers(0, 4, 30)),
                    "timestamp": pa.array(rng.integers(0, 5, 30), TIMESTAMP_TYPE),
                    "event_seq": rng.integers(0, 3, 30),
                    "item_id": rng.integers(0, 3, 30),
                    "basket_id": rng.integers(0, 6, 30),
                }
            )
            for _ in range(2)
        ]
        paths = [tmp_path / f"{seed}-{number}.parquet" for number in range(2)]
        for path, table in zip(paths, tables, strict=True):
            pq.write_table(table, path)
        facts = profiles.user_facts(
            dict(enumerate(paths)), "event_seq", np.array([0, 2]), has_baskets=True
        )
        for row, user in enumerate(facts.columns["user_id"]):
            expected = _loop_facts(
                [
                    [entry for entry in table.to_pylist() if entry["user_id"] == user]
                    for table in tables
                ]
            )
            assert {name: int(facts.columns[name][row]) for name in expected} == expected


def _loop_facts(parts: list[list[dict[str, object]]]) -> dict[str, int]:
    names = (
        "num_rows",
        "num_runs",
        "num_disordered",
        "num_duplicates",
        "num_repeats",
        "num_unknown_items",
        "num_split_baskets",
    )
    out = dict.fromkeys(names, 0)
    for rows in parts:
        out["num_rows"] += len(rows)
        out["num_runs"] += bool(rows)
        out["num_unknown_items"] += sum(row["item_id"] == 1 for row in rows)
        places = [(row["timestamp"], row["event_seq"]) for row in rows]
        out["num_disordered"] += sum(
            later < earlier for earlier, later in itertools.pairwise(places)
        )
        start = 0  # ties are runs of equal times, as they lie
        for end in range(1, len(rows) + 1):
            if end == len(rows) or rows[end]["timestamp"] != rows[start]["timestamp"]:
                keys = [(row["item_id"], row["event_seq"]) for row in rows[start:end]]
                out["num_duplicates"] += len(keys) - len(set(keys))
                out["num_repeats"] += len(set(keys)) - len({item for item, _ in keys})
                start = end
        for basket in {row["basket_id"] for row in rows}:
            out["num_split_baskets"] += (
                len({row["timestamp"] for row in rows if row["basket_id"] == basket}) - 1
            )
    return out
