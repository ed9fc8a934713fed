"""The histories of a dataset's requests, read through the offline door: users' timelines, and requests as offsets into them.

    targets --_Requests--> requests by time, and whose they are
    offline door | shards --_Timelines--> the users' events, a group of users of one part of the dataset at a time --> timelines.arrow

Shards of a dataset are retrieved one by one, each as histories of its own; `join` writes them as one retrieval would have, from the same
requests and in the same groups, so that the bytes are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data import dataset as layout
from longrec.data import features, history
from longrec.data.histories import (
    SPLITS,
    Histories,
    HistoriesWriter,
    split_names,
    split_times,
    target_schema,
    user_schema,
)
from longrec.data.store.feast_adapter import Door, restored
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
        split_time_ms: the first moment of the evaluation.
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
    split_time_ms: int


def retrieve(
    dataset_dir: str | Path,
    workdir: str | Path,
    repo_dir: str | Path,
    out_dir: str | Path,
    data: DataConfig,
    seed: int,
    shard: layout.Shard = layout.WHOLE,
) -> RetrieveReport:
    """Returns counts after writing the histories of a dataset's requests, read through the feature
    store.

    Feast is asked for one row per user, a bounded number of users at a time, as of the end of the
    published log: pushed events are not
    in it, so that the same dataset gives the same histories. Requests are offsets into the users'
    timelines:
    the events strictly before the moment, the `data.max_history` most recent of them.

    Args:
        dataset_dir: the dataset that was published; its targets are used.
        home, repo_dir: as for `publish`.
        out_dir: new, empty, or histories that are replaced.
        data: bounds and shares of the split.
        seed: of the sample of requests, where `data.max_requests` asks for one; shards have all
            requests, and `join` takes the sample.
        shard: of the dataset, for `join`; its splits are of its own requests, and it may have none.

    Raises:
        DataError: the dataset cannot be used or has no request.
        SchemaMismatch: the store was published for another schema.
        StoreError: nothing, or another dataset, was published; or Feast lost a row.
    """
    source, published = layout.Dataset.open(dataset_dir, shard), Published.open(workdir)
    _check_same(source, published)
    requests, names = _Requests.of(source), [ITEM_ID, *source.schema.task_names]
    if shard == layout.WHOLE:
        requests = requests.checked(str(source.path)).sample(data.max_requests, seed)
    door = Door(published, repo_dir)
    head = {
        "dataset": source.name,
        "dataset_facts": source.facts,
        "dataset_hash": source.facts.get("content_hash"),
        "store_version": published.manifest["version"],
        **({} if shard == layout.WHOLE else {"shard": str(shard)}),
    }
    with HistoriesWriter(out_dir, source.schema) as writer:
        cut = _write_timelines(_Offline(door), writer, requests, data, source.num_parts)
        targets = requests.targets(
            lambda part: source.targets(part, names), target_schema(source.schema)
        )
        items = door.items(layout.int64_of(source.items(), ITEM_ID))
        return _finish(writer, requests, cut, targets, items, head, data, seed)


def join(
    shard_dirs: Sequence[str | Path], out_dir: str | Path, data: DataConfig, seed: int
) -> RetrieveReport:
    """Returns counts after writing the histories of all shards of a dataset as one retrieval writes
    them.

    Args:
        shard_dirs: one per shard, in any order, as `retrieve` wrote them.
        out_dir, data, seed: as of `retrieve`, and equal to those of the shards.

    Raises:
        DataError: these are not all shards of one dataset, read from one version of the features;
            or there is no request.
    """
    found = [Histories.open(each) for each in shard_dirs]
    found = [
        found[place]
        for place in layout.in_order(
            [layout.Shard.parse(each.manifest.get("shard", "1/1")) for each in found]
        )
    ]
    told = {
        (each.manifest["dataset_hash"], each.schema.fingerprint, each.manifest["store_version"])
        for each in found
    }
    if len(told) > 1:
        raise DataError(
            "these are not shards of one dataset, read from one version of its features",
            found="; ".join(sorted(" ".join(map(str, each)) for each in told)),
            fix="Retrieve all shards again.",
        )
    head = {
        key: found[0].manifest[key]
        for key in ("dataset", "dataset_facts", "dataset_hash", "store_version")
    }
    requests = (
        _Requests.of_shards(found)
        .checked(f"the dataset {head['dataset']}")
        .sample(data.max_requests, seed)
    )
    with HistoriesWriter(out_dir, found[0].schema) as writer:
        cut = _write_timelines(
            _Joined(found), writer, requests, data, int(head["dataset_facts"]["num_parts"])
        )
        targets = requests.targets(lambda shard: found[shard].targets, target_schema(writer.schema))
        return _finish(writer, requests, cut, targets, found[0].items, head, data, seed)


def _finish(
    writer: HistoriesWriter,
    requests: _Requests,
    cut: _Cut,
    targets: tuple[pa.Table, Int64],
    items: pa.Table,
    head: Mapping[str, Any],
    data: DataConfig,
    seed: int,
) -> RetrieveReport:
    """Returns counts after splitting the requests and writing all tables and the manifest."""
    (rows, target_ends), request_times = targets, requests.request_times
    warmup_end, split_time = (
        split_times(request_times, data.warmup_fraction, data.eval_fraction)
        if len(request_times)
        else (0, 0)
    )
    splits = split_names(request_times, warmup_end, split_time)
    table = pa.table(
        {
            REQUEST_ID: requests.request_ids,
            "user_row": cut.user_rows,
            TIMESTAMP: request_times,
            "event_start": cut.starts,
            "event_end": cut.ends,
            "target_start": np.append(0, target_ends[:-1])[: len(request_times)],
            "target_end": target_ends,
            "split": pa.array(splits, pa.string()),
        }
    )
    manifest = {
        **head,
        "time_range_ms": [int(request_times[0]), int(request_times[-1])]
        if len(request_times)
        else [None, None],
        "warmup_end_ms": warmup_end,
        "split_time_ms": split_time,
        "max_history": data.max_history,
        "seed": seed,
        "splits": {name: splits.count(name) for name in SPLITS},
        "history_length": layout.quantiles(cut.ends - cut.starts),
    }
    writer.finish(cut.users, table, rows, items, manifest)
    return _retrieve_report(manifest, cut, rows, items)


@dataclasses.dataclass(frozen=True, slots=True)
class _Requests:
    """Requests sorted by (moment, request_id): ids, users, moments (ms), and where their targets
    are: part or shard, first row, end row.
    """

    request_ids: Int64
    user_ids: Int64
    request_times: Int64
    parts: Int64
    starts: Int64
    ends: Int64

    @classmethod
    def of(cls, source: layout.Dataset) -> _Requests:
        """Returns all requests of a dataset, or of a shard of it."""
        rows = []
        for part in source.parts:
            table = source.targets(part, [REQUEST_ID, USER_ID, TIMESTAMP])
            keys = [layout.int64_of(table, name) for name in (REQUEST_ID, USER_ID, TIMESTAMP)]
            starts = layout.group_starts(*keys)
            ends = np.append(starts[1:], len(table))[: len(starts)]
            rows.append((*(key[starts] for key in keys), np.full(len(starts), part), starts, ends))
        return cls._sorted(rows)

    @classmethod
    def of_shards(cls, shards: Sequence[Histories]) -> _Requests:
        """Returns the requests of all shards; their targets are in the tables of the shards."""
        rows = []
        for number, shard in enumerate(shards):
            ids, users, request_times, starts, ends = (
                layout.int64_of(shard.requests, name)
                for name in (REQUEST_ID, "user_row", TIMESTAMP, "target_start", "target_end")
            )
            rows.append(
                (
                    ids,
                    layout.int64_of(shard.users, USER_ID)[users],
                    request_times,
                    np.full(len(ids), number),
                    starts,
                    ends,
                )
            )
        return cls._sorted(rows)

    @classmethod
    def _sorted(cls, rows: Sequence[tuple[Int64, ...]]) -> _Requests:
        none = np.zeros(0, np.int64)
        requests = cls(
            *(
                np.concatenate([none, *column]).astype(np.int64)
                for column in zip((none,) * 6, *rows, strict=True)
            )
        )
        return requests._take(np.lexsort((requests.request_ids, requests.request_times)))

    def checked(self, where: str) -> _Requests:
        """Returns the requests after checking that there are some, each once."""
        ids, counts = np.unique(self.request_ids, return_counts=True)
        if not len(ids):
            raise DataError(
                f"{where} holds no requests",
                expected="targets to train on",
                fix="Import with sampled negatives.",
            )
        if len(doubles := ids[counts > 1]):
            raise DataError(
                "the targets of a request must follow each other and share user and moment",
                found=f"{len(doubles)} requests that do not, for example {doubles[0]}",
                fix=layout.AGAIN,
            )
        return self

    def sample(self, max_requests: int, seed: int) -> _Requests:
        """Returns a seeded sample of at most `max_requests` requests, in the same order; all for
        0.
        """
        if not 0 < max_requests < len(self.request_times):
            return self
        return self._take(
            np.sort(
                np.random.default_rng(seed).choice(
                    len(self.request_times), max_requests, replace=False
                )
            )
        )

    def targets(
        self, read: Callable[[int], pa.Table], expected: pa.Schema
    ) -> tuple[pa.Table, Int64]:
        """Returns item_id and labels of all targets, request after request, and the end offset of
        each request.

        Args:
            read: returns the targets of a part, or of a shard.
            expected: their columns.
        """
        tables, counts = [expected.empty_table()], self.ends - self.starts
        first, num_rows = np.zeros(len(counts), np.int64), 0
        for part in np.unique(self.parts).tolist():
            mine = np.flatnonzero(self.parts == part)
            tables.append(
                read(part).cast(expected).take(pa.array(_ranges(self.starts[mine], counts[mine])))
            )
            first[mine] = num_rows + np.cumsum(counts[mine]) - counts[mine]
            num_rows += tables[-1].num_rows
        return pa.concat_tables(tables).take(pa.array(_ranges(first, counts))), np.cumsum(counts)

    def _take(self, rows: Int64) -> _Requests:
        return _Requests(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """The users' table, and for each request its user's row, its events' offsets, and whether older
    events were left out.
    """

    users: pa.Table
    user_rows: Int64
    starts: Int64
    ends: Int64
    bounded: npt.NDArray[np.bool_]


class _Timelines(Protocol):
    """Where the timelines of users come from."""

    def lengths(self, user_ids: Int64) -> Int64:
        """Returns the number of events of each user (sorted, unique ids)."""
        ...

    def read(self, user_ids: Int64) -> tuple[pa.RecordBatch, Int64, pa.Table]:
        """Returns the events of users of one part (sorted, unique ids) one after another, their
        offsets (one more), the user features.
        """
        ...


class _Offline:
    """Timelines from the offline store."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def lengths(self, user_ids: Int64) -> Int64:
        return self._door.history_lengths(user_ids) if len(user_ids) else user_ids

    def read(self, user_ids: Int64) -> tuple[pa.RecordBatch, Int64, pa.Table]:
        rows, schema = self._door.users(user_ids), self._door.published.schema
        return (*_timelines(rows, schema), pa.table(restored(rows, schema.user)))


