"""Timelines of users for retrieval: from the offline store, or from the histories of shards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data import history
from longrec.data.columns import HISTORY, HISTORY_LENGTH, Int64, int64_column
from longrec.data.histories import Histories, user_schema
from longrec.data.histories_writer import HistoriesWriter
from longrec.data.shards import part_of
from longrec.data.store.feast_adapter import FeastAdapter, restore_features
from longrec.data.store.request_table import RequestTable
from longrec.data.store.versions import PUBLISH_FIRST
from longrec.errors import StoreError
from longrec.schema import USER_ID, Schema

MAX_GROUP_EVENTS = 4_000_000
"""Largest number of events that one offline query loads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timelines:
    """Timelines of a group of users.

    Args:
        events: events of the users, one user after another.
        offsets: int64 [users + 1]; events of user u are offsets[u]:offsets[u+1].
        features: user features, one row per user.
    """

    events: pa.RecordBatch
    offsets: Int64
    features: pa.Table


@dataclasses.dataclass(frozen=True, slots=True)
class RequestSpans:
    """Where the history of each request is.

    Args:
        users: rows of users.parquet.
        user_rows: int64 [R], row of the user of each request.
        starts, ends: int64 [R], offsets of the events of each request.
        is_truncated: bool [R], whether older events were left out.
    """

    users: pa.Table
    user_rows: Int64
    starts: Int64
    ends: Int64
    is_truncated: npt.NDArray[np.bool_]


class TimelineSource(Protocol):
    """A source of users' timelines."""

    def lengths(self, user_ids: Int64) -> Int64:
        """Return the number of events of each user (sorted, unique ids)."""

    def read(self, user_ids: Int64) -> Timelines:
        """Return the timelines of users of one part (sorted, unique ids)."""


class OfflineTimelines:
    """Timelines from the offline store.

    Args:
        adapter: adapter of the published version.
    """

    def __init__(self, adapter: FeastAdapter) -> None:
        self._adapter = adapter

    def lengths(self, user_ids: Int64) -> Int64:
        """Return the number of events of each user (sorted, unique ids)."""
        if not len(user_ids):
            return user_ids
        return self._adapter.history_lengths(user_ids)

    def read(self, user_ids: Int64) -> Timelines:
        """Return the timelines of users of one part (sorted, unique ids)."""
        schema = self._adapter.published.schema
        rows = self._adapter.base_rows(user_ids)
        events, offsets = _unpack_rows(rows, schema)
        features = pa.table(restore_features(rows, schema.user))
        return Timelines(events, offsets, features)


class ShardTimelines:
    """Timelines from the histories of shards.

    Args:
        shards: all shards of a dataset, in order.
    """

    def __init__(self, shards: Sequence[Histories]) -> None:
        tables = []
        for number, shard in enumerate(shards):
            tables.append(_user_spans(shard, number))
        ids, shard_numbers, rows, starts, ends = np.concatenate(tables, axis=1)
        order = np.argsort(ids, kind="stable")
        self._shards = shards
        self._ids = ids[order]
        self._shard_numbers = shard_numbers[order]
        self._rows = rows[order]
        self._starts = starts[order]
        self._ends = ends[order]

    def lengths(self, user_ids: Int64) -> Int64:
        """Return the number of events of each user (sorted, unique ids)."""
        positions = np.searchsorted(self._ids, user_ids)
        all_lengths: Int64 = self._ends - self._starts
        return all_lengths[positions]

    def read(self, user_ids: Int64) -> Timelines:
        """Return the timelines of users of one part (sorted, unique ids)."""
        positions = np.searchsorted(self._ids, user_ids)
        shard_number = self._shard_numbers[positions[0]]  # users of a part share a shard
        shard = self._shards[shard_number]
        starts = self._starts[positions].tolist()
        ends = self._ends[positions].tolist()
        parts = list(map(shard.events, starts, ends))
        events = history.concatenate(parts, shard.schema)
        names = [feature.name for feature in shard.schema.user]
        rows = pa.array(self._rows[positions])
        return Timelines(
            history.compact_dictionaries(events),
            _offsets(self.lengths(user_ids)),
            shard.users.select(names).take(rows),
        )


def _user_spans(shard: Histories, number: int) -> Int64:
    """Return ids, shard number, row, start and end of the timelines of a shard, int64 [5, U]."""
    ids = int64_column(shard.users, USER_ID)
    rows = np.arange(len(ids))
    return np.stack(
        [
            ids,
            np.full(len(ids), number),
            rows,
            int64_column(shard.users, "event_start"),
            int64_column(shard.users, "event_end"),
        ]
    )


