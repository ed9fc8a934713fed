"""Random encoded histories on disk: the files that a training maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.training_step import (
    NOW_MS,
    NUM_ACTIONS,
    NUM_ITEMS,
    NUM_REGIONS,
    SPAN_MS,
)
from longrec.data import files

TRAIN_SPLIT = 1
TARGETS_PER_REQUEST = 32


def write_encoded_histories(
    directory: Path, num_users: int, num_events: int, *, num_items: int = NUM_ITEMS
) -> None:
    """Write encoded histories in the schema of the synthetic dataset.

    Each user has one request of `TARGETS_PER_REQUEST` targets, and `num_events` events.
    """
    rng = np.random.default_rng(0)
    users = np.arange(num_users, dtype=np.int64)
    total_events = num_users * num_events
    total_targets = num_users * TARGETS_PER_REQUEST
    ages = np.sort(rng.integers(0, SPAN_MS, num_events))[::-1]
    popular = rng.random(total_events, np.float32) ** 3 * num_items
    arrays = {
        "event_items": popular.astype(np.int32),
        "event_features": rng.integers(0, NUM_ACTIONS, (total_events, 1), dtype=np.int32),
        "event_timestamps": np.tile(NOW_MS - ages, num_users),
        "target_items": rng.integers(0, num_items + 1, total_targets, dtype=np.int32),
        "labels": rng.integers(0, 2, (total_targets, 1), dtype=np.int8),
        "user_features": rng.integers(0, NUM_REGIONS, (num_users, 1), dtype=np.int32),
        "request_ids": users,
        "request_users": users,
        "request_timestamps": np.full(num_users, NOW_MS, np.int64),
        "splits": np.full(num_users, TRAIN_SPLIT, np.int8),
        "event_starts": users * num_events,
        "event_ends": (users + 1) * num_events,
        "target_starts": users * TARGETS_PER_REQUEST,
        "target_ends": (users + 1) * TARGETS_PER_REQUEST,
    }
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=False)
    files.write_json(directory / "meta.json", {"encoder_fingerprint": "benchmark"})
    files.fsync_directory(directory)
