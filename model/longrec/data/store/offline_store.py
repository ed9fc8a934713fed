"""OfflineStore: reads of single users from the tables on disk, to inspect and to compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longrec.data.store.feast_adapter import ONLINE_BATCH_USERS, FeastAdapter
from longrec.data.store.user_record import StoredUser, UserRecord
from longrec.data.store.versions import PublishedVersion
from longrec.schema import USER_ID, Schema


class OfflineStore:
    """Reads the records that the online store serves from the tables on disk.

    To make histories for training use `retrieve`.

    Args:
        workdir: the work directory (LONGREC_HOME).
        repo_dir: not used; a version holds its own settings.

    Raises:
        StoreError: nothing was published, or the registry was made for another schema.
    """

    def __init__(
        self,
        workdir: str | Path,
        repo_dir: str | Path | None = None,
    ) -> None:
        self._adapter = FeastAdapter(PublishedVersion.open(workdir))

    @property
    def schema(self) -> Schema:
        """The published schema."""
        return self._adapter.published.schema

    def fetch(
        self,
        user_ids: Sequence[int],
        *,
        before_ms: int | None = None,
        max_history: int | None = None,
    ) -> list[UserRecord]:
        """Return the record of each user; arguments and result as of `OnlineStore.fetch`.

        Raises:
            DataError: a stored history is corrupted.
            StoreError: the offline store cannot be read.
        """
        ids = [int(user_id) for user_id in user_ids]
        distinct_ids = np.unique(np.array(ids, np.int64))
        records: dict[int, UserRecord] = {}
        for start in range(0, len(distinct_ids), ONLINE_BATCH_USERS):
            batch = distinct_ids[start : start + ONLINE_BATCH_USERS]
            for row in self._adapter.current_rows(batch).to_pylist():
                user = StoredUser.of(row[USER_ID], row, self.schema)
                records[user.user_id] = user.record(self.schema, before_ms, max_history)
        return [records[user_id] for user_id in ids]
