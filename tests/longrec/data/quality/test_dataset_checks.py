"""Checks of a dataset: every fault fails, is described and names its rows."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import ChecksConfig
from longrec.data.quality import checks
from longrec.data.quality.check_report import CheckReport
from longrec.data.shards import part_of
from longrec.errors import CheckFailed, DataError
from tests.longrec.data.quality.small_data import (
    NUM_PARTS,
    NUM_USERS,
    int_column,
    repeat_row,
    replace_column,
    rewrite_table,
    set_values,
    shift_time,
    swap_rows,
    with_slow_marks,
)
from tests.longrec.pages import text_of

CONFIG = ChecksConfig(min_requests=5)
EVENTS = "events/part-00000.parquet"
TARGETS = "targets/part-00000.parquet"
FIRST_USER = int(np.flatnonzero(part_of(np.arange(NUM_USERS), NUM_PARTS) == 0)[0])
DATASET_FAULTS = {
    "a null item of an event": (
        EVENTS,
        lambda table: set_values(table, "item_id", 3, None),
        "item_id is never null",
        f"user {FIRST_USER}",
    ),
    "a null user": (
        EVENTS,
        lambda table: set_values(table, "user_id", 3, None),
        "user_id is never null",
        "",
    ),
    "a null time": (
        EVENTS,
        lambda table: set_values(table, "timestamp", 3, None),
        "timestamp is never null",
        f"user {FIRST_USER}",
    ),
    "a negative id": (
        EVENTS,
        lambda table: set_values(table, "item_id", 3, -7),
        "item_id is never below its bound",
        f"user {FIRST_USER}",
    ),
    "a time before 1970": (
        EVENTS,
        lambda table: shift_time(table, 0, -30_000),
        "timestamp is never below its bound",
        f"user {FIRST_USER}",
    ),
    "a time in another unit": (
        EVENTS,
        lambda table: shift_time(table, table.num_rows - 1, 100_000),
        "timestamp is never above its bound",
        "user ",
    ),
    "events out of order": (
        EVENTS,
        lambda table: swap_rows(table, 3),
        "never go back in time",
        f"user {FIRST_USER}",
    ),
    "a user in two places": (
        EVENTS,
        lambda table: pa.concat_tables([table.slice(2), table.slice(0, 2)]),
        "are together",
        f"user {FIRST_USER}",
    ),
    "an event twice": (
        EVENTS,
        lambda table: repeat_row(table, 3),
        "equal another one of the user in item, time and sequence",
        f"user {FIRST_USER}",
    ),
    "an unknown item": (
        EVENTS,
        lambda table: set_values(table, "item_id", np.arange(80), 999),
        "an item that is not in the item table",
        f"user {FIRST_USER}",
    ),
    "a basket with two times": (
        EVENTS,
        lambda table: set_values(table, "basket_id", [4, 5], 0),
        "a basket has a single time",
        f"user {FIRST_USER}",
    ),
    "a feature out of bounds": (
        EVENTS,
        lambda table: set_values(table, "seconds", 5, 601.0),
        "seconds is never above its bound",
        f"user {FIRST_USER}",
    ),
    "a null feature": (
        EVENTS,
        lambda table: set_values(table, "action", 5, None),
        "action is never null",
        f"user {FIRST_USER}",
    ),
    "a label of an event that is 2": (
        EVENTS,
        lambda table: set_values(table, "click", 5, 2),
        "click is never above its bound",
        f"user {FIRST_USER}",
    ),
    "events lost": (
        EVENTS,
        lambda table: table.slice(0, table.num_rows - 1),
        "the rows that were counted",
        "",
    ),
    "a column lost": (
        EVENTS,
        lambda table: table.drop_columns(["action"]),
        "the columns of the schema",
        "action is missing",
    ),
    "a column of another type": (
        EVENTS,
        lambda table: replace_column(table, "item_id", table["item_id"].cast(pa.float64())),
        "the columns of the schema",
        "item_id is float64 instead of int64",
    ),
    "a null label": (
        TARGETS,
        lambda table: set_values(table, "buy", 3, None),
        "buy is never null",
        f"user {FIRST_USER}",
    ),
    "a label that is 2": (
        TARGETS,
        lambda table: set_values(table, "buy", 3, 2),
        "buy is never above its bound",
        f"user {FIRST_USER}",
    ),
    "labels that are all 0": (
        TARGETS,
        lambda table: set_values(table, "buy", np.arange(table.num_rows), 0),
        "the rate of buy is within",
        "",
    ),
    "a request with two times": (
        TARGETS,
        lambda table: shift_time(table, 3, 0.5),
        "the same time",
        f"request {FIRST_USER * 100} of user {FIRST_USER}",
    ),
    "targets with unknown items": (
        TARGETS,
        lambda table: set_values(table, "item_id", np.arange(100), 999),
        "an item that is not in the item table",
        f"user {FIRST_USER}",
    ),
    "an item twice": (
        "items.parquet",
        lambda table: repeat_row(table, 3),
        "item_id rises from row to row",
        "",
    ),
    "too many null features of items": (
        "items.parquet",
        lambda table: set_values(table, "topic", np.arange(10), None),
        "topic is seldom null",
        "item 0",
    ),
    "a null user feature": (
        "users.parquet",
        lambda table: set_values(table, "region", 5, None),
        "region is never null",
        "user 5",
    ),
    "no users": ("users.parquet", lambda table: table.slice(0, 0), "the table has rows", ""),
}
"""Fault -> (file of the dataset, change, description in the message, failed row)."""
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
"""Faults of the slow tests: each is a run of Great Expectations."""


def check_dataset(
    dataset: Path,
    tmp_path: Path,
    config: ChecksConfig = CONFIG,
) -> CheckReport:
    return checks.check_events(dataset, tmp_path / "events.html", config)


def test_a_clean_dataset_passes(dataset: Path, tmp_path: Path) -> None:
    report = check_dataset(dataset, tmp_path)
    assert report.passed
    assert not report.failures
    assert not report.warnings
    assert report.num_expectations > 50
    assert report.seconds > 0
    assert report.path == str(tmp_path / "events.html")
    assert json.loads(json.dumps(report.to_dict()))["num_expectations"] == report.num_expectations
    text = text_of(tmp_path / "events.html")
    assert "passed" in text
    assert "Great Expectations" in text
    assert "failed" not in re.sub("0 failed", "", text)


@pytest.mark.parametrize("fault", with_slow_marks(DATASET_FAULTS, SLOW_DATASET_FAULTS))
def test_a_fault_in_a_dataset_fails(
    dataset: Path,
    tmp_path: Path,
    fault: str,
) -> None:
    table, change, description, failed_row = DATASET_FAULTS[fault]
    rewrite_table(dataset / table, change)
    with pytest.raises(CheckFailed) as caught:
        check_dataset(dataset, tmp_path)
    message = str(caught.value)
    assert description in message
    assert failed_row in message
    assert "found" in message
    assert str(tmp_path / "events.html") in message
    text = text_of(tmp_path / "events.html")
    assert description in text
    assert failed_row in text


def test_a_request_of_two_users_fails(dataset: Path, tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        owners = int_column(table, "user_id")
        first_of_other = np.flatnonzero(owners != owners[0])[0]
        return set_values(table, "request_id", first_of_other, table["request_id"][0].as_py())

    rewrite_table(dataset / TARGETS, change)
    with pytest.raises(CheckFailed, match="all targets of a request have the same user"):
        check_dataset(dataset, tmp_path)


def test_a_user_whose_targets_moved_to_another_part_fails(dataset: Path, tmp_path: Path) -> None:
    first = dataset / "targets" / "part-00000.parquet"
    second = dataset / "targets" / "part-00001.parquet"
    left = pq.read_table(first)
    right = pq.read_table(second)
    pq.write_table(left.slice(24), first)
    pq.write_table(pa.concat_tables([left.slice(0, 24), right]), second)
    with pytest.raises(CheckFailed, match="parts of the same number"):
        check_dataset(dataset, tmp_path)


def test_warnings_are_reported_and_pass(dataset: Path, tmp_path: Path) -> None:
    rewrite_table(dataset / "users.parquet", lambda table: table.slice(2))
    rewrite_table(
        dataset / EVENTS,
        lambda table: set_values(
            table,
            "item_id",
            np.arange(1, 40, 2),
            table["item_id"][0].as_py(),
        ),
    )
    report = check_dataset(dataset, tmp_path)
    assert report.passed
    assert report.num_warnings == len(report.warnings) == 3
    assert any(
        "every user has a row in the user table" in line and "user 0" in line
        for line in report.warnings
    )
    assert any("repeat item and time" in line for line in report.warnings)
    text = text_of(tmp_path / "events.html")
    assert report.warnings[0] in text or "warning" in text


def test_label_rates_only_warn_when_configured(dataset: Path, tmp_path: Path) -> None:
    for part in range(NUM_PARTS):
        rewrite_table(
            dataset / "targets" / f"part-0000{part}.parquet",
            lambda table: set_values(table, "click", np.arange(table.num_rows), 1),
        )
    with pytest.raises(CheckFailed, match="rate of click"):
        check_dataset(dataset, tmp_path)
    report = check_dataset(
        dataset,
        tmp_path,
        dataclasses.replace(CONFIG, check_label_rates=False),
    )
    assert any("rate of click" in line for line in report.warnings)


def test_at_most_ten_users_are_named(dataset: Path, tmp_path: Path) -> None:
    for part in range(NUM_PARTS):
        rewrite_table(
            dataset / "events" / f"part-0000{part}.parquet",
            lambda table: set_values(
                table,
                "seconds",
                np.arange(table.num_rows),
                -1.0,
            ),
        )
    with pytest.raises(CheckFailed) as caught:
        check_dataset(dataset, tmp_path)
    assert len(re.findall(r"user \d+", str(caught.value))) == 10


@pytest.mark.parametrize("name", ["events/part-00001.parquet", "items.parquet"])
def test_a_truncated_file_is_an_error_that_names_it(
    dataset: Path,
    tmp_path: Path,
    name: str,
) -> None:
    content = (dataset / name).read_bytes()
    (dataset / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=Path(name).name):
        check_dataset(dataset, tmp_path)


def test_a_directory_of_something_else_is_an_error(histories: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        check_dataset(histories, tmp_path)
    (histories / "manifest.json").write_text("[]")
    message = r"manifest\.json is incomplete; found no schema, max_history"
    with pytest.raises(DataError, match=message):
        checks.check_histories(histories, tmp_path / "histories.html", CONFIG)
    assert list(tmp_path.glob("*.html")) == []


def test_values_of_the_data_cannot_write_into_the_page(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "name": "<script>alert(1)</script>"}))
    check_dataset(dataset, tmp_path)
    assert "<script>alert(1)</script>" in text_of(tmp_path / "events.html")
