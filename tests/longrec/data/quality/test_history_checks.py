"""Checks of histories: every fault fails, is described and names its rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import ChecksConfig
from longrec.data import files
from longrec.data.quality import checks
from longrec.data.quality.check_report import CheckReport
from longrec.errors import CheckFailed, DataError
from tests.longrec.data.quality.small_data import (
    DAY,
    EVENTS_PER_USER,
    NUM_ITEMS,
    NUM_USERS,
    START,
    Change,
    replace_column,
    rewrite_table,
    rewrite_timelines,
    set_values,
    with_slow_marks,
)
from tests.longrec.pages import text_of

CONFIG = ChecksConfig(min_requests=5)


def check_histories(
    histories: Path,
    tmp_path: Path,
    config: ChecksConfig = CONFIG,
) -> CheckReport:
    return checks.check_histories(histories, tmp_path / "histories.html", config)


def _add(name: str, steps: int, row: int = 100) -> Change:
    """Return a change that adds to one value of an integer column."""
    return lambda table: set_values(table, name, row, table[name][row].as_py() + steps)


def _at_newest_event(table: pa.Table) -> pa.Table:
    """Move the first evaluation request to the time of the newest event of its history."""
    row = int(np.flatnonzero(np.asarray(table["split"]) == "eval")[0])
    time = table["timestamp"][row].as_py()
    return set_values(table, "timestamp", row, time - DAY)


def _last_evaluated_in(split: str) -> Change:
    """Return a change that puts the last evaluation request in another split."""

    def change(table: pa.Table) -> pa.Table:
        rows = np.flatnonzero(np.asarray(table["split"]) == "eval")
        return set_values(table, "split", rows[-1], split)

    return change


HISTORY_FAULTS = {
    "an event after its request": (
        "requests",
        _add("event_end", 2),
        "no history holds an event at or after its request time",
        "user ",
    ),
    "an event at its request time": (
        "requests",
        _at_newest_event,
        "no history holds an event at or after its request time",
        "user ",
    ),
    "a split basket": ("requests", _add("event_end", -1), "splits a basket", "user "),
    "a history that stops short": (
        "requests",
        _add("event_end", -2),
        "leaves out no event just before its request",
        "user ",
    ),
    "a history that is too long": (
        "requests",
        _add("event_start", -1),
        "no history is longer than max_history",
        "user ",
    ),
    "a history that starts late": (
        "requests",
        _add("event_start", 1),
        "shorter than max_history starts with the timeline",
        "user ",
    ),
    "a history of somebody else": (
        "requests",
        _add("user_row", 1, row=5),
        "a history is inside the timeline of its user",
        "user ",
    ),
    "a request of nobody": (
        "requests",
        lambda table: set_values(table, "user_row", 5, NUM_USERS),
        "every request names a user",
        "",
    ),
    "a training request in the evaluation": (
        "requests",
        _last_evaluated_in("train"),
        "every train request is before the first eval",
        "request ",
    ),
    "no evaluation": (
        "requests",
        lambda table: set_values(
            table,
            "split",
            np.arange(table.num_rows),
            "train",
        ),
        "the split eval has enough requests",
        "",
    ),
    "a split of another name": (
        "requests",
        _last_evaluated_in("test"),
        "every split is one of",
        "",
    ),
    "requests not in time order": (
        "requests",
        lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)]),
        "in the order of time",
        "",
    ),
    "a request twice": (
        "requests",
        lambda table: set_values(
            table,
            "request_id",
            5,
            table["request_id"][6].as_py(),
        ),
        "every request_id occurs once",
        "",
    ),
    "targets of nobody": (
        "requests",
        _add("target_end", -1),
        "every target belongs to one request",
        "",
    ),
    "a request without targets": (
        "requests",
        _add("target_end", -4),
        "every request has targets inside the table",
        "request ",
    ),
    "short histories only": (
        "requests",
        lambda table: table.set_column(3, "event_start", table["event_end"]),
        "the longest history has enough events",
        "",
    ),
    "a label that is 2": (
        "targets",
        lambda table: set_values(table, "buy", 3, 2),
        "labels are 0 or 1",
        "",
    ),
    "a null label": (
        "targets",
        lambda table: set_values(table, "buy", 3, None),
        "labels are 0 or 1",
        "",
    ),
    "a null target": (
        "targets",
        lambda table: set_values(table, "item_id", 3, None),
        "every target has an item",
        "",
    ),
    "unknown targets": (
        "targets",
        lambda table: set_values(table, "item_id", np.arange(90), 777),
        "few of the targets have an item that is not",
        "",
    ),
    "training labels that are all 1": (
        "targets",
        lambda table: set_values(
            table,
            "click",
            np.arange(table.num_rows * 2 // 3),
            1,
        ),
        "rate of click in train",
        "",
    ),
    "features that came back null": (
        "items",
        lambda table: set_values(table, "topic", np.arange(NUM_ITEMS), None),
        "topic is seldom null",
        "item 0",
    ),
    "user features that came back null": (
        "users",
        lambda table: set_values(table, "region", 4, None),
        "region is never null",
        "user 4",
    ),
    "a user twice": (
        "users",
        lambda table: set_values(table, "user_id", 4, 5),
        "every user_id occurs once",
        "",
    ),
    "a gap between users": (
        "users",
        lambda table: set_values(table, "event_end", 4, 3 * EVENTS_PER_USER),
        "timelines of users follow each other",
        "user ",
    ),
    "a user outside": (
        "users",
        lambda table: set_values(table, "event_end", NUM_USERS - 1, 10**6),
        "is inside the file",
        f"user {NUM_USERS - 1}",
    ),
    "a column lost": (
        "requests",
        lambda table: table.drop_columns(["event_end"]),
        "the columns of the schema",
        "event_end is missing",
    ),
}
"""Fault -> (file of the histories, change, description in the message, failed row)."""
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
"""Faults of the slow tests: each is a run of Great Expectations."""
TIMELINE_FAULTS = {
    "a future event put in": (
        lambda table: set_values(table, "timestamp", 7, START + 400 * DAY),
        "never go back in time",
        "user 0",
    ),
    "events out of order across record batches": (
        lambda table: set_values(
            table,
            "timestamp",
            NUM_USERS // 2 * EVENTS_PER_USER + 1,
            START - DAY,
        ),
        "never go back in time",
        f"user {NUM_USERS // 2}",
    ),
    "a late basket": (
        lambda table: set_values(table, "basket_id", np.arange(18, 21), 9),
        "splits a basket",
        "user 0",
    ),
    "a null feature": (
        lambda table: set_values(table, "action", 5, None),
        "action is never null",
        "",
    ),
    "a feature out of bounds": (
        lambda table: set_values(table, "seconds", 5, -1.0),
        "seconds is never below its bound",
        "",
    ),
    "a time in another unit": (
        lambda table: set_values(
            table,
            "timestamp",
            EVENTS_PER_USER - 1,
            START * 1000,
        ),
        "timestamp is never above its bound",
        "",
    ),
    "unknown items": (
        lambda table: set_values(table, "item_id", np.arange(200), 777),
        "few of the events have an item that is not",
        "",
    ),
}

"""Fault -> (change of the timelines, description in the message, failed row)."""


def test_clean_histories_pass(histories: Path, tmp_path: Path) -> None:
    report = check_histories(histories, tmp_path)
    assert report.passed
    assert not report.warnings
    assert report.num_expectations > 40
    assert "passed" in text_of(tmp_path / "histories.html")


def test_with_a_split_by_user_only_requests_of_one_user_are_compared(
    histories: Path,
    tmp_path: Path,
) -> None:
    manifest = files.read_json(histories / "manifest.json")
    files.write_json(histories / "manifest.json", {**manifest, "split": "user"})
    rewrite_table(histories / "requests.parquet", _hold_out_last_of_each_user)
    assert check_histories(histories, tmp_path).passed
    rewrite_table(histories / "requests.parquet", _last_evaluated_in("train"))
    with pytest.raises(CheckFailed, match="every train request is before the first validation"):
        check_histories(histories, tmp_path)


def _hold_out_last_of_each_user(table: pa.Table) -> pa.Table:
    users = np.asarray(table["user_row"])
    splits = np.full(len(users), "train", "<U10")
    for user in np.unique(users):
        own = np.flatnonzero(users == user)
        splits[own[-2:]] = ["validation", "eval"]
    return replace_column(table, "split", pa.array(splits.tolist()))


@pytest.mark.parametrize("fault", with_slow_marks(HISTORY_FAULTS, SLOW_HISTORY_FAULTS))
def test_a_fault_in_histories_fails(
    histories: Path,
    tmp_path: Path,
    fault: str,
) -> None:
    table, change, description, failed_row = HISTORY_FAULTS[fault]
    rewrite_table(histories / f"{table}.parquet", change)
    config = dataclasses.replace(CONFIG, min_history=8)
    with pytest.raises(CheckFailed) as caught:
        check_histories(histories, tmp_path, config)
    assert description in str(caught.value)
    assert failed_row in str(caught.value)
    text = text_of(tmp_path / "histories.html")
    assert description in text
    assert failed_row in text


@pytest.mark.parametrize("fault", TIMELINE_FAULTS)
def test_a_fault_in_timelines_fails(
    histories: Path,
    tmp_path: Path,
    fault: str,
) -> None:
    change, description, failed_row = TIMELINE_FAULTS[fault]
    rewrite_timelines(histories, change)
    with pytest.raises(CheckFailed) as caught:
        check_histories(histories, tmp_path)
    assert description in str(caught.value)
    assert failed_row in str(caught.value)


def test_order_is_checked_across_record_batches(histories: Path, tmp_path: Path) -> None:
    """The first event of a record batch is before the last event of the previous batch."""
    row = 3 * EVENTS_PER_USER + 20
    rewrite_timelines(histories, lambda table: table, row)
    check_histories(histories, tmp_path)
    late = START + (EVENTS_PER_USER // 4 - 1) * DAY
    # Within each batch the rows still rise.
    rewrite_timelines(
        histories,
        lambda table: set_values(
            table,
            "timestamp",
            np.arange(row - 2, row),
            late,
        ),
        row,
    )
    with pytest.raises(CheckFailed, match=r"never go back in time.*1 of 24 users.*\(user 3\)"):
        check_histories(histories, tmp_path)


def test_truncated_timelines_are_an_error(histories: Path, tmp_path: Path) -> None:
    path = histories / "timelines.arrow"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"timelines\.arrow"):
        check_histories(histories, tmp_path)
