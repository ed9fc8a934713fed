"""Profiles of histories, or of those of one shard: timelines, and the history of each request.

The files are read without the checks of `Histories.open`, since these would refuse what is wrong
instead of naming it. Memory is one row per request and per user. Timelines are mapped and read
one record batch at a time.

    timeline of a user      | e e e e e e e e |
    history of a request      [ e e e ) ^ the next event is at or after the request time
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data.columns import Int64
from longrec.data.quality.column_profiles import (
    ColumnProfile,
    ExpectedColumn,
    file_mismatches,
    schema_mismatches,
)
from longrec.data.quality.dataset_profiles import known_ids
from longrec.data.quality.table_profile import TableProfile
from longrec.data.quality.user_profiles import NULL, UserProfile, is_unknown, to_int64
from longrec.data.timelines import Mask, steps_back
from longrec.errors import DataError
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema
from longrec.times import EARLIEST_MS, END_MS

TIMELINE_COLUMNS = (USER_ID, "event_start", "event_end")
REQUEST_COLUMNS = (
    REQUEST_ID,
    "user_row",
    TIMESTAMP,
    "event_start",
    "event_end",
    "target_start",
    "target_end",
)


@dataclasses.dataclass(frozen=True, slots=True)
class TimelineFile:
    """The mapped timelines of all users.

    Args:
        batches: record batches of the Arrow file.
        schema: its columns.
        offsets: int64 [num_batches + 1], offset of the first event of each record batch.
    """

    batches: tuple[pa.RecordBatch, ...]
    schema: pa.Schema
    offsets: Int64

    @classmethod
    def open(cls, path: Path) -> TimelineFile:
        """Open an Arrow file.

        Raises:
            DataError: the file is missing or not an Arrow file.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = tuple(reader.get_batch(index) for index in range(reader.num_record_batches))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is not a readable Arrow file",
                found=str(error).splitlines()[0],
                fix="Run the retrieval again.",
            ) from error
        sizes = [batch.num_rows for batch in batches]
        return cls(
            batches,
            reader.schema,
            np.cumsum([0, *sizes], dtype=np.int64),
        )

    @property
    def num_events(self) -> int:
        """Number of events of all users."""
        return int(self.offsets[-1])

    def read_column(self, name: str) -> Iterator[tuple[int, Int64]]:
        """Yield the offset and the values of an integer column, one record batch at a time.

        The values are int64, NULL for null.
        """
        for offset, batch in zip(
            self.offsets[:-1].tolist(),
            self.batches,
            strict=True,
        ):
            yield offset, to_int64(batch.column(name))

    def take(self, name: str, offsets: Int64) -> Int64:
        """Return the values of an integer column at any offsets, NULL outside, int64."""
        taken = np.full(len(offsets), NULL, np.int64)
        for start, values in self.read_column(name):
            is_here = (offsets >= start) & (offsets < start + len(values))
            taken[is_here] = values[offsets[is_here] - start]
        return taken

    def profile_column(self, column: ExpectedColumn) -> ColumnProfile:
        """Return the profile of a column over all record batches."""
        num_nulls = 0
        minimums = []
        maximums = []
        for batch in self.batches:
            values = batch.column(column.name)
            if column.dtype == "float64":
                values = pc.if_else(pc.is_nan(values), None, values)
            num_nulls += values.null_count
            if column.dtype == "string" or values.null_count == len(values):
                continue
            extremes = pc.min_max(values).as_py()
            minimums.append(extremes["min"])
            maximums.append(extremes["max"])
        return ColumnProfile(
            num_rows=self.num_events,
            num_nulls=num_nulls,
            minimum=min(minimums, default=None),
            maximum=max(maximums, default=None),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedRequests:
    """The requests as arrays, which may be wrong in any way.

    Args:
        columns: column -> int64 [R].
        splits: str [R].
        has_user: bool [R], whether `user_row` is a row of the users. Other columns are looked
            at for these requests only.
        timeline_starts, timeline_ends: int64 [R], timeline of the user; 0 without a user.
    """

    columns: dict[str, Int64]
    splits: npt.NDArray[np.str_]
    has_user: Mask
    timeline_starts: Int64
    timeline_ends: Int64

    def __len__(self) -> int:
        return len(self.splits)

    @classmethod
    def read(cls, path: Path, users: Mapping[str, Int64]) -> CheckedRequests:
        """Read requests.parquet.

        Args:
            path: the file.
            users: the timelines, see `read_timelines`.
        """
        table = pq.read_table(path, columns=[*REQUEST_COLUMNS, "split"])
        columns = {name: to_int64(table[name]) for name in REQUEST_COLUMNS}
        splits = pc.fill_null(table["split"], "null").to_pylist()
        user_rows = columns["user_row"]
        has_user = (user_rows >= 0) & (user_rows < len(users[USER_ID]))
        return cls(
            columns=columns,
            splits=np.asarray(splits, dtype=np.str_),
            has_user=has_user,
            timeline_starts=_take_or_zero(
                users["event_start"],
                user_rows,
                has_user,
            ),
            timeline_ends=_take_or_zero(users["event_end"], user_rows, has_user),
        )


def profile_histories(directory: Path, manifest: Mapping[str, Any]) -> dict[str, TableProfile]:
    """Return the profiles of the events, of the timelines and of the histories of requests.

    Args:
        directory: the histories, or those of a shard of the users.
        manifest: content of its manifest.json.

    Raises:
        DataError: a file is missing or unreadable.
    """
    schema = Schema.from_dict(manifest["schema"])
    timelines = TimelineFile.open(directory / "timelines.arrow")
    mismatches = [*_timeline_mismatches(schema, timelines), *table_mismatches(directory, schema)]
    if mismatches:
        events = TableProfile(counts={"num_rows": timelines.num_events}, mismatches=mismatches)
        return {
            "events": events,
            "timelines": TableProfile(),
            "histories": TableProfile(),
        }
    users = read_timelines(directory)
    requests = CheckedRequests.read(directory / "requests.parquet", users)
    known = known_ids(directory / "items.parquet", ITEM_ID)
    masks = _wrong_histories(int(manifest["max_history"]), timelines, requests)
    if schema.has_baskets:
        masks["num_split_baskets"] = _splits_basket(timelines, requests)
    histories = _count_by_user(users[USER_ID], requests, masks)
    return {
        "events": _profile_events(schema, timelines, known),
        "timelines": TableProfile(users=_profile_timelines(timelines, users)),
        "histories": TableProfile(users=histories),
    }


def read_timelines(directory: Path) -> dict[str, Int64]:
    """Return user_id, event_start and event_end, int64 [U], in the order of the timelines."""
    table = pq.read_table(directory / "users.parquet", columns=list(TIMELINE_COLUMNS))
    return {name: to_int64(table[name]) for name in table.column_names}


def event_columns(schema: Schema) -> list[ExpectedColumn]:
    """Return the columns of timelines that have bounds."""
    return [
        ExpectedColumn(ITEM_ID, "int64", minimum=0),
        ExpectedColumn(
            TIMESTAMP,
            "int64",
            minimum=EARLIEST_MS,
            maximum=END_MS - 1,
        ),
        *(ExpectedColumn.of(feature) for feature in schema.event),
    ]


def table_mismatches(directory: Path, schema: Schema) -> list[str]:
    """Return one line per column that users, requests or targets lack or have with another type."""
    requests = [ExpectedColumn(name, "int64") for name in REQUEST_COLUMNS]
    labels = [ExpectedColumn(task, "int8") for task in schema.task_names]
    expected = {
        "users": [ExpectedColumn(name, "int64") for name in TIMELINE_COLUMNS],
        "requests": [*requests, ExpectedColumn("split", "string")],
        "targets": [ExpectedColumn(ITEM_ID, "int64"), *labels],
    }
    return [
        f"{name}.parquet: {line}"
        for name, columns in expected.items()
        for line in file_mismatches(directory / f"{name}.parquet", columns)
    ]


def _timeline_mismatches(schema: Schema, timelines: TimelineFile) -> list[str]:
    keys = [ITEM_ID, TIMESTAMP, EVENT_SEQ, *([BASKET_ID] if schema.has_baskets else [])]
    columns = [ExpectedColumn(name, "int64") for name in keys]
    columns += [ExpectedColumn.of(feature) for feature in schema.event]
    mismatches = schema_mismatches(timelines.schema, columns)
    return [f"timelines.arrow: {line}" for line in mismatches]


def _take_or_zero(
    values: Int64,
    rows: Int64,
    mask: Mask,
) -> Int64:
    taken = np.zeros(len(rows), np.int64)
    taken[mask] = values[rows[mask]]
    return taken


def _profile_events(
    schema: Schema,
    timelines: TimelineFile,
    known_items: Int64,
) -> TableProfile:
    columns = {column.name: timelines.profile_column(column) for column in event_columns(schema)}
    num_unknown = 0
    for _, items in timelines.read_column(ITEM_ID):
        num_unknown += int(is_unknown(items, known_items).sum())
    counts = {"num_rows": timelines.num_events, "num_unknown_items": num_unknown}
    return TableProfile(columns, counts)


def _profile_timelines(timelines: TimelineFile, users: Mapping[str, Int64]) -> UserProfile:
    """Return the mistakes in the timeline of each user: outside the file, gaps, disorder."""
    starts = users["event_start"]
    ends = users["event_end"]
    is_outside = (starts < 0) | (ends < starts) | (ends > timelines.num_events)
    previous_ends = np.concatenate([[0], ends[:-1]])
    has_gap = starts != previous_ends
    if len(has_gap):
        has_gap[-1] |= ends[-1] != timelines.num_events  # events after the last timeline
    columns = {
        USER_ID: users[USER_ID],
        "num_outside": is_outside.astype(np.int64),
        "num_gaps": has_gap.astype(np.int64),
        "num_disordered": _count_disordered(timelines, starts),
        "length": ends - starts,
    }
    return UserProfile.merged([UserProfile(columns)])


def _count_disordered(timelines: TimelineFile, starts: Int64) -> Int64:
    """Return the number of events of each user that are before the previous one, int64 [U]."""
    disordered = [np.zeros(0, np.int64)]
    last_time = np.zeros(0, np.int64)  # the last event of the record batch before
    last_seq = np.zeros(0, np.int64)
    time_batches = timelines.read_column(TIMESTAMP)
    seq_batches = timelines.read_column(EVENT_SEQ)
    for time_batch, seq_batch in zip(time_batches, seq_batches, strict=True):
        offset, times = time_batch
        _, seqs = seq_batch
        if not len(times):
            continue
        first_offset = offset - len(last_time)
        is_disordered = steps_back(np.append(last_time, times), np.append(last_seq, seqs))
        disordered.append(first_offset + 1 + np.flatnonzero(is_disordered))
        last_time = times[-1:]
        last_seq = seqs[-1:]
    offsets = np.concatenate(disordered)
    offsets = offsets[~np.isin(offsets, starts)]  # the event before is of another user
    owners = np.searchsorted(starts, offsets, side="right") - 1
    return _count_rows(owners[owners >= 0], len(starts))


def _count_by_user(
    users: Int64,
    requests: CheckedRequests,
    masks: Mapping[str, Mask],
) -> UserProfile:
    """Return the number of requests of each user, and of those in each mask.

    Args:
        users: int64 [U], user ids.
        requests: the requests.
        masks: name of a count -> the requests that it counts, bool [R].
    """
    rows = requests.columns["user_row"][requests.has_user]
    columns = {USER_ID: users, "num_rows": _count_rows(rows, len(users))}
    for name, mask in masks.items():
        masked_rows = rows[mask[requests.has_user]]
        columns[name] = _count_rows(masked_rows, len(users))
    return UserProfile.merged([UserProfile(columns)])


def _count_rows(rows: Int64, num_rows: int) -> Int64:
    return np.bincount(rows, minlength=num_rows).astype(np.int64)


def _wrong_histories(
    max_history: int,
    timelines: TimelineFile,
    requests: CheckedRequests,
) -> dict[str, Mask]:
    """Return the requests with a wrong history, bool [R], by kind of mistake."""
    starts = requests.columns["event_start"]
    ends = requests.columns["event_end"]
    request_times = requests.columns[TIMESTAMP]
    lengths = ends - starts
    is_inside = _is_inside_timeline(requests)
    last_times = timelines.take(TIMESTAMP, ends - 1)
    next_times = timelines.take(TIMESTAMP, ends)
    has_events = is_inside & (lengths > 0)
    has_next = is_inside & (ends < requests.timeline_ends)
    starts_late = (starts > requests.timeline_starts) & (lengths < max_history)
    # `_history_suite` says in words what each count is about.
    return {
        "num_outside": requests.has_user & ~is_inside,
        "num_future": has_events & (last_times >= request_times),
        "num_short": has_next & (next_times < request_times),
        "num_too_long": is_inside & (lengths > max_history),
        "num_late_starts": is_inside & starts_late,
    }


def _splits_basket(timelines: TimelineFile, requests: CheckedRequests) -> Mask:
    """Return the requests with a history that ends within a basket, bool [R]."""
    ends = requests.columns["event_end"]
    has_events = ends > requests.columns["event_start"]
    has_next = ends < requests.timeline_ends
    last_baskets = timelines.take(BASKET_ID, ends - 1)
    next_baskets = timelines.take(BASKET_ID, ends)
    is_between = _is_inside_timeline(requests) & has_events & has_next
    return np.asarray(is_between & (last_baskets == next_baskets))


def _is_inside_timeline(requests: CheckedRequests) -> Mask:
    """Return whether a request has a user and its history is in the user's timeline, bool [R]."""
    starts = requests.columns["event_start"]
    ends = requests.columns["event_end"]
    is_inside = (starts >= requests.timeline_starts) & (ends <= requests.timeline_ends)
    return np.asarray(requests.has_user & is_inside & (ends >= starts))
