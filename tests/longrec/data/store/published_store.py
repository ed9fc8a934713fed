"""A random dataset, published and retrieved, for the tests of the feature store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from longrec.config import DataConfig
from longrec.data import features
from longrec.data.dataset import Dataset
from longrec.data.histories import Histories
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import RetrieveReport, retrieve
from tests.longrec.data import random_log

REPO = Path(__file__).parents[4] / "feature_repo"
SMALL = DataConfig(
    shard_users=6,
    max_history=9,
    eval_fraction=0.3,
    warmup_fraction=0.1,
)


@dataclasses.dataclass(frozen=True)
class PublishedStore:
    """A dataset that was built, published and retrieved."""

    root: Path
    source: Dataset
    report: RetrieveReport

    @property
    def workdir(self) -> Path:
        return self.root / "workdir"

    @property
    def histories(self) -> Histories:
        return Histories.open(self.root / "histories")

    def events(self) -> dict[int, list[dict[str, Any]]]:
        """Return the events of each user in order, times in ms."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for part in self.source.event_parts():
            for row in part.set_column(
                2, "timestamp", part.column("timestamp").cast(pa.int64())
            ).to_pylist():
                rows.setdefault(row["user_id"], []).append(row)
        return {
            user: sorted(events, key=lambda row: (row["timestamp"], row["event_seq"]))
            for user, events in rows.items()
        }

    def requests(self) -> list[dict[str, Any]]:
        """Return the targets of the dataset by request, in the order of the histories."""
        rows: dict[int, dict[str, Any]] = {}
        for part in self.source.target_parts():
            for row in part.set_column(
                2, "timestamp", part.column("timestamp").cast(pa.int64())
            ).to_pylist():
                request = rows.setdefault(row["request_id"], {**row, "targets": []})
                request["targets"].append((row["item_id"], row["click"], row["buy"]))
        return sorted(rows.values(), key=lambda row: (row["timestamp"], row["request_id"]))


def make(
    root: Path,
    *,
    seed: int = 0,
    data: DataConfig = SMALL,
    **options: Any,
) -> PublishedStore:
    source = random_log.write(root / "data", seed=seed, **options)
    features.build_features(source.path, root / "features", data)
    publish(root / "features", root / "workdir", REPO)
    return PublishedStore(
        root,
        source,
        retrieve(
            source.path,
            root / "workdir",
            REPO,
            root / "histories",
            data,
            seed,
        ),
    )
