"""Live events into the published histories: to disk first, then online; a tail that grew long is
folded into its base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import features, files, history
from longrec.data.store import live_events, tails
from longrec.data.store.feast_adapter import Door
from longrec.data.store.reader import Stored, read_online
from longrec.data.store.versions import Published, current_version, locked
from longrec.schema import CREATED, USER_ID, Schema

TAIL_EVENTS = 256
"""Pushed events of a user that are kept beside the base; more of them are folded into it."""
PUSH_USERS = 200
"""Users whose histories a push has in memory."""
PUSH_WAIT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class PushReport:
    """What `push` did.

    Args:
        num_events: different events that were given.
        num_new: of them, those that were not stored yet.
        num_users: users who have a new event.
        num_folds: users whose tail went into the base.
    """

    num_events: int
    num_new: int
    num_users: int
    num_folds: int


def push(workdir: str | Path, repo_dir: str | Path | None, events: pa.Table) -> PushReport:
    """Returns counts after adding live events to the histories that `workdir` serves, online and
    offline.

    Events may come late, twice and in any order: what is stored in the end is the same. A push that
    failed or was killed may have stored
    some of its events; push them again. Opens the feature store; a process that pushes often keeps
    a `Pusher`.

    Args:
        home, repo_dir: as for `OnlineStore`.
        events: user_id, the history codec's columns (see `history.arrow_schema`), and `created`
            where a row may have come in late; times as
            int64 ms or timestamps. Others are dropped.

    Raises:
        DataError: the events do not fit the schema, or one has the key of another event; see
            `pushed.conform`.
        StoreError: nothing was published, another push or publish does not end, or Feast failed.
    """
    return Pusher(workdir, repo_dir).push(events)


class Pusher:
    """Adds live events to what `workdir` serves, and follows it when a new version is published.
    Arguments and errors as of `push`.
    """

    def __init__(self, workdir: str | Path, repo_dir: str | Path | None = None) -> None:
        self._workdir, self._repo_dir = Path(workdir).resolve(), repo_dir
        self._door = Door(Published.open(self._workdir), repo_dir)

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    @property
    def late_events(self) -> Literal["hold", "ignore"]:
        """What the published histories were built with (`DataConfig.late_events`)."""
        return "ignore" if self._door.published.manifest.get("late_events") == "ignore" else "hold"

    def push(self, events: pa.Table) -> PushReport:
        """Returns counts after adding events; see the function `push`."""
        with locked(self._workdir, PUSH_WAIT_SECONDS):
            if current_version(self._workdir) not in (None, self._door.published.path.name):
                self._door = Door(Published.open(self._workdir), self._repo_dir)
            self._door.check_online()
            return add_events(
                self._door,
                live_events.conform(events, self.schema, self.late_events),
                _refuse_another,
            )


def add_events(
    door: Door, events: pa.Table, on_repeat: Callable[[int, pa.RecordBatch, pa.RecordBatch], None]
) -> PushReport:
    """Returns counts after adding events; the caller holds the lock.

    The rows go to disk first, as the offline side of Feast; a part of tails is complete with its
    rename. Then they go online, then
    the part is noted as applied; where that note is missing, the next push writes the part online
    again.
    """
    _recover(door)
    num_new = num_users = num_folds = 0
    everyone = list(live_events.by_user(events))
    for start in range(0, len(everyone), PUSH_USERS):
        group = everyone[start : start + PUSH_USERS]
        changes = [
            change
            for (user, mine), stored in zip(
                group, read_online(door, [user for user, _ in group]), strict=True
            )
            if (change := _Change.of(stored, mine, door.published.schema, on_repeat))
        ]
        if not changes:
            continue
        stamp = max(door.log_end_us, tails.last_stamp(door.published.path)) + 1
        fold, tail = _fold_rows(changes, stamp), tail_rows(changes, stamp)
        if fold.num_rows:
            files_in = door.published.path / "features" / "user_history"
            tails.place(door.published.path, fold, files_in / f"{tails.FOLD}{stamp:020d}.parquet")
        tails.add(door.published.path, tail, stamp)
        door.write(fold, tail)
        tails.note_applied(door.published.path, stamp)
        num_new, num_users = (
            num_new + sum(change.num_new for change in changes),
            num_users + len(changes),
        )
        num_folds += fold.num_rows
    tails.compact(door.published.path)
    return PushReport(events.num_rows, num_new, num_users, num_folds)


def _refuse_another(user: int, events: pa.RecordBatch, known: pa.RecordBatch) -> None:
    live_events.check_same(user, events, known)


def keep_the_stored(user: int, events: pa.RecordBatch, known: pa.RecordBatch) -> None:
    """What the new log says of an event is taken, whatever was pushed before."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Change:
    """A user's new rows, packed: the base (None where it stays), the tail, and their lengths."""

    user_id: int
    base: bytes | None
    base_length: int
    tail: bytes
    tail_length: int
    num_new: int

    @classmethod
    def of(
        cls,
        stored: Stored,
        events: pa.RecordBatch,
        schema: Schema,
        on_repeat: Callable[[int, pa.RecordBatch, pa.RecordBatch], None],
    ) -> _Change | None:
        """Returns the rows after adding events (of this user, sorted, unique), None where all of
        them are stored already.
        """
        known = history.merged(stored.base, stored.tail, schema)
        fresh, repeated, places = live_events.fresh(events, known)
        on_repeat(stored.user_id, events.take(pa.array(repeated)), known.take(pa.array(places)))
        if not fresh.num_rows:
            return None
        if schema.has_baskets:
            mine = pa.Table.from_batches([history.merged(known, fresh, schema)])
            live_events.check_baskets(
                mine.append_column(USER_ID, pa.array(np.full(mine.num_rows, stored.user_id))),
                schema,
            )
        base, tail = stored.base, history.merged(stored.tail, fresh, schema)
        folds = tail.num_rows > TAIL_EVENTS
        if folds:
            base, tail = history.merged(base, tail, schema), history.empty(schema)
        return cls(
            stored.user_id,
            history.pack(base, schema) if folds else None,
            base.num_rows,
            history.pack(tail, schema),
            tail.num_rows,
            fresh.num_rows,
        )