class _Joined:
    """Timelines from histories of shards."""

    def __init__(self, shards: Sequence[Histories]) -> None:
        self._shards = shards
        ids = [layout.int64_of(shard.users, USER_ID) for shard in shards]
        order = np.argsort(np.concatenate(ids), kind="stable")
        self._ids = np.concatenate(ids)[order]
        self._places = np.concatenate(
            [np.full(len(each), number) for number, each in enumerate(ids)]
        )[order]
        self._rows = np.concatenate([np.arange(len(each)) for each in ids])[order]
        spans = [
            np.concatenate([layout.int64_of(shard.users, name) for shard in shards])
            for name in ("event_start", "event_end")
        ]
        self._starts, self._ends = (span[order] for span in spans)

    def lengths(self, user_ids: Int64) -> Int64:
        found = np.searchsorted(self._ids, user_ids)
        sizes: Int64 = self._ends[found] - self._starts[found]
        return sizes

    def read(self, user_ids: Int64) -> tuple[pa.RecordBatch, Int64, pa.Table]:
        found = np.searchsorted(self._ids, user_ids)
        shard = self._shards[self._places[found[0]]]  # users of one part are in one shard
        spans = zip(self._starts[found].tolist(), self._ends[found].tolist(), strict=True)
        timelines = history.with_own_texts(
            history.joined([shard.events(start, end) for start, end in spans], shard.schema)
        )
        names = [feature.name for feature in shard.schema.user]
        return (
            timelines,
            np.append(0, np.cumsum(self.lengths(user_ids))),
            shard.users.select(names).take(pa.array(self._rows[found])),
        )


