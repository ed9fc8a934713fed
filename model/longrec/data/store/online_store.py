"""OnlineStore: reads of single users from the online store, for serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.user_record import StoredUser, UserRecord
from longrec.data.store.versions import PUBLISH_FIRST, PublishedVersion
from longrec.data.store.workdir import current_version
from longrec.errors import SchemaMismatch, StoreError
from longrec.schema import Schema

MAX_RETRIES = 5
"""Further attempts to read a base history and a tail that belong together."""


class OnlineStore:
    """Reads users from the online store and follows the work directory to new versions.

    Args:
        workdir: the work directory (LONGREC_HOME).
        repo_dir: not used; a version holds its own settings.
        schema: the schema that the caller works with; None accepts the published one.

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
    ) -> None:
        self._workdir = Path(workdir)
        self._expected_schema = schema
        self._adapter = self._open()

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._adapter.published.schema

    @property
    def version(self) -> str:
        """Name of the published version that is being read."""
        return self._adapter.published.path.name

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

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the online store cannot be read.
        """
        if current_version(self._workdir) not in (None, self.version):
            self._adapter = self._open()
        ids = [int(user_id) for user_id in user_ids]
        stored_users = read_stored_users(self._adapter, ids)
        return [user.record(self.schema, before_ms, max_history) for user in stored_users]

    def _open(self) -> FeastAdapter:
        published = PublishedVersion.open(self._workdir)
        self._check_schema(published.schema)
        adapter = FeastAdapter(published)
        adapter.check_online()
        return adapter

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


def read_stored_users(adapter: FeastAdapter, user_ids: list[int]) -> list[StoredUser]:
    """Return the stored values of each user, in the given order.

    SQLite and Redis return base and tail in one read, other stores in two. If a compaction happens
    after the base and before the tail is read, the tail continues a longer base than was read. Such
    users are read again. If an old tail is read with a new base, both hold some events, and merging
    drops the repeats.

    Raises:
        DataError: a stored history is corrupted.
        StoreError: the online store cannot be read, or holds a tail without its base.
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
    raise StoreError(
        "the online store holds a tail without its base",
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
