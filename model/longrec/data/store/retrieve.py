"""The histories of a dataset's requests, read through the offline door: users' timelines, and requests as offsets into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data import features, history
from longrec.data.histories import SPLITS, HistoriesWriter, split_moments, split_names
from longrec.data.store.door import Door, restored
from longrec.data.store.versions import PUBLISH_FIRST, Published
from longrec.errors import DataError, SchemaMismatch, StoreError
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

SLICE_EVENTS = 4_000_000
"""Events that one question to the offline store brings into memory."""

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class RetrieveReport:
    """What `retrieve` wrote.

    Args:
        num_requests, num_warmup, num_train, num_eval: requests, and those of each split.
        num_targets, num_users, num_events, num_items: rows of the histories' tables.
        users_without_history: users with a request that the store has no history of.
        requests_without_history: requests with no event before them.
        requests_at_the_bound: requests with more events before them than are kept.
        longest_history: events of the longest history kept.
        split_moment_ms: the first moment of the evaluation.
    """

    num_requests: int
    num_warmup: int
    num_train: int
    num_eval: int
    num_targets: int
    num_users: int
    num_events: int
    num_items: int
    users_without_history: int
    requests_without_history: int
    requests_at_the_bound: int
    longest_history: int
    split_moment_ms: int


def retrieve(dataset_dir: str | Path, home: str | Path, repo_dir: str | Path, out_dir: str | Path, data: DataConfig,
             seed: int) -> RetrieveReport:
    """Returns counts after writing the histories of a dataset's requests, read through the feature store.

    Feast is asked for one row per user, a bounded number of users at a time, as of the end of the published log: pushed events are not
    in it, so that the same dataset gives the same histories. Requests are offsets into the users' timelines:
    the events strictly before the moment, the `data.max_history` most recent of them.

    Args:
        dataset_dir: the dataset that was published; its targets are used.
        home, repo_dir: as for `publish`.
        out_dir: new, empty, or histories that are replaced.
        data: bounds and shares of the split.
        seed: of the sample of requests, where `data.max_requests` asks for one.

    Raises:
        DataError: the dataset cannot be used or has no request.
        SchemaMismatch: the store was published for another schema.
        StoreError: nothing, or another dataset, was published; or Feast lost a row.
    """
    source, published = layout.Dataset.open(dataset_dir), Published.open(home)
    _check_same(source, published)
    requests = _Requests.of(source).sample(data.max_requests, seed)
    door = Door(published, repo_dir)
    with HistoriesWriter(out_dir, source.schema) as writer:
        cut = _write_timelines(door, writer, requests, data)
        targets, target_ends = requests.targets(source)
        items = door.items(layout.int64_of(source.items(), ITEM_ID))
        warmup_end, split_moment = split_moments(requests.moments, data.warmup_fraction, data.eval_fraction)
        splits = split_names(requests.moments, warmup_end, split_moment)
        table = pa.table({
            REQUEST_ID: requests.request_ids, "user_row": cut.user_rows, TIMESTAMP: requests.moments, "event_start": cut.starts,
            "event_end": cut.ends, "target_start": np.append(0, target_ends[:-1]), "target_end": target_ends,
            "split": pa.array(splits, pa.string())})
        manifest = {
            "dataset": source.name, "dataset_facts": source.facts, "dataset_hash": source.facts.get("content_hash"),
            "store_version": published.manifest["version"],
            "time_range_ms": [int(requests.moments[0]), int(requests.moments[-1])], "warmup_end_ms": warmup_end,
            "split_moment_ms": split_moment, "max_history": data.max_history, "seed": seed,
            "splits": {name: splits.count(name) for name in SPLITS}, "history_length": layout.quantiles(cut.ends - cut.starts)}
        writer.finish(cut.users, table, targets, items, manifest)
        return _retrieve_report(manifest, cut, targets, items)


@dataclasses.dataclass(frozen=True, slots=True)
class _Requests:
    """Requests sorted by (moment, request_id): ids, users, moments (ms), and where their targets are: part, first row, end row."""

    request_ids: Int64
    user_ids: Int64
    moments: Int64
    parts: Int64
    starts: Int64
    ends: Int64

    @classmethod
    def of(cls, source: layout.Dataset) -> _Requests:
        """Returns all requests of a dataset."""
        columns: list[list[Int64]] = [[] for _ in dataclasses.fields(cls)]
        for part in range(source.num_parts):
            table = source.targets(part, [REQUEST_ID, USER_ID, TIMESTAMP])
            keys = [layout.int64_of(table, name) for name in (REQUEST_ID, USER_ID, TIMESTAMP)]
            starts = layout.group_starts(*keys)
            values = (*(key[starts] for key in keys), np.full(len(starts), part), starts, np.append(starts[1:], len(table)))
            for column, value in zip(columns, values, strict=True):
                column.append(value[:len(starts)])
        requests = cls(*(np.concatenate(column).astype(np.int64) for column in columns))
        ids, counts = np.unique(requests.request_ids, return_counts=True)
        if not len(ids):
            raise DataError(f"{source.path} holds no requests", expected="targets to train on", fix="Import with sampled negatives.")
        if len(doubles := ids[counts > 1]):
            raise DataError("the targets of a request must follow each other and share user and moment",
                            found=f"{len(doubles)} requests that do not, for example {doubles[0]}", fix=layout.AGAIN)
        return requests._take(np.lexsort((requests.request_ids, requests.moments)))

    def sample(self, max_requests: int, seed: int) -> _Requests:
        """Returns a seeded sample of at most `max_requests` requests, in the same order; all for 0."""
        if not 0 < max_requests < len(self.moments):
            return self
        return self._take(np.sort(np.random.default_rng(seed).choice(len(self.moments), max_requests, replace=False)))

    def targets(self, source: layout.Dataset) -> tuple[pa.Table, Int64]:
        """Returns item_id and labels of all targets, request after request, and the end offset of each request."""
        names, tables, counts = [ITEM_ID, *source.schema.task_names], [], self.ends - self.starts
        first, num_rows = np.zeros(len(counts), np.int64), 0
        for part in np.unique(self.parts).tolist():
            mine = np.flatnonzero(self.parts == part)
            tables.append(source.targets(part, names).take(pa.array(_ranges(self.starts[mine], counts[mine]))))
            first[mine] = num_rows + np.cumsum(counts[mine]) - counts[mine]
            num_rows += tables[-1].num_rows
        return pa.concat_tables(tables).take(pa.array(_ranges(first, counts))), np.cumsum(counts)

    def _take(self, rows: Int64) -> _Requests:
        return _Requests(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """The users' table, and for each request its user's row, its events' offsets, and whether older events were left out."""

    users: pa.Table
    user_rows: Int64
    starts: Int64
    ends: Int64
    bounded: npt.NDArray[np.bool_]


