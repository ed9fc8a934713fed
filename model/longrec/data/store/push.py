"""Push live events into the published histories, first to disk, then online.

New events join the incremental tail of their user. A tail that grows long is compacted: merged
into the base history.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.data.columns import (
    EVENT_TIME,
    FEATURE_TIME_TYPE,
    HISTORY,
    HISTORY_LENGTH,
    TAIL,
    TAIL_BASE,
    TAIL_LENGTH,
    Int64,
    int64_column,
)
from longrec.data.store import live_events, tail_files
from longrec.data.store.deduplication import check_same_events, deduplicate
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.live_events import LateEvents
from longrec.data.store.online_store import finish_killed_push, read_stored_users
from longrec.data.store.user_record import StoredUser
from longrec.data.store.versions import PublishedVersion, require_own_keys
from longrec.data.store.workdir import current_version, write_lock
from longrec.data.upkeep.forget_list import forgotten_users, without_users
from longrec.schema import BASKET_ID, CREATED, TIMESTAMP, USER_ID, Schema

logger = logging.getLogger(__name__)

MAX_TAIL_EVENTS = 256
"""Largest number of events in a tail; a longer one is compacted."""
PUSH_BATCH_USERS = 200
"""Largest number of users whose histories a push has in memory."""
LOCK_WAIT_SECONDS = 60.0

RepeatCheck = Callable[[int, pa.RecordBatch, pa.RecordBatch], None]
"""Called with a user, repeated events and the stored events with their keys."""


@dataclasses.dataclass(frozen=True, slots=True)
class PushReport:
    """Counts of a push.

    Args:
        num_events: distinct events in the push.
        num_new: those that were not stored yet.
        num_users: users with a new event.
        num_compacted: users whose tail was merged into the base history.
    """

    num_events: int
    num_new: int
    num_users: int
    num_compacted: int


def push(
    workdir: str | Path,
    repo_dir: str | Path | None,
    events: pa.Table,
) -> PushReport:
    """Add live events to the histories of a work directory, online and offline; return counts.

    Events may come late, twice and in any order: the result is the same. A push that failed or was
    killed may have stored some of its events; push them again. This function opens the feature
    store; use a `Pusher` to push often.

    Args:
        workdir, repo_dir: as for `OnlineStore`.
        events: user_id, the history codec's columns (see `history.arrow_schema`), and `created`
            where a row may be late; times as int64 ms or timestamps. Other columns are dropped.

    Raises:
        DataError: the events do not fit the schema, or one has the key of another event; see
            `live_events.conform`.
        StoreError: nothing was published, another push or publish does not end, or Feast failed.
    """
    return Pusher(workdir, repo_dir).push(events)


class Pusher:
    """Pushes events to a work directory and follows it to new versions.

    Arguments and errors are those of `push`.
    """

    def __init__(
        self,
        workdir: str | Path,
        repo_dir: str | Path | None = None,
    ) -> None:
        self._workdir = Path(workdir).resolve()
        self._adapter = self._open()

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._adapter.published.schema

    @property
    def late_events(self) -> LateEvents:
        """How the published histories treat late events (`DataConfig.late_events`)."""
        setting = self._adapter.published.manifest.get("late_events")
        return "ignore" if setting == "ignore" else "hold"

    def push(self, events: pa.Table) -> PushReport:
        """Add events and return counts; see the function `push`."""
        with write_lock(self._workdir, LOCK_WAIT_SECONDS):
            own_version = self._adapter.published.path.name
            if current_version(self._workdir) not in (None, own_version):
                self._adapter = self._open()
            require_own_keys(self._workdir, self._adapter.published.path)
            self._adapter.check_online()
            conformed = live_events.conform(events, self.schema, self.late_events)
            conformed = self._without_forgotten(conformed)
            check = check_same_events if self.schema.has_event_numbers else accept_repeats
            return add_events(self._adapter, conformed, check)

    def _without_forgotten(self, events: pa.Table) -> pa.Table:
        """Return the events without those of forgotten users, who must not come back."""
        remaining = without_users(events, forgotten_users(self._workdir))
        num_dropped = events.num_rows - remaining.num_rows
        if num_dropped:
            logger.warning("%d events of forgotten users were dropped", num_dropped)
        return remaining

    def _open(self) -> FeastAdapter:
        return FeastAdapter(PublishedVersion.open(self._workdir))


def add_events(
    adapter: FeastAdapter,
    events: pa.Table,
    check_repeats: RepeatCheck,
) -> PushReport:
    """Add events and return counts; the caller holds the lock.

    Rows go to disk first, which is Feast's offline side; the rename of a tail file completes them.
    Then they go online, and that is recorded. Where the record is missing, the next reader or push
    writes them online again.

    Args:
        adapter: adapter of the version.
        events: as `live_events.conform` returns them.
        check_repeats: may refuse an event that is stored with other values.
    """
    version = adapter.published.path
    finish_killed_push(adapter)
    num_new = 0
    num_users = 0
    num_compacted = 0
    users = list(live_events.split_by_user(events))
    for start in range(0, len(users), PUSH_BATCH_USERS):
        batch = users[start : start + PUSH_BATCH_USERS]
        updates = _make_updates(adapter, batch, check_repeats)
        if not updates:
            continue
        last_us = tail_files.last_feature_time(version)
        feature_time_us = max(adapter.published.log_end_us, last_us) + 1
        compacted = _compacted_rows(updates, feature_time_us)
        tails = tail_rows(updates, feature_time_us)
        tail_files.announce_push(version)
        tail_files.write_compacted(version, compacted, feature_time_us)
        tail_files.write_tails(version, tails, feature_time_us)
        adapter.write_online(compacted, tails)
        tail_files.record_online(version, feature_time_us)
        tail_files.end_push(version)
        num_new += sum(update.num_new for update in updates)
        num_users += len(updates)
        num_compacted += compacted.num_rows
    tail_files.merge_tail_files(version)
    return PushReport(
        events.num_rows,
        num_new,
        num_users,
        num_compacted,
    )


def carry_over(previous: PublishedVersion, adapter: FeastAdapter) -> int:
    """Push the pushed events of a version to the next one that lack there; return how many.

    Args:
        previous: the version that they were pushed to.
        adapter: adapter of the next version.
    """
    num_carried = 0
    users = tail_files.users_with_pushes(previous.path)
    for start in range(0, len(users), PUSH_BATCH_USERS):
        batch = users[start : start + PUSH_BATCH_USERS]
        events = tail_files.pushed_events(previous, batch)
        events = _at_basket_times(events, adapter, batch)
        events = live_events.arrange(events, adapter.published.schema)
        # Where the new tables hold an event too, theirs is used.
        report = add_events(adapter, events, accept_repeats)
        num_carried += report.num_new
    return num_carried


def _at_basket_times(
    events: pa.Table,
    adapter: FeastAdapter,
    users: Int64,
) -> pa.Table:
    """Return pushed events at the times that their baskets have in the tables of a version.

    A log gives a basket the time of its last event, which may come after a push of the first.

    Args:
        events: user_id and the history codec's columns.
        adapter: adapter of the version.
        users: int64, the users of the events.
    """
    if not adapter.published.schema.has_baskets:
        return events
    baskets = int64_column(events, BASKET_ID)
    time_of_basket = {}
    for stored in read_stored_users(adapter, users.tolist()):
        known_baskets = stored.base.column(BASKET_ID).to_numpy()
        rows = np.flatnonzero(np.isin(known_baskets, baskets))
        times = history.timestamps(stored.base)[rows].tolist()
        for basket, time_ms in zip(known_baskets[rows].tolist(), times, strict=True):
            time_of_basket[stored.user_id, basket] = time_ms
    owners = int64_column(events, USER_ID).tolist()
    own_times = int64_column(events, TIMESTAMP).tolist()
    times_ms = []
    for owner, basket, own_time in zip(owners, baskets.tolist(), own_times, strict=True):
        times_ms.append(time_of_basket.get((owner, basket), own_time))
    position = events.schema.get_field_index(TIMESTAMP)
    field = events.schema.field(position)
    return events.set_column(position, field, pa.array(times_ms, pa.int64()))


def accept_repeats(
    user: int,
    events: pa.RecordBatch,
    stored: pa.RecordBatch,
) -> None:
    """Accept any repeated event; the stored one stays."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserUpdate:
    """The new rows of a user.

    Args:
        user_id: the user.
        base: the packed base history; None if it does not change.
        base_length: events in it.
        tail: the packed tail.
        tail_length: events in it.
        num_new: events that the push added.
    """

    user_id: int
    base: bytes | None
    base_length: int
    tail: bytes
    tail_length: int
    num_new: int