def _write_timelines(
    source: _Timelines,
    writer: HistoriesWriter,
    requests: _Requests,
    data: DataConfig,
    num_parts: int,
) -> _Cut:
    """Returns the cut of all requests after writing the timelines of their users, a bounded number
    of users at a time.

    Users are in the order of the dataset's parts, and of their ids within a part.
    """
    ids, rows = np.unique(requests.user_ids, return_inverse=True)
    order = np.lexsort((ids, layout.part_of(ids, num_parts)))
    user_ids, user_rows = ids[order], np.argsort(order)[rows]
    by_user = np.argsort(user_rows, kind="stable")
    request_ends = np.searchsorted(user_rows[by_user], np.arange(len(user_ids)), side="right")
    before, lower, tables = (
        np.zeros(len(user_rows), np.int64),
        0,
        [user_schema(writer.schema).empty_table()],
    )
    for start, end in _groups(
        source.lengths(ids)[order], layout.part_of(user_ids, num_parts), data.shard_users
    ):
        timelines, offsets, features_of = source.read(user_ids[start:end])
        times = history.timestamps(timelines)
        for row in range(start, end):
            mine, lower = by_user[lower : request_ends[row]], int(request_ends[row])
            own = times[offsets[row - start] : offsets[row - start + 1]]
            before[mine] = np.searchsorted(own, requests.request_times[mine], side="left")
        offsets = offsets + writer.add(timelines)[0]
        spans = [np.arange(start, end), user_ids[start:end], offsets[:-1], offsets[1:]]
        tables.append(
            pa.table([*map(pa.array, spans), *features_of.columns], schema=tables[0].schema)
        )
    users = pa.concat_tables(tables)
    first = layout.int64_of(users, "event_start")[user_rows]
    ends = first + before
    return _Cut(
        users,
        user_rows.astype(np.int64),
        np.maximum(first, ends - data.max_history),
        ends,
        before > data.max_history,
    )