def _write_timelines(door: Door, writer: HistoriesWriter, requests: _Requests, data: DataConfig) -> _Cut:
    """Returns the cut of all requests after writing the timelines of their users, a bounded number of users at a time."""
    user_ids, user_rows = np.unique(requests.user_ids, return_inverse=True)
    by_user = np.argsort(user_rows, kind="stable")
    request_ends = np.searchsorted(user_rows[by_user], np.arange(len(user_ids)), side="right")
    before, lower, tables = np.zeros(len(user_rows), np.int64), 0, []
    for start, end in _shards(door.history_lengths(user_ids), data.shard_users):
        rows = door.users(user_ids[start:end])
        timelines, offsets = _timelines(rows, door.published.schema)
        times = history.timestamps(timelines)
        for row in range(start, end):
            mine, lower = by_user[lower:request_ends[row]], int(request_ends[row])
            own = times[offsets[row - start]:offsets[row - start + 1]]
            before[mine] = np.searchsorted(own, requests.moments[mine], side="left")
        offsets += writer.add(timelines)[0]
        spans = {"user_row": np.arange(start, end), USER_ID: user_ids[start:end], "event_start": offsets[:-1], "event_end": offsets[1:]}
        tables.append(pa.table({**spans, **restored(rows, door.published.schema.user)}))
    users = pa.concat_tables(tables)
    first = layout.int64_of(users, "event_start")[user_rows]
    ends = first + before
    return _Cut(users, user_rows.astype(np.int64), np.maximum(first, ends - data.max_history), ends, before > data.max_history)


def _timelines(rows: pa.Table, schema: Schema) -> tuple[pa.RecordBatch, Int64]:
    """Returns the events of all users of a retrieval, one after another, and the offsets of each user in them (one more than users)."""
    parts = [history.stored(value.as_buffer(), schema) for value in rows.column(features.HISTORY)]
    lengths = np.array([part.num_rows for part in parts], np.int64)
    expected = np.asarray(rows.column(features.HISTORY_LENGTH).fill_null(0), np.int64)
    if len(wrong := np.flatnonzero(lengths != expected)):
        raise StoreError("a history does not have its stated length", found=f"{lengths[wrong[0]]} events", expected=f"{expected[wrong[0]]}",
                         fix=PUBLISH_FIRST)
    return history.joined(parts, schema), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: Int64, counts: Int64) -> Int64:
    """Returns starts[0], starts[0]+1, ... (counts[0] values), then those of starts[1], and so on."""
    ends = np.cumsum(counts)
    shifts: Int64 = np.repeat(starts - (ends - counts), counts)
    return np.arange(len(shifts)) + shifts


def _shards(lengths: Int64, shard_users: int) -> Iterator[tuple[int, int]]:
    """Yields [start, end) rows of users: at most `shard_users` of them, and at most SLICE_EVENTS events unless one user has more."""
    ends, start = np.cumsum(lengths), 0
    while start < len(lengths):
        base = int(ends[start] - lengths[start])
        end = max(start + 1, min(start + shard_users, int(np.searchsorted(ends, base + SLICE_EVENTS, side="right"))))
        yield start, end
        start = end


def _check_same(source: layout.Dataset, published: Published) -> None:
    if lines := source.schema.differences(published.schema):
        raise SchemaMismatch("the feature store was published for another schema", found="; ".join(lines), fix=PUBLISH_FIRST)
    if source.facts.get("content_hash") != published.manifest.get("dataset_hash"):
        raise StoreError(f"the feature store holds features of another dataset than {source.path}", found=published.manifest.get("name"),
                         expected=source.name, fix=PUBLISH_FIRST)


def _retrieve_report(manifest: Mapping[str, Any], cut: _Cut, targets: pa.Table, items: pa.Table) -> RetrieveReport:
    kept, splits = cut.ends - cut.starts, manifest["splits"]
    lengths = layout.int64_of(cut.users, "event_end") - layout.int64_of(cut.users, "event_start")
    return RetrieveReport(
        num_requests=len(kept), num_warmup=splits["warmup"], num_train=splits["train"], num_eval=splits["eval"],
        num_targets=targets.num_rows, num_users=len(lengths), num_events=int(lengths.sum()), num_items=items.num_rows,
        users_without_history=int((lengths == 0).sum()), requests_without_history=int((kept == 0).sum()),
        requests_at_the_bound=int(cut.bounded.sum()), longest_history=int(kept.max()), split_moment_ms=manifest["split_moment_ms"])
