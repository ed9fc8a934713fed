"""OnlineStore: reads of single users from the online store, for serving."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from longrec.data.store import tail_files
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.user_record import StoredUser, UserRecord
from longrec.data.store.versions import PUBLISH_FIRST, PublishedVersion, require_own_keys
from longrec.data.store.workdir import WriterBusyError, current_version, write_lock
from longrec.errors import DataError, LongrecError, SchemaMismatch
from longrec.schema import Schema

logger = logging.getLogger(__name__)

MAX_RETRIES = 5
"""Further attempts to read a base history and a tail that belong together."""
CATCH_UP_SECONDS = 1.0
"""Shortest time between two attempts to finish a killed push."""
MAX_PUSH_SECONDS = 60.0
"""A batch of a push that takes longer is reported by readers."""


class OnlineStore:
    """Reads users from the online store and follows the work directory to new versions.

    Args:
        workdir: the work directory (LONGREC_HOME).
        repo_dir: not used; a version holds its own settings.
        schema: the schema that the caller works with; None accepts the published one.
        digest: of the version to read, which the store then does not leave; empty to follow the
            current one.

    Raises:
        StoreError: nothing was published, the online store is gone, or the registry was made for
            another schema.
        SchemaMismatch: another schema than `schema` was published; lists the fields.
    """

    def __init__(
        self,
        workdir: str | Path,
        repo_dir: str | Path | None = None,
        *,
        schema: Schema | None = None,
        digest: str = "",
    ) -> None:
        self._workdir = Path(workdir)
        self._digest = digest
        self._expected_schema = schema
        self._behind = ""
        self._announced_at = math.inf
        self._next_attempt = 0.0
        self._adapter = self._open()
        self._catch_up(is_behind=tail_files.is_behind(self._adapter.published.path))

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._adapter.published.schema

    @property
    def version(self) -> str:
        """Name of the published version that is being read."""
        return self._adapter.published.path.name

    @property
    def behind(self) -> str:
        """Why the last read may lack pushed events; empty if it lacks none."""
        return self._behind

    def fetch(
        self,
        user_ids: Sequence[int],
        *,
        before_ms: int | None = None,
        max_history: int | None = None,
    ) -> list[UserRecord]:
        """Return the record of each user, in the given order.

        An unknown user has an empty history and no features.

        Args:
            user_ids: any number of ids, repeats allowed.
            before_ms: only events strictly before this time; None for all.
            max_history: only the most recent ones of them, at most this many; None for all.

        A push that was killed before its events were online is finished first. Where that is not
        possible, `behind` says why.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the online store cannot be read.
        """
        is_left = not self._digest and current_version(self._workdir) not in (None, self.version)
        if is_left or self._adapter.is_replaced():
            self._adapter = self._open()
        self._catch_up(is_behind=tail_files.is_announced(self._adapter.published.path))
        ids = [int(user_id) for user_id in user_ids]
        stored_users = read_stored_users(self._adapter, ids)
        digest = str(self._adapter.published.manifest["version"])
        records = (user.record(self.schema, before_ms, max_history) for user in stored_users)
        return [dataclasses.replace(record, store_version=digest) for record in records]

    def _open(self) -> FeastAdapter:
        published = PublishedVersion.open(self._workdir, self._digest)
        self._check_schema(published.schema)
        adapter = FeastAdapter(published)
        adapter.check_online()
        return adapter

    def _catch_up(self, *, is_behind: bool) -> None:
        """Finish a push that was killed, or remember why that is not possible."""
        if not is_behind:
            self._behind = ""
            self._announced_at = math.inf
            return
        now = time.monotonic()
        self._announced_at = min(now, self._announced_at)
        if now < self._next_attempt:
            return
        self._next_attempt = now + CATCH_UP_SECONDS
        self._behind = self._finish_killed_push(now - self._announced_at)

    def _finish_killed_push(self, pending_seconds: float) -> str:
        """Finish a push that was killed; return why that is not possible, empty if it was done."""
        try:
            with write_lock(self._workdir):
                require_own_keys(self._workdir, self._adapter.published.path)
                finish_killed_push(self._adapter)
        except WriterBusyError:
            if pending_seconds < MAX_PUSH_SECONDS:
                return ""
            return f"a push has been running for {pending_seconds:.0f} s"
        except (OSError, LongrecError) as error:
            logger.warning("a push was killed and cannot be finished: %s", error)
            return f"a push was killed and cannot be finished: {error}"
        return ""

    def _check_schema(self, published: Schema) -> None:
        if self._expected_schema is None:
            return
        differences = self._expected_schema.differences(published)
        if differences:
            raise SchemaMismatch(
                f"the feature store at {self._workdir} was published for another schema",
                found="; ".join(differences),
                fix="Publish the features of this dataset, or serve a model of the published one.",
            )


def finish_killed_push(adapter: FeastAdapter) -> None:
    """Write online what a killed push completed on disk; remove what it did not complete.

    The caller holds the lock of the writers.

    Raises:
        StoreError: the online store cannot be written.
    """
    version = adapter.published.path
    tail_files.remove_incomplete(version)
    for feature_time_us, compacted, tails in tail_files.not_online(version):
        adapter.write_online(compacted, tails)
        tail_files.record_online(version, feature_time_us)
    tail_files.end_push(version)


def read_stored_users(adapter: FeastAdapter, user_ids: list[int]) -> list[StoredUser]:
    """Return the stored values of each user, in the given order.

    SQLite and Redis return base and tail in one read, other stores in two. If a compaction happens
    after the base and before the tail is read, the tail continues a longer base than was read. Such
    users are read again. If an old tail is read with a new base, both hold some events, and merging
    drops the repeats.

    Raises:
        DataError: a stored value is damaged, events are missing, or a tail is without its base.
        StoreError: the online store cannot be read.
    """
    users = _read_once(adapter, user_ids)
    for _ in range(MAX_RETRIES):
        inconsistent = [row for row, user in enumerate(users) if not user.is_consistent]
        if not inconsistent:
            return users
        inconsistent_ids = [user_ids[row] for row in inconsistent]
        read_again = _read_once(adapter, inconsistent_ids)
        for row, user in zip(inconsistent, read_again, strict=True):
            users[row] = user
    raise DataError(
        "the online store lacks events that it says a user has, or holds a tail without its base",
        found=f"{len(inconsistent)} users, for example {inconsistent_ids[0]}",
        fix=PUBLISH_FIRST,
    )


def _read_once(adapter: FeastAdapter, user_ids: list[int]) -> list[StoredUser]:
    schema = adapter.published.schema
    answers = adapter.read_online(user_ids)
    return [
        StoredUser.of(user_id, values, schema)
        for user_id, values in zip(user_ids, answers, strict=True)
    ]