def tail_rows(updates: Sequence[UserUpdate], feature_time_us: int) -> pa.Table:
    """Return the rows of user_tail of some updates.

    Args:
        updates: any number of them.
        feature_time_us: feature timestamp of the push, microseconds.
    """
    tails = [update.tail for update in updates]
    tail_lengths = [update.tail_length for update in updates]
    base_lengths = [update.base_length for update in updates]
    return pa.table(
        {
            **_key_columns(updates, feature_time_us),
            TAIL: pa.array(tails, pa.binary()),
            TAIL_LENGTH: pa.array(tail_lengths, pa.int64()),
            TAIL_BASE: pa.array(base_lengths, pa.int64()),
        }
    )


def _compacted_rows(updates: Sequence[UserUpdate], feature_time_us: int) -> pa.Table:
    """Return the rows of user_history of the updates with a new base."""
    compacted = [update for update in updates if update.base is not None]
    bases = [update.base for update in compacted]
    lengths = [update.base_length for update in compacted]
    return pa.table(
        {
            **_key_columns(compacted, feature_time_us),
            HISTORY: pa.array(bases, pa.binary()),
            HISTORY_LENGTH: pa.array(lengths, pa.int64()),
        }
    )


def _key_columns(updates: Sequence[UserUpdate], feature_time_us: int) -> dict[str, pa.Array]:
    user_ids = [update.user_id for update in updates]
    times_us = np.full(len(updates), feature_time_us)
    times = pa.array(times_us, pa.int64()).cast(FEATURE_TIME_TYPE)
    return {
        USER_ID: pa.array(user_ids, pa.int64()),
        EVENT_TIME: times,
        CREATED: times,
    }


