"""Histories: written at once, memory-mapped, refused when damaged; and the split in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data import history
from longrec.data.histories import Histories
from longrec.data.histories_writer import HistoriesWriter
from longrec.errors import DataError, LongrecError, SchemaMismatch
from tests.longrec.data.random_log import SCHEMA

TEXTS = [["view", None, "view"], [None, None], ["buy", "view", "größe"], [], ["x"]]
"""Actions of the users of five record batches; later batches have new texts."""


def events_of(actions: list[str | None], first: int) -> pa.RecordBatch:
    count = len(actions)
    return history.conform(
        pa.table(
            {
                "item_id": np.arange(first, first + count),
                "timestamp": np.arange(count),
                "event_seq": np.arange(count),
                "basket_id": np.arange(count),
                "action": pa.array(actions, pa.string()),
                "seconds": pa.array([0.5] * count, pa.float64()),
                "source": pa.array([None] * count, pa.int64()),
            }
        ),
        SCHEMA,
    )


def write(
    directory: Path, texts: list[list[str | None]] = TEXTS, *, items: pa.Table | None = None
) -> Path:
    """Write five users, one per batch, each with one request at time 2 and two targets."""
    ends = np.cumsum([len(actions) for actions in texts])
    starts = ends - [len(actions) for actions in texts]
    rows = np.arange(len(texts))
    users = pa.table(
        {
            "user_row": rows,
            "user_id": rows * 10,
            "event_start": starts,
            "event_end": ends,
            "inviter": rows,
            "group": rows,
            "age": rows,
            "city": pa.array(["Köln"] * len(rows)),
            "score": rows * 0.1,
        }
    )
    requests = pa.table(
        {
            "request_id": rows + 100,
            "user_row": rows,
            "timestamp": np.full(len(rows), 2),
            "event_start": starts,
            "event_end": np.minimum(ends, starts + 2),
            "target_start": rows * 2,
            "target_end": rows * 2 + 2,
            "split": pa.array(["train", "train", "train", "eval", "eval"]),
        }
    )
    labels = np.ones(2 * len(rows), np.int8)
    targets = pa.table({"item_id": np.arange(2 * len(rows)), "click": labels, "buy": 1 - labels})
    items = items or pa.table(
        {
            "item_id": np.arange(4),
            "author": np.arange(4),
            "topic": np.arange(4),
            "price": np.arange(4) * 0.5,
        }
    )
    with HistoriesWriter(directory, SCHEMA) as writer:
        for actions, start in zip(texts, starts.tolist(), strict=True):
            assert writer.add(events_of(actions, start)) == (start, start + len(actions))
        writer.finish(
            users,
            requests,
            targets,
            items,
            {"split_time_ms": 2},
        )
    return directory


def test_what_was_written_is_read(tmp_path: Path) -> None:
    opened = Histories.open(write(tmp_path / "out"))
    assert (opened.schema, opened.num_events, opened.num_requests, opened.split_time_ms) == (
        SCHEMA,
        9,
        5,
        2,
    )
    assert [batch.column("action").to_pylist() for batch in opened.event_batches()] == TEXTS
    for row, actions in enumerate(TEXTS):
        assert opened.history(row).column("action").to_pylist() == actions[:2]
        assert opened.timeline(row).column("action").to_pylist() == actions
        expected = events_of(actions, int(opened.batch_starts[row])).slice(0, 2)
        assert history.pack(opened.history(row), SCHEMA) == history.pack(expected, SCHEMA)
    assert opened.items.column("price").to_pylist() == [0.0, 0.5, 1.0, 1.5]
    assert opened.users.column("city").to_pylist() == ["Köln"] * 5


def test_equal_tables_are_equal_bytes_however_they_were_put_together(tmp_path: Path) -> None:
    """Parquet ends its pages where chunks end, so chunks must not differ."""
    rows = np.arange(200_000)
    items = pa.table({"item_id": rows, "author": rows % 7, "topic": rows, "price": rows * 0.5})
    chunks = pa.concat_tables([items.slice(start, 777) for start in range(0, len(rows), 777)])
    whole = write(tmp_path / "whole", items=items)
    joined = write(tmp_path / "joined", items=chunks)
    assert (whole / "items.parquet").read_bytes() == (joined / "items.parquet").read_bytes()


def test_histories_are_views_of_the_file(tmp_path: Path) -> None:
    big = [["view"] * 200_000, ["buy"] * 200_000]
    opened = Histories.open(_two_users(tmp_path / "out", big))
    before = pa.total_allocated_bytes()
    parts = [opened.history(row) for row in (0, 1)]
    assert pa.total_allocated_bytes() - before < 10_000
    address = parts[1].column("timestamp").buffers()[1].address
    assert address == opened.batches[1].column("timestamp").buffers()[1].address


def _two_users(directory: Path, texts: list[list[str | None]]) -> Path:
    return write(directory, [*texts, [], [], []])


def test_events_of_two_users_at_once_are_refused(tmp_path: Path) -> None:
    opened = Histories.open(write(tmp_path / "out"))
    assert opened.events(0, 3).num_rows == 3
    assert opened.events(9, 9).num_rows == 0
    assert opened.events(0, 0).num_rows == 0
    for start, end in ((0, 4), (2, 1), (-1, 2), (8, 10)):
        with pytest.raises(DataError, match="no such events"):
            opened.events(start, end)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "timelines.arrow",
        "requests.parquet",
        "targets.parquet",
        "users.parquet",
        "items.parquet",
    ],
)
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.99])
def test_a_missing_or_truncated_file_is_refused(
    tmp_path: Path, name: str, share: float | None
) -> None:
    path = write(tmp_path / "out") / name
    if share is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(LongrecError, match=name.replace(".", r"\.")):
        Histories.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("event_end", 9, "offsets of requests do not fit; found 1 requests, first row 0"),
        ("event_start", -1, "offsets of requests do not fit"),
        ("event_start", 3, "offsets of requests do not fit"),
        ("target_end", 0, "offsets of requests do not fit"),
        ("target_end", 99, "offsets of requests do not fit"),
        ("user_row", 7, "names no user; found user_row 1..7; expected 0..4"),
        ("timestamp", 3, "not sorted by time"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(
    tmp_path: Path, column: str, value: int, message: str
) -> None:
    path = write(tmp_path / "out") / "requests.parquet"
    table = pq.read_table(path)
    values = [value, *table.column(column).to_pylist()[1:]]
    pq.write_table(
        table.set_column(
            table.schema.get_field_index(column), column, pa.array(values, pa.int64())
        ),
        path,
    )
    with pytest.raises(DataError, match=message):
        Histories.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda value: value["counts"].update(num_events=8),
            DataError,
            "found 9 num_events; expected 8 num_events",
        ),
        (
            lambda value: value["schema"].update(name="other"),
            SchemaMismatch,
            "written for another schema",
        ),
        (
            lambda value: value.update(format_version=9),
            DataError,
            "has another format version; found 9; expected 2",
        ),
        (lambda value: value.pop("schema"), DataError, "lacks a key; found no 'schema'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "out") / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(error, match=message):
        Histories.open(tmp_path / "out")


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    out = write(tmp_path / "work" / "out")
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt), HistoriesWriter(out, SCHEMA) as writer:
        writer.add(events_of(["view"], 0))
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="finish was not called"),
        HistoriesWriter(out, SCHEMA) as writer,
    ):
        writer.add(events_of(["view"], 0))
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    write(out, TEXTS[::-1])
    assert Histories.open(out).history(0).column("action").to_pylist() == ["x"]


def test_other_directories_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="will not be replaced"), HistoriesWriter(tmp_path, SCHEMA):
        pass
