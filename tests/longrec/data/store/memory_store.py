"""A published version whose online store is a dict: pushes and refreshes without Feast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import history
from longrec.data.columns import (
    EVENT_TIME,
    FEATURE_TIME_TYPE,
    HISTORY,
    HISTORY_LENGTH,
    TAIL,
    TAIL_BASE,
)
from longrec.data.store import live_events, tail_files
from longrec.data.store.online_store import read_stored_users
from longrec.data.store.push import accept_repeats, add_events, carry_over, tail_rows
from longrec.data.store.versions import PublishedVersion
from longrec.schema import CREATED, USER_ID, Schema

Event = dict[str, Any]


class MemoryAdapter:
    """Stands in for FeastAdapter.

    Args:
        published: the version.
    """

    def __init__(self, published: PublishedVersion) -> None:
        self.published = published
        self.online: dict[int, dict[str, Any]] = {}

    def read_online(self, user_ids: list[int]) -> list[dict[str, Any]]:
        missing = dict.fromkeys((HISTORY, TAIL, TAIL_BASE))
        return [{**missing, **self.online.get(user_id, {})} for user_id in user_ids]

    def write_online(self, histories: pa.Table | None, tails: pa.Table) -> None:
        for table in (histories, tails):
            for row in [] if table is None else table.to_pylist():
                self.online.setdefault(row[USER_ID], {}).update(row)


@dataclasses.dataclass
class MemoryStore:
    """A work directory of one process.

    Args:
        root: directory of the versions.
        schema: of the events.
    """

    root: Path
    schema: Schema
    num_versions: int = 0
    adapter: Any = None

    def refresh(self, log: Sequence[Event]) -> None:
        """Publish a log, its events in the order of the log, with the pushed events before it."""
        previous = self.adapter
        version = self.root / str(self.num_versions)
        self.num_versions += 1
        for folder in ("feast", "features/user_history"):
            (version / folder).mkdir(parents=True)
        histories = self._histories(log)
        pq.write_table(histories, version / "features/user_history/part-00000.parquet")
        tail_files.write_tails(version, tail_rows([], 0))
        end_ms = max((event["timestamp"] for event in log), default=0)
        published = PublishedVersion(version, {"time_range_ms": [0, end_ms]}, self.schema)
        self.adapter = MemoryAdapter(published)
        self.adapter.write_online(histories, histories.slice(0, 0))
        if previous is not None:
            carry_over(previous.published, self.adapter)

    def push(self, events: Sequence[Event]) -> int:
        """Push events; return the number of new ones."""
        table = live_events.conform(pa.Table.from_pylist(list(events)), self.schema)
        return add_events(self.adapter, table, accept_repeats).num_new

    def served(self, user: int) -> pa.RecordBatch:
        """Return the served history of a user."""
        [stored] = read_stored_users(self.adapter, [user])
        return stored.merged(self.schema)

    def _histories(self, log: Sequence[Event]) -> pa.Table:
        """Return rows of user_history."""
        rows = []
        for user in sorted({event[USER_ID] for event in log}):
            own = [
                {**event, "event_seq": position}
                for position, event in enumerate(log)
                if event[USER_ID] == user
            ]
            own.sort(key=lambda event: (event["timestamp"], event["event_seq"]))
            batch = history.conform(pa.Table.from_pylist(own), self.schema)
            rows.append((user, history.pack(batch, self.schema), len(own)))
        end_ms = max((event["timestamp"] for event in log), default=0)
        times = pa.array(np.full(len(rows), end_ms * 1_000)).cast(FEATURE_TIME_TYPE)
        return pa.table(
            {
                USER_ID: pa.array([user for user, _, _ in rows], pa.int64()),
                EVENT_TIME: times,
                CREATED: times,
                HISTORY: pa.array([payload for _, payload, _ in rows], pa.binary()),
                HISTORY_LENGTH: pa.array([length for _, _, length in rows], pa.int64()),
            }
        )
