"""Histories of single users, base and tail merged: the online door for serving, the offline one for
looking and for proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import features, history
from longrec.data.store import feast_adapter as doors
from longrec.data.store.feast_adapter import Door
from longrec.data.store.versions import PUBLISH_FIRST, Published, current_version
from longrec.errors import SchemaMismatch, StoreError
from longrec.schema import USER_ID, Feature, Schema

READS = 5
"""Attempts to read a base and its tail that belong together."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserRows:
    """What the feature store knows of one user.

    Args:
        user_id: who was asked for.
        history: events of the user, published and pushed, oldest first (the history codec's
            columns); no rows when there are none.
        features: value of each user feature by name, None for a missing one; None for a user
            without features.
    """

    user_id: int
    history: pa.RecordBatch
    features: dict[str, Any] | None


class OnlineStore:
    """The online door, for serving. Follows `workdir` when a new version is published.

    Args:
        workdir: LONGREC_HOME.
        repo_dir: what relative paths in feature_store.yaml are relative to; None where there are
            none.
        schema: what the caller works with; None to take the published one as it is.

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
        self._workdir, self._repo_dir, self._expected = Path(workdir), repo_dir, schema
        self._door = self._open()

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    @property
    def version(self) -> str:
        """Name of the published version that is being read."""
        return self._door.published.path.name

    def fetch(
        self,
        user_ids: Sequence[int],
        *,
        before_ms: int | None = None,
        max_history: int | None = None,
    ) -> list[UserRows]:
        """Returns what is known of each user, in the order asked for; an unknown user has an empty
        history and no features.

        Args:
            user_ids: any number, repeats allowed.
            before_ms: only events strictly before this moment; None for all.
            max_history: only so many of them, the most recent; None for all.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the online store cannot be read.
        """
        if current_version(self._workdir) not in (None, self.version):
            self._door = self._open()
        stored = read_online(self._door, [int(user_id) for user_id in user_ids])
        return [row.cut(self.schema, before_ms, max_history) for row in stored]

    def _open(self) -> Door:
        published = Published.open(self._workdir)
        if self._expected is not None and (lines := self._expected.differences(published.schema)):
            raise SchemaMismatch(
                f"the feature store at {self._workdir} was published for another schema",
                found="; ".join(lines),
                fix="Publish the features of this dataset, or serve a model of the published one.",
            )
        door = Door(published, self._repo_dir)
        door.check_online()
        return door


class OfflineStore:
    """The offline door to what the online one serves: published and pushed events, from the tables
    on disk. For looking and for proof;
    histories to train on come from `retrieve`.

    Args, Raises: as for `OnlineStore`.
    """

    def __init__(self, workdir: str | Path, repo_dir: str | Path | None = None) -> None:
        self._door = Door(Published.open(workdir), repo_dir)

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._door.published.schema

    def fetch(
        self,
        user_ids: Sequence[int],
        *,
        before_ms: int | None = None,
        max_history: int | None = None,
    ) -> list[UserRows]:
        """Returns what is known of each user; arguments and result as of `OnlineStore.fetch`.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the offline store cannot be read.
        """
        found: dict[int, UserRows] = {}
        ids = np.unique(np.array([int(user_id) for user_id in user_ids], np.int64))
        for start in range(0, len(ids), doors.ONLINE_USERS):
            rows = self._door.latest(ids[start : start + doors.ONLINE_USERS]).to_pylist()
            for stored in (Stored.of(row.pop(USER_ID), row, self.schema) for row in rows):
                found[stored.user_id] = stored.cut(self.schema, before_ms, max_history)
        return [found[int(user_id)] for user_id in user_ids]


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds of one user, not yet merged: base, tail, events of the base that the tail
    continues, user features.
    """

    user_id: int
    base: pa.RecordBatch
    tail: pa.RecordBatch
    tail_base: int
    features: dict[str, Any] | None

    @classmethod
    def of(
        cls,
        user_id: int,
        answer: dict[str, Any],
        schema: Schema,
    ) -> Stored:
        base, tail, tail_base = (
            answer.pop(name) for name in (features.HISTORY, features.TAIL, features.TAIL_BASE)
        )
        return cls(
            user_id,
            history.stored(base, schema),
            history.stored(tail, schema),
            int(tail_base or 0),
            _features_of(answer, schema),
        )

    def cut(
        self,
        schema: Schema,
        before_ms: int | None,
        max_history: int | None,
    ) -> UserRows:
        """Returns base and tail as one history, of it what is before a moment, of that the end."""
        events = history.merged(self.base, self.tail, schema)
        events = events if before_ms is None else history.prefix_before(events, before_ms)
        return UserRows(
            self.user_id,
            events if max_history is None else history.most_recent(events, max_history),
            self.features,
        )


def read_online(door: Door, user_ids: list[int]) -> list[Stored]:
    """Returns what is stored online of each user, in the order asked for.

    Base and tail are one read of SQLite and Redis, two of another store. A fold between two (base
    longer, tail cleared) shows as a base
    that is shorter than the tail says; such users are read again. The other mix, old tail and new
    base, holds some events twice, and
    merging drops them.
    """
    stored = [
        Stored.of(user_id, answer, door.published.schema)
        for user_id, answer in zip(user_ids, door.online(user_ids), strict=True)
    ]
    for _ in range(READS):
        torn = [row for row, user in enumerate(stored) if user.base.num_rows < user.tail_base]
        if not torn:
            return stored
        again = [user_ids[row] for row in torn]
        for row, answer in zip(torn, door.online(again), strict=True):
            stored[row] = Stored.of(user_ids[row], answer, door.published.schema)
    raise StoreError(
        "the online store holds a tail without its base",
        found=f"{len(torn)} users, for example {again[0]}",
        fix=PUBLISH_FIRST,
    )


def _features_of(answer: Mapping[str, Any], schema: Schema) -> dict[str, Any] | None:
    """Returns the user features with the types of the dataset, or None when there is no value at
    all.
    """
    if all(value is None for value in answer.values()):
        return None
    return {feature.name: _plain(answer.get(feature.name), feature) for feature in schema.user}


def _plain(value: Any, feature: Feature) -> Any:
    if value is None or value != value:  # NaN is how Feast stores a missing number
        return None
    return int(value) if feature.dtype == "int64" else value