def write_timelines(
    source: TimelineSource,
    writer: HistoriesWriter,
    requests: RequestTable,
    data: DataConfig,
    num_parts: int,
) -> RequestSpans:
    """Write the timelines of the requests' users and return where each history is.

    A bounded number of users is in memory at a time. Users come in the order of the dataset's
    parts, and of their ids within a part.

    Args:
        source: source of the timelines.
        writer: writer of the histories.
        requests: the requests.
        data: `shard_users` bounds a group of users, `max_history` a history.
        num_parts: number of parts of the dataset.
    """
    ids, rows = np.unique(requests.user_ids, return_inverse=True)
    order = np.lexsort((ids, part_of(ids, num_parts)))
    user_ids = ids[order]
    row_of_id = np.argsort(order)  # the inverse of `order`
    user_rows = row_of_id[rows].astype(np.int64)
    requests_by_user = _RequestsByUser.of(requests, user_rows, len(user_ids))
    lengths = source.lengths(ids)[order]
    parts = part_of(user_ids, num_parts)
    num_before = np.zeros(len(user_rows), np.int64)
    tables = [user_schema(writer.schema).empty_table()]
    for start, end in _user_groups(lengths, parts, data.shard_users):
        timelines = source.read(user_ids[start:end])
        for request_rows, counts in requests_by_user.events_before(start, timelines):
            num_before[request_rows] = counts
        first_event, _ = writer.add(timelines.events)
        tables.append(
            _user_rows(
                user_ids[start:end],
                start,
                first_event,
                timelines,
            )
        )
    users = pa.concat_tables(tables)
    first_events = int64_column(users, "event_start")[user_rows]
    ends = first_events + num_before
    return RequestSpans(
        users,
        user_rows,
        starts=np.maximum(first_events, ends - data.max_history),
        ends=ends,
        is_truncated=num_before > data.max_history,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _RequestsByUser:
    """Requests grouped by user: those of user u are order[bounds[u]:bounds[u+1]]."""

    order: Int64
    bounds: Int64
    request_times: Int64

    @classmethod
    def of(
        cls,
        requests: RequestTable,
        user_rows: Int64,
        num_users: int,
    ) -> _RequestsByUser:
        order = np.argsort(user_rows, kind="stable")
        users = np.arange(num_users + 1)
        bounds = np.searchsorted(user_rows[order], users)
        return cls(order, bounds, requests.request_times)

    def of_user(self, user: int) -> Int64:
        """Return the rows of a user's requests."""
        start = self.bounds[user]
        end = self.bounds[user + 1]
        return self.order[start:end]

    def events_before(
        self,
        first_user: int,
        timelines: Timelines,
    ) -> Iterator[tuple[Int64, Int64]]:
        """Yield the rows of each user's requests and the number of events strictly before each.

        Args:
            first_user: row of the first user of the group.
            timelines: timelines of the group.
        """
        times = history.timestamps(timelines.events)
        spans = itertools.pairwise(timelines.offsets.tolist())
        for user, (start, end) in enumerate(spans, first_user):
            requests = self.of_user(user)
            request_times = self.request_times[requests]
            yield requests, np.searchsorted(times[start:end], request_times, side="left")


def _user_rows(
    user_ids: Int64,
    first_row: int,
    first_event: int,
    timelines: Timelines,
) -> pa.Table:
    """Return the rows of users.parquet of a group of users."""
    offsets = timelines.offsets + first_event
    rows = np.arange(first_row, first_row + len(user_ids))
    columns = {
        "user_row": pa.array(rows),
        USER_ID: pa.array(user_ids),
        "event_start": pa.array(offsets[:-1]),
        "event_end": pa.array(offsets[1:]),
    }
    for name in timelines.features.column_names:
        columns[name] = timelines.features.column(name)
    return pa.table(columns)


def _unpack_rows(rows: pa.Table, schema: Schema) -> tuple[pa.RecordBatch, Int64]:
    """Return the events of all users of an offline query, and the offsets of each user."""
    histories = []
    for payload in rows.column(HISTORY):
        own = history.unpack_or_empty(payload.as_buffer(), schema)
        histories.append(own)
    lengths = np.array([own.num_rows for own in histories], np.int64)
    stated = rows.column(HISTORY_LENGTH).fill_null(0)
    expected = np.asarray(stated, np.int64)
    wrong = np.flatnonzero(lengths != expected)
    if len(wrong):
        raise StoreError(
            "a history does not have its stated length",
            found=f"{lengths[wrong[0]]} events",
            expected=f"{expected[wrong[0]]}",
            fix=PUBLISH_FIRST,
        )
    return history.concatenate(histories, schema), _offsets(lengths)


def _offsets(lengths: Int64) -> Int64:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _user_groups(
    lengths: Int64,
    parts: Int64,
    max_users: int,
) -> Iterator[tuple[int, int]]:
    """Yield [start, end) rows of groups of users of one part.

    A group has at most `max_users` users. It has at most MAX_GROUP_EVENTS events, unless one user
    has more.

    Args:
        lengths: int64, events of each user.
        parts: int64, part of each user, sorted.
        max_users: largest number of users in a group.
    """
    cumulative = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        events_before = int(cumulative[start] - lengths[start])
        part_end = int(np.searchsorted(parts, parts[start], side="right"))
        max_events = events_before + MAX_GROUP_EVENTS
        events_end = int(np.searchsorted(cumulative, max_events, side="right"))
        end = min(start + max_users, part_end, events_end)
        end = max(start + 1, end)
        yield start, end
        start = end