def _fold_rows(changes: Sequence[_Change], stamp: int) -> pa.Table:
    """Returns the rows of user_history of the changes that have a new base."""
    mine = [change for change in changes if change.base is not None]
    return pa.table(
        {
            **_stamped(mine, stamp),
            features.HISTORY: pa.array([change.base for change in mine], pa.binary()),
            features.HISTORY_LENGTH: pa.array([change.base_length for change in mine], pa.int64()),
        }
    )


def tail_rows(changes: Sequence[_Change], stamp: int) -> pa.Table:
    """Returns the rows of user_tail of the changes."""
    return pa.table(
        {
            **_stamped(changes, stamp),
            features.TAIL: pa.array([change.tail for change in changes], pa.binary()),
            features.TAIL_LENGTH: pa.array([change.tail_length for change in changes], pa.int64()),
            features.TAIL_BASE: pa.array([change.base_length for change in changes], pa.int64()),
        }
    )


def _stamped(changes: Sequence[_Change], stamp: int) -> dict[str, pa.Array]:
    times = pa.array(np.full(len(changes), stamp), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return {
        USER_ID: pa.array([change.user_id for change in changes], pa.int64()),
        features.EVENT_TIME: times,
        CREATED: times,
    }


def _recover(door: Door) -> None:
    """Finishes the push that was killed between disk and online store; what it had not made
    complete on disk is removed.
    """
    version, note = door.published.path, door.published.path / "feast" / "pushed.json"
    applied = int(files.read_json(note)["applied_us"]) if note.is_file() else 0
    folds, last = version / "features" / "user_history", tails.last_stamp(version)
    for path in folds.glob(f"{tails.FOLD}*.parquet"):
        if tails.stamp_of(path) > last:
            path.unlink()
    for path in sorted(tails.folder(version).glob(f"{tails.PART}*.parquet")):
        if (stamp := tails.stamp_of(path)) > applied:
            fold = folds / f"{tails.FOLD}{stamp:020d}.parquet"
            door.write(
                pq.read_table(fold) if fold.is_file() else _fold_rows([], 0), pq.read_table(path)
            )
            tails.note_applied(version, stamp)