def _make_updates(
    adapter: FeastAdapter,
    batch: Sequence[tuple[int, pa.RecordBatch]],
    check_repeats: RepeatCheck,
) -> list[UserUpdate]:
    """Return the updates of a batch of users; a user without new events has none."""
    schema = adapter.published.schema
    user_ids = [user_id for user_id, _ in batch]
    stored_users = read_stored_users(adapter, user_ids)
    updates = []
    for stored, (_, events) in zip(stored_users, batch, strict=True):
        update = _make_update(stored, events, schema, check_repeats)
        if update is not None:
            updates.append(update)
    return updates


def _make_update(
    stored: StoredUser,
    events: pa.RecordBatch,
    schema: Schema,
    check_repeats: RepeatCheck,
) -> UserUpdate | None:
    known = stored.merged(schema)
    found = deduplicate(events, known, schema)
    check_repeats(stored.user_id, found.repeated, found.stored)
    if not found.new.num_rows:
        return None
    if schema.has_baskets:
        all_events = history.merge(known, found.new, schema)
        _check_baskets(stored.user_id, all_events, schema)
    base = stored.base
    tail = history.merge(stored.tail, found.new, schema)
    is_compacted = tail.num_rows > MAX_TAIL_EVENTS
    if is_compacted:
        base = history.merge(base, tail, schema)
        tail = history.empty(schema)
    return UserUpdate(
        stored.user_id,
        base=history.pack(base, schema) if is_compacted else None,
        base_length=base.num_rows,
        tail=history.pack(tail, schema),
        tail_length=tail.num_rows,
        num_new=found.new.num_rows,
    )


def _check_baskets(
    user_id: int,
    events: pa.RecordBatch,
    schema: Schema,
) -> None:
    owners = pa.array(np.full(events.num_rows, user_id))
    table = pa.Table.from_batches([events])
    live_events.check_baskets(table.append_column(USER_ID, owners), schema)
