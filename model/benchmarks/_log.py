"""A log of equal users for the benchmarks of the data half: every user has as many events, spread
over one span of time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data.dataset import DatasetWriter, part_of
from longrec.schema import synthetic_schema

START_MS, SPAN_MS = 1_700_000_000_000, 90 * 86_400_000
NUM_ITEMS = 100_000
USERS_PER_PART = 200
_TIME = pa.timestamp("ms", tz="UTC")


def write(
    directory: Path,
    num_users: int,
    events_per_user: int,
    requests_per_user: int,
) -> None:
    """Writes the dataset in the schema of the synthetic dataset; requests lie in the second half of the
    time, one target each.
    """
    rng, everyone, num_parts = (
        np.random.default_rng(0),
        np.arange(num_users),
        max(num_users // USERS_PER_PART, 1),
    )
    with DatasetWriter(
        directory,
        synthetic_schema(),
        name="synthetic",
        source={"kind": "benchmark"},
        num_parts=num_parts,
    ) as writer:
        for part in range(num_parts):
            mine = everyone[part_of(everyone, num_parts) == part]
            writer.write_part(
                part, _events(mine, events_per_user, rng), _targets(mine, requests_per_user, rng)
            )
        items = pa.table({"item_id": np.arange(NUM_ITEMS), "topic": np.arange(NUM_ITEMS) % 8})
        writer.write_entities(items, pa.table({"user_id": everyone, "region": everyone % 8}))


def _events(users: np.ndarray, count: int, rng: np.random.Generator) -> pa.Table:
    size = len(users) * count
    times = np.sort(rng.integers(0, SPAN_MS, (len(users), count)), axis=1).ravel()
    action = pa.DictionaryArray.from_arrays(
        pa.array((rng.random(size) < 0.01).astype(np.int32)), pa.array(["view", "like"])
    )
    return pa.table(
        {
            "user_id": np.repeat(users, count),
            "item_id": rng.integers(0, NUM_ITEMS, size),
            "timestamp": pa.array(START_MS + times, _TIME),
            "event_seq": np.tile(np.arange(count), len(users)),
            "action": action.cast(pa.string()),
        }
    )


def _targets(users: np.ndarray, count: int, rng: np.random.Generator) -> pa.Table:
    size = len(users) * count
    request_times = (
        START_MS + np.sort(rng.integers(SPAN_MS // 2, SPAN_MS, (len(users), count)), axis=1).ravel()
    )
    owners = np.repeat(users, count)
    return pa.table(
        {
            "request_id": owners * 1_000 + np.tile(np.arange(count), len(users)),
            "user_id": owners,
            "timestamp": pa.array(request_times, _TIME),
            "item_id": rng.integers(0, NUM_ITEMS, size),
            "label": rng.integers(0, 2, size).astype(np.int8),
        }
    )
