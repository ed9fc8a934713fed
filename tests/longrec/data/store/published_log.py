"""A published log for the tests of pushes: its histories are also known by sorting its events."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.dataset import Dataset, event_schema
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.shards import part_of
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from tests.longrec.data import random_log
from tests.longrec.data.random_log import SCHEMA, START_MS, table_of

REPO = Path(__file__).parents[4] / "feature_repo"
FOREVER_MS = 2**62
NO_LIMIT = 10_000


@dataclasses.dataclass(frozen=True)
class PublishedLog:
    """A published work directory and its events.

    Args:
        root: holds the dataset, the feature tables and the work directory.
        events: of the dataset.
        redis_address: host:port of the online store; None for SQLite.
    """

    root: Path
    events: pa.Table
    redis_address: str | None = None

    @property
    def workdir(self) -> Path:
        return self.root / "workdir"

    @property
    def tables(self) -> Path:
        return self.root / "features"

    def online(self) -> OnlineStore:
        return OnlineStore(self.workdir)

    def offline(self) -> OfflineStore:
        return OfflineStore(self.workdir)

    def publish_again(self) -> int:
        """Publish the same tables again; return the number of carried events."""
        return publish(self.tables, self.workdir, REPO).num_carried

    def expected(
        self,
        pushes: list[pa.Table],
        user: int,
        before_ms: int = FOREVER_MS,
        max_history: int = NO_LIMIT,
    ) -> bytes:
        """Return the packed history of a user, made by sorting all events."""
        event_of_key = {}
        for table in [self.events, *pushes]:
            own = table.filter(pc.equal(table["user_id"], user))
            for event in own.to_pylist():
                key = (event["timestamp"], event["event_seq"], event["item_id"])
                event_of_key.setdefault(key, event)
        keys = [key for key in sorted(event_of_key) if key[0] < before_ms]
        events = [event_of_key[key] for key in keys[-max_history:]]
        return history.pack(table_of(events), SCHEMA)


def make(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_address: str | None = None,
) -> PublishedLog:
    """Publish a random log; to Redis where an address is given."""
    if redis_address is not None:
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        monkeypatch.setenv("LONGREC_REDIS", redis_address)
    source = random_log.write(root / "data")
    features.build_features(source.path, root / "features", DataConfig(shard_users=7))
    publish(root / "features", root / "workdir", REPO)
    return PublishedLog(root, all_events(source), redis_address)


def all_events(source: Dataset) -> pa.Table:
    """Return user_id and the codec's columns of all events, times in ms."""
    table = pa.concat_tables(source.event_parts())
    position = table.schema.get_field_index("timestamp")
    times = table["timestamp"].cast(pa.int64())
    table = table.set_column(position, "timestamp", times)
    return table.select(["user_id", *history.arrow_schema(SCHEMA).names])


def with_events(
    log: PublishedLog,
    root: Path,
    events: pa.Table,
) -> PublishedLog:
    """Write a copy of the dataset with other events and build its tables, without publishing."""
    source = Dataset.open(log.root / "data")
    columns = event_schema(SCHEMA)
    position = events.schema.get_field_index("timestamp")
    times = events["timestamp"].cast(TIMESTAMP_TYPE)
    table = events.set_column(position, "timestamp", times)
    table = table.select(columns.names).cast(columns)
    order = [(name, "ascending") for name in ("user_id", "timestamp", "event_seq")]
    table = table.sort_by(order)
    parts = part_of(table["user_id"].to_numpy(), 2)
    with DatasetWriter(
        root / "data",
        SCHEMA,
        name="random",
        source={"seed": 0},
        num_parts=2,
    ) as writer:
        for part, targets in enumerate(source.target_parts()):
            own = table.filter(pa.array(parts == part))
            writer.write_part(part, own, targets)
        writer.write_entities(source.items(), source.users())
    features.build_features(root / "data", root / "features", DataConfig(shard_users=7))
    return dataclasses.replace(log, events=events, root=root)


def assert_histories_are_sorted_events(
    log: PublishedLog,
    pushes: list[pa.Table],
    users: list[int],
    rng: np.random.Generator,
    num_pairs: int = 60,
) -> None:
    """Compare both stores with the sorted events, for random users and times, bit for bit."""
    stores = (log.online(), log.offline())
    histories = []
    for store in stores:
        histories.append({record.user_id: record.history for record in store.fetch(users)})
    for pair in range(num_pairs):
        user = int(rng.choice(np.array(users)))
        before_ms = START_MS + int(rng.integers(-1, 90))
        max_history = int(rng.choice([3, 10, NO_LIMIT]))
        expected = log.expected(pushes, user, before_ms, max_history)
        for store, history_of_user in zip(stores, histories, strict=True):
            events = history.events_before(history_of_user[user], before_ms)
            recent = history.most_recent(events, max_history)
            assert history.pack(recent, SCHEMA) == expected, (type(store), user, before_ms)
        if pair == 0:
            for store in stores:
                [record] = store.fetch([user], before_ms=before_ms, max_history=max_history)
                assert history.pack(record.history, SCHEMA) == expected
