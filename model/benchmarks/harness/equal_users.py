"""A dataset of equal users for the data benchmarks: equally many events, spread over one span."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data.dataset_writer import DatasetWriter
from longrec.data.shards import part_of
from longrec.schema import synthetic_schema

START_MS = 1_700_000_000_000
SPAN_MS = 90 * 86_400_000
NUM_ITEMS = 100_000
NUM_GROUPS = 8
"""Number of topics, and of regions."""
USERS_PER_PART = 200
LIKE_RATE = 0.01
MAX_REQUESTS_PER_USER = 1_000
TIME_TYPE = pa.timestamp("ms", tz="UTC")


def write_dataset(
    directory: Path, num_users: int, events_per_user: int, requests_per_user: int
) -> None:
    """Write a dataset in the schema of the synthetic dataset.

    Requests lie in the second half of the time, with one target each.
    """
    rng = np.random.default_rng(0)
    everyone = np.arange(num_users)
    items = np.arange(NUM_ITEMS)
    num_parts = max(num_users // USERS_PER_PART, 1)
    with DatasetWriter(
        directory,
        synthetic_schema(),
        name="synthetic",
        source={"kind": "benchmark"},
        num_parts=num_parts,
    ) as writer:
        for part in range(num_parts):
            users = everyone[part_of(everyone, num_parts) == part]
            events = _events(users, events_per_user, rng)
            targets = _targets(users, requests_per_user, rng)
            writer.write_part(part, events, targets)
        item_table = pa.table({"item_id": items, "topic": items % NUM_GROUPS})
        user_table = pa.table({"user_id": everyone, "region": everyone % NUM_GROUPS})
        writer.write_entities(item_table, user_table)


def _events(users: np.ndarray, count: int, rng: np.random.Generator) -> pa.Table:
    size = len(users) * count
    offsets = np.sort(rng.integers(0, SPAN_MS, (len(users), count)), axis=1).ravel()
    is_like = pa.array((rng.random(size) < LIKE_RATE).astype(np.int32))
    actions = pa.DictionaryArray.from_arrays(is_like, pa.array(["view", "like"]))
    return pa.table(
        {
            "user_id": np.repeat(users, count),
            "item_id": rng.integers(0, NUM_ITEMS, size),
            "timestamp": pa.array(START_MS + offsets, TIME_TYPE),
            "event_seq": np.tile(np.arange(count), len(users)),
            "action": actions.cast(pa.string()),
        }
    )


def _targets(users: np.ndarray, count: int, rng: np.random.Generator) -> pa.Table:
    size = len(users) * count
    offsets = np.sort(rng.integers(SPAN_MS // 2, SPAN_MS, (len(users), count)), axis=1).ravel()
    owners = np.repeat(users, count)
    return pa.table(
        {
            "request_id": owners * MAX_REQUESTS_PER_USER + np.tile(np.arange(count), len(users)),
            "user_id": owners,
            "timestamp": pa.array(START_MS + offsets, TIME_TYPE),
            "item_id": rng.integers(0, NUM_ITEMS, size),
            "label": rng.integers(0, 2, size).astype(np.int8),
        }
    )
