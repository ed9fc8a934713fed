"""Histories: timelines of users, and requests that point into them.

Training and evaluation read them.

    timelines  | u0: e e e e e | u1: e e | u2: e e e e |   one Arrow file; a record batch holds
                                                           whole users
    request       [     )          events of its user strictly before it, at most max_history
    request                [ )     its targets are rows [target_start, target_end) of targets

    DIR/manifest.json     format_version, schema, counts, parts, dataset and store version
    DIR/timelines.arrow   all events, user after user
    DIR/requests.parquet  DIR/targets.parquet  DIR/users.parquet  DIR/items.parquet

No event is copied per request: a history is a slice of the memory-mapped timelines.
`longrec.data.histories_writer` writes this layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.data import files, history
from longrec.data.columns import Int64, arrow_type, int64_column
from longrec.data.dataset import item_schema, read_table
from longrec.data.timelines import steps_back
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

HISTORIES_FORMAT_VERSION = 2
"""Version 2 renamed the manifest key `split_moment_ms` to `split_time_ms`."""
SPLITS = ("warmup", "train", "eval", "validation")
"""Parts of the requests. Encoded histories on disk hold positions in it: append only."""
SPLITS_BY_TIME = ("warmup", "train", "validation", "eval")
"""The parts in the order of time."""
RETRIEVE_AGAIN = "Make the histories again (step retrieve of longrec run)."
EVENT_SPAN = ("event_start", "event_end")
TARGET_SPAN = ("target_start", "target_end")


def request_schema() -> pa.Schema:
    """Return the columns of requests.parquet."""
    names = (REQUEST_ID, "user_row", TIMESTAMP, *EVENT_SPAN, *TARGET_SPAN)
    columns = [(name, pa.int64()) for name in names]
    return pa.schema([*columns, ("split", pa.string())])


def target_schema(schema: Schema) -> pa.Schema:
    """Return the columns of targets.parquet: item_id and one int8 label per task."""
    columns = [(ITEM_ID, pa.int64())]
    for name in schema.task_names:
        columns.append((name, pa.int8()))
    return pa.schema(columns)


def user_schema(schema: Schema) -> pa.Schema:
    """Return the columns of users.parquet: row, id, span of the timeline, user features."""
    names = ("user_row", USER_ID, *EVENT_SPAN)
    columns = [(name, pa.int64()) for name in names]
    for feature in schema.user:
        columns.append((feature.name, arrow_type(feature)))
    return pa.schema(columns)


def count_parts(requests: pa.Table) -> dict[str, dict[str, int]]:
    """Return the numbers of requests, targets and users of each part, in the order of time.

    Args:
        requests: rows of requests.parquet.
    """
    splits = np.asarray(requests.column("split"))
    users = int64_column(requests, "user_row")
    starts = int64_column(requests, "target_start")
    num_targets = int64_column(requests, "target_end") - starts
    parts = {}
    for name in SPLITS_BY_TIME:
        is_in_part = splits == name
        parts[name] = {
            "requests": int(is_in_part.sum()),
            "targets": int(num_targets[is_in_part].sum()),
            "users": len(np.unique(users[is_in_part])),
        }
    return parts


@dataclasses.dataclass(frozen=True, slots=True)
class Histories:
    """An opened histories directory, made by `open`.

    Args:
        path: the directory.
        schema: features and tasks.
        manifest: counts, time range, split times, dataset and store version.
        requests: one row per request, sorted by timestamp (see `request_schema`).
        targets: one row per target (see `target_schema`).
        users: one row per user, in the order of the timelines (see `user_schema`).
        items: item_id and item features, as the feature store returned them.
        batches: the timelines, memory-mapped.
        batch_starts: int64 [len(batches) + 1], offset of the first event of each batch.
    """

    path: Path
    schema: Schema
    manifest: dict[str, Any]
    requests: pa.Table
    targets: pa.Table
    users: pa.Table
    items: pa.Table
    batches: tuple[pa.RecordBatch, ...]
    batch_starts: Int64

    @classmethod
    def open(cls, directory: str | Path) -> Histories:
        """Return the histories in a directory.

        Raises:
            DataError: a file is missing, truncated, of another format version or does not match
                the manifest, or offsets do not fit.
            SchemaMismatch: the timelines have another schema than the manifest.
        """
        path = Path(directory)
        manifest_path = path / "manifest.json"
        manifest = files.read_versioned_json(
            manifest_path,
            HISTORIES_FORMAT_VERSION,
            fix=RETRIEVE_AGAIN,
        )
        if "schema" not in manifest:
            raise DataError(
                f"{manifest_path} lacks a key",
                found="no 'schema'",
                fix=RETRIEVE_AGAIN,
            )
        schema = Schema.from_dict(manifest["schema"])
        batches = _map_timelines(path / "timelines.arrow", schema)
        lengths = [batch.num_rows for batch in batches]
        histories = cls(
            path,
            schema,
            manifest,
            requests=read_table(path / "requests.parquet", request_schema()),
            targets=read_table(path / "targets.parquet", target_schema(schema)),
            users=read_table(path / "users.parquet", user_schema(schema)),
            items=read_table(path / "items.parquet", item_schema(schema)),
            batches=batches,
            batch_starts=np.cumsum([0, *lengths], dtype=np.int64),
        )
        histories._check_counts()
        histories._check_requests()
        return histories

    @property
    def num_requests(self) -> int:
        """Number of requests."""
        return int(self.requests.num_rows)

    @property
    def num_events(self) -> int:
        """Number of events in the timelines."""
        return int(self.batch_starts[-1])

    @property
    def split_time_ms(self) -> int:
        """First time of the evaluation requests.

        With a split by time, every training request is strictly before it.
        """
        return int(self.manifest["split_time_ms"])

    @property
    def is_split_by_user(self) -> bool:
        """Whether each user's last requests are evaluated, whatever their time."""
        return bool(self.manifest.get("split") == "user")

    def training_events(self) -> Iterator[pa.RecordBatch]:
        """Yield the events of the training window: those before the first held-out request.

        Validation and evaluation requests are held out. With a split by user, the first one of the
        event's own user counts.
        """
        timeline_ends = int64_column(self.users, "event_end")
        training_ends = self._training_ends()
        first_event = 0
        for batch in self.batches:
            events = np.arange(first_event, first_event + batch.num_rows)
            # Timelines follow each other: the first one that ends after an event holds it.
            owners = np.searchsorted(timeline_ends, events, side="right")
            is_before = int64_column(batch, TIMESTAMP) < training_ends[owners]
            yield batch.filter(pa.array(is_before))
            first_event += batch.num_rows

    def _training_ends(self) -> Int64:
        """Return the time of the first held-out request for each row of the users, int64 [U]."""
        num_users = self.users.num_rows
        if not self.is_split_by_user:
            # Histories without a validation part may lack the key.
            train_end = self.manifest.get("train_end_ms", self.split_time_ms)
            return np.full(num_users, train_end, np.int64)
        ends = np.full(num_users, np.iinfo(np.int64).max)
        held_out = pc.is_in(self.requests.column("split"), pa.array(["validation", "eval"]))
        requests = self.requests.filter(held_out)
        np.minimum.at(
            ends,
            int64_column(requests, "user_row"),
            int64_column(requests, TIMESTAMP),
        )
        return ends

    def event_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the timelines as views, whole users one after another."""
        yield from self.batches

    def events(
        self,
        start: int,
        end: int,
    ) -> pa.RecordBatch:
        """Return the events of global offsets [start, end) of one user, as a slice.

        Raises:
            DataError: the offsets are out of range or span two users' batches.
        """
        last_batch = len(self.batches) - 1
        # The last batch that starts at or before `start` holds the event.
        num_started = np.searchsorted(self.batch_starts, start, side="right")
        batch_index = min(int(num_started) - 1, last_batch)
        is_ordered = 0 <= start <= end <= self.num_events
        is_within_batch = batch_index >= 0 and end <= self.batch_starts[batch_index + 1]
        if is_ordered and is_within_batch:
            offset = start - int(self.batch_starts[batch_index])
            return self.batches[batch_index].slice(offset, end - start)
        if is_ordered and start == end:  # there are no batches
            return history.empty(self.schema)
        raise DataError(
            "no such events",
            found=f"offsets {start}..{end}",
            expected=f"one user's, within 0..{self.num_events}",
        )

    def history(self, request_row: int) -> pa.RecordBatch:
        """Return the most recent events strictly before a request, as a slice.

        Args:
            request_row: row of the request in `requests`.
        """
        return self._events_of_row(self.requests, request_row)

    def timeline(self, user_row: int) -> pa.RecordBatch:
        """Return all events of a user, as a slice.

        Args:
            user_row: row of the user in `users`.
        """
        return self._events_of_row(self.users, user_row)

    def _events_of_row(
        self,
        table: pa.Table,
        row: int,
    ) -> pa.RecordBatch:
        start = table.column("event_start")[row].as_py()
        end = table.column("event_end")[row].as_py()
        return self.events(start, end)

    def _check_counts(self) -> None:
        counts = {
            "num_events": self.num_events,
            "num_requests": self.num_requests,
            "num_targets": self.targets.num_rows,
            "num_users": self.users.num_rows,
            "num_items": self.items.num_rows,
        }
        expected = self.manifest.get("counts", {})
        wrong = []
        for name, count in counts.items():
            if expected.get(name) != count:
                wrong.append(name)
        if wrong:
            raise DataError(
                f"{self.path} does not hold what its manifest counted",
                found=", ".join(f"{counts[name]} {name}" for name in wrong),
                expected=", ".join(f"{expected.get(name)} {name}" for name in wrong),
                fix=RETRIEVE_AGAIN,
            )

    def _check_requests(self) -> None:
        user_rows = int64_column(self.requests, "user_row")
        num_users = self.users.num_rows
        is_known = (user_rows >= 0) & (user_rows < num_users)
        if not is_known.all():
            raise DataError(
                f"{self.path}: a request names no user",
                found=f"user_row {user_rows.min()}..{user_rows.max()}",
                expected=f"0..{num_users - 1}",
                fix=RETRIEVE_AGAIN,
            )
        times = int64_column(self.requests, TIMESTAMP)
        if steps_back(times).any():
            raise DataError(f"{self.path}: requests are not sorted by time", fix=RETRIEVE_AGAIN)
        self._check_offsets(user_rows)

    def _check_offsets(self, user_rows: Int64) -> None:
        """Check that each request owns events of its own user and at least one target."""
        timeline_start = int64_column(self.users, "event_start")
        timeline_end = int64_column(self.users, "event_end")
        event_start = int64_column(self.requests, "event_start")
        event_end = int64_column(self.requests, "event_end")
        target_start = int64_column(self.requests, "target_start")
        target_end = int64_column(self.requests, "target_end")
        is_valid = event_start >= timeline_start[user_rows]
        is_valid &= event_end <= timeline_end[user_rows]
        is_valid &= event_start <= event_end
        is_valid &= target_start < target_end
        is_valid &= target_start >= 0
        is_valid &= target_end <= self.targets.num_rows
        wrong = np.flatnonzero(~is_valid)
        if len(wrong):
            raise DataError(
                f"{self.path}: offsets of requests do not fit",
                found=f"{len(wrong)} requests, first row {wrong[0]}",
                expected="events of its own user and at least one target",
                fix=RETRIEVE_AGAIN,
            )


def _map_timelines(path: Path, schema: Schema) -> tuple[pa.RecordBatch, ...]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=RETRIEVE_AGAIN) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Arrow file",
            found=str(error).splitlines()[0],
            fix=RETRIEVE_AGAIN,
        ) from error
    expected = history.arrow_schema(schema)
    if not reader.schema.equals(expected, check_metadata=True):
        metadata = reader.schema.metadata or {}
        raise SchemaMismatch(
            f"{path} was written for another schema",
            found=metadata.get(history.FINGERPRINT_KEY, b"no fingerprint").decode(),
            expected=schema.fingerprint,
            fix=RETRIEVE_AGAIN,
        )
    return tuple(batches)
