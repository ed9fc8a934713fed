"""Invariants of every import: rows, ids, times and order, for every reader, unit and batch size."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.importers import EventMapping, ImportOptions, ImportReport, import_events
from longrec.data.importers.reading import json_files, parquet_files, text_files
from longrec.ids import text_id
from longrec.times import EARLIEST_MS, END_MS
from tests.longrec.data.importers.imported import assert_rows_add_up, read_dataset

COLUMNS = ("user_id", "item_id", "timestamp", "label")
NUM_UNITS_PER_MS = {"us": 1_000, "ns": 1_000_000}
BAD_IDS = ("oops", "1.5", str(2**63), str(2**64 - 1), str(-(2**63) - 1), "", None)
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3))
TIMES = st.one_of(st.integers(EARLIEST_MS, END_MS - 1), st.sampled_from([1_700_000_000_001]))


@dataclasses.dataclass(frozen=True)
class Event:
    """One row of a log: good, or bad with a value in place of its user."""

    user: int
    item: int
    time_ms: int
    bad: str | None = None
    is_bad: bool = False

    def values(self, unit: str) -> dict[str, str | None]:
        """Return the row as text."""
        user = self.bad if self.is_bad else str(self.user)
        return {
            "user_id": user,
            "item_id": str(self.item),
            "timestamp": time_text(self.time_ms, unit),
            "label": str(self.item % 2),
        }


EVENTS = st.builds(Event, IDS, IDS, TIMES)
BAD_EVENTS = st.builds(
    Event, st.just(0), IDS, TIMES, st.sampled_from(BAD_IDS), is_bad=st.just(True)
)
LOGS = st.tuples(
    st.lists(EVENTS, min_size=1, max_size=12),
    st.lists(BAD_EVENTS, max_size=6),
    st.randoms(use_true_random=False),
).map(lambda parts: shuffled(*parts))


def shuffled(good: list[Event], bad: list[Event], random: Any) -> list[Event]:
    events = [*good, *bad]
    random.shuffle(events)
    return events


def time_text(time_ms: int, unit: str) -> str:
    """Return a time in a unit; seconds have decimals."""
    if unit == "s":
        return str(Decimal(time_ms).scaleb(-3))
    if unit == "iso":
        return str(pa.scalar(time_ms, pa.timestamp("ms")))
    return str(time_ms * NUM_UNITS_PER_MS.get(unit, 1))


def write_csv(path: Path, rows: list[dict[str, str | None]]) -> None:
    lines = [",".join(row[name] or "" for name in COLUMNS) for row in rows]
    # Blank lines are no rows.
    path.write_text("\n\n".join([",".join(COLUMNS), *lines]) + "\n\n")


def write_json(path: Path, rows: list[dict[str, str | None]]) -> None:
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")


def write_parquet(path: Path, rows: list[dict[str, str | None]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def write_encoded_parquet(path: Path, rows: list[dict[str, str | None]]) -> None:
    table = pa.Table.from_pylist(rows)
    columns = [column.combine_chunks().dictionary_encode() for column in table.columns]
    pq.write_table(pa.table(columns, names=table.column_names), path)


FORMATS = {
    "log.csv": write_csv,
    "log.jsonl": write_json,
    "log.parquet": write_parquet,
    "encoded.parquet": write_encoded_parquet,
}


def import_log(
    directory: Path,
    events: list[Event],
    *,
    name: str,
    unit: str,
    batch: int,
    **mapping: Any,
) -> ImportReport:
    """Write a log, import it in batches of a size and return the report."""
    rows = [event.values(unit) for event in events]
    FORMATS[name](directory / name, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "BATCH_ROWS", batch)
        patch.setattr(json_files, "BATCH_LINES", batch)
        patch.setattr(text_files, "BLOCK_BYTES", max(batch * 60, 256))
        return import_events(
            directory / name,
            directory / "d",
            EventMapping(timestamp_unit=unit, labels=("label",), **mapping),
            options=ImportOptions(max_reject_share=1, rows_per_part=5),
        )


def imported(directory: Path) -> dict[int, list[tuple[int, int]]]:
    """Return user -> its (time, item), in the order of the dataset."""
    found = defaultdict(list)
    for row in read_dataset(directory / "d")[0]:
        found[row["user_id"]].append((row["timestamp"], row["item_id"]))
    return dict(found)


def expected(events: list[Event]) -> dict[int, list[tuple[int, int]]]:
    """Return the same of a log: by time, and rows of one time in the order of the log."""
    found = defaultdict(list)
    for event in sorted(events, key=lambda event: event.time_ms):
        found[event.user].append((event.time_ms, event.item))
    return dict(found)


@given(
    events=LOGS,
    name=st.sampled_from(sorted(FORMATS)),
    unit=st.sampled_from(["s", "ms", "us", "ns", "iso"]),
    batch=st.sampled_from([1, 2, 7, 100_000]),
)
@settings(max_examples=25, deadline=None)
def test_every_row_is_accepted_exactly_or_rejected_by_name(
    events: list[Event],
    name: str,
    unit: str,
    batch: int,
) -> None:
    good = [event for event in events if not event.is_bad]
    with tempfile.TemporaryDirectory() as folder:
        report = import_log(Path(folder), events, name=name, unit=unit, batch=batch)
        assert imported(Path(folder)) == expected(good)
    num_guests = sum(event.is_bad and not event.bad for event in events)
    assert report.row_counts["events"] == {
        "read": len(events),
        "accepted": len(good),
        "filtered": num_guests,
        "rejected": len(events) - len(good) - num_guests,
    }
    assert_rows_add_up(report)
    rows = Counter((event.user, event.item, event.time_ms) for event in good)
    assert report.num_repeats == sum(count - 1 for count in rows.values())


@given(
    texts=st.lists(st.sampled_from(["a", "A", " a", "ü", "007", "7", "x y", "-1"]), min_size=1),
    name=st.sampled_from(sorted(FORMATS)),
    batch=st.sampled_from([1, 100_000]),
)
@settings(max_examples=8, deadline=None)
def test_text_ids_are_those_of_their_texts(texts: list[str], name: str, batch: int) -> None:
    events = [Event(0, 1, EARLIEST_MS, text, is_bad=True) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        import_log(Path(folder), events, name=name, unit="ms", batch=batch, text_ids=("user",))
        found = imported(Path(folder))
    assert {user: len(rows) for user, rows in found.items()} == Counter(map(text_id, texts))