def _timelines(rows: pa.Table, schema: Schema) -> tuple[pa.RecordBatch, Int64]:
    """Returns the events of all users of a retrieval, one after another, and the offsets of each
    user in them (one more than users).
    """
    parts = [history.stored(value.as_buffer(), schema) for value in rows.column(features.HISTORY)]
    lengths = np.array([part.num_rows for part in parts], np.int64)
    expected = np.asarray(rows.column(features.HISTORY_LENGTH).fill_null(0), np.int64)
    if len(wrong := np.flatnonzero(lengths != expected)):
        raise StoreError(
            "a history does not have its stated length",
            found=f"{lengths[wrong[0]]} events",
            expected=f"{expected[wrong[0]]}",
            fix=PUBLISH_FIRST,
        )
    return history.joined(parts, schema), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: Int64, counts: Int64) -> Int64:
    """Returns starts[0], starts[0]+1, ... (counts[0] values), then those of starts[1], and so
    on.
    """
    ends = np.cumsum(counts)
    shifts: Int64 = np.repeat(starts - (ends - counts), counts)
    return np.arange(len(shifts)) + shifts


def _groups(lengths: Int64, parts: Int64, shard_users: int) -> Iterator[tuple[int, int]]:
    """Yields [start, end) rows of users of one part: at most `shard_users`, and at most
    SLICE_EVENTS events unless one user has more.
    """
    ends, start = np.cumsum(lengths), 0
    while start < len(lengths):
        base, bound = (
            int(ends[start] - lengths[start]),
            int(np.searchsorted(parts, parts[start], side="right")),
        )
        end = max(
            start + 1,
            min(
                start + shard_users,
                bound,
                int(np.searchsorted(ends, base + SLICE_EVENTS, side="right")),
            ),
        )
        yield start, end
        start = end


def _check_same(source: layout.Dataset, published: Published) -> None:
    if lines := source.schema.differences(published.schema):
        raise SchemaMismatch(
            "the feature store was published for another schema",
            found="; ".join(lines),
            fix=PUBLISH_FIRST,
        )
    if source.facts.get("content_hash") != published.manifest.get("dataset_hash"):
        raise StoreError(
            f"the feature store holds features of another dataset than {source.path}",
            found=published.manifest.get("name"),
            expected=source.name,
            fix=PUBLISH_FIRST,
        )


def _retrieve_report(
    manifest: Mapping[str, Any], cut: _Cut, targets: pa.Table, items: pa.Table
) -> RetrieveReport:
    kept, splits = cut.ends - cut.starts, manifest["splits"]
    lengths = layout.int64_of(cut.users, "event_end") - layout.int64_of(cut.users, "event_start")
    return RetrieveReport(
        num_requests=len(kept),
        num_warmup=splits["warmup"],
        num_train=splits["train"],
        num_eval=splits["eval"],
        num_targets=targets.num_rows,
        num_users=len(lengths),
        num_events=int(lengths.sum()),
        num_items=items.num_rows,
        users_without_history=int((lengths == 0).sum()),
        requests_without_history=int((kept == 0).sum()),
        requests_at_the_bound=int(cut.bounded.sum()),
        longest_history=int(kept.max(initial=0)),
        split_time_ms=manifest["split_time_ms"],
    )
