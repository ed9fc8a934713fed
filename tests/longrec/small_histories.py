"""A small histories directory whose labels depend on the history.

Every user likes some topics: events are mostly of them, and a target is clicked, mostly, when its
topic was seen often.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data.histories import HistoriesWriter
from longrec.schema import Feature, Schema, Task

NUM_ITEMS, NUM_TOPICS = 60, 6
FIRST_ID = 2**60 + 1
SPLIT_MS = 1_700_000_000_000
SCHEMA = Schema(
    name="small",
    item=(
        Feature("item_id", "id", min_count=2),
        Feature("topic", "category"),
        Feature("price", "number", "float64", num_bins=4),
    ),
    user=(Feature("region", "category", "string"),),
    event=(
        Feature("action", "category", "string"),
        Feature("seconds", "number", "float64", num_bins=4),
    ),
    tasks=(Task("click"), Task("buy")),
)


def topic_of(items: np.ndarray) -> np.ndarray:
    return (items - FIRST_ID) % NUM_TOPICS


def write(
    directory: Path,
    *,
    num_users: int = 60,
    max_events: int = 60,
    requests_per_user: int = 10,
    seed: int = 0,
) -> Path:
    """Writes the directory and returns it; the first user has no event."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, max_events, num_users)
    sizes[0] = 0
    liked = rng.integers(0, NUM_TOPICS, (num_users, 2))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    owner = np.repeat(np.arange(num_users), sizes)
    topics = np.where(
        rng.random(total) < 0.8,
        liked[owner, rng.integers(0, 2, total)],
        rng.integers(0, NUM_TOPICS, total),
    )
    items = FIRST_ID + topics + NUM_TOPICS * rng.integers(0, NUM_ITEMS // NUM_TOPICS, total)
    times = np.sort(
        SPLIT_MS + rng.integers(-20_000_000, 2_000_000, total) // 100_000 * 100_000
    )  # with ties
    times = (
        np.concatenate([np.sort(times[rng.permutation(total)[:size]]) for size in sizes])
        if total
        else times
    )
    codec = {
        "item_id": items,
        "timestamp": times,
        "event_seq": np.arange(total),
        "action": rng.choice(["view", "buy"], total),
        "seconds": pa.array([None if value < 0.1 else float(value) for value in rng.random(total)]),
    }
    events, middle = pa.table(codec).combine_chunks(), int(offsets[num_users // 2])
    ids = FIRST_ID + np.arange(NUM_ITEMS)
    users = pa.table(
        {
            "user_row": np.arange(num_users),
            "user_id": np.arange(num_users) * 11 + 5,
            "event_start": offsets[:-1],
            "event_end": offsets[1:],
            "region": rng.choice(["north", "south"], num_users),
        }
    )
    items_table = pa.table({"item_id": ids, "topic": topic_of(ids), "price": rng.random(NUM_ITEMS)})
    with HistoriesWriter(directory, SCHEMA) as writer:
        for part in (
            events.slice(0, middle),
            events.slice(middle),
        ):  # two record batches, as from two shards
            writer.add(part)
        writer.finish(
            users,
            *_requests(rng, liked, offsets, times, requests_per_user),
            items_table,
            {"split_time_ms": SPLIT_MS},
        )
    return directory


def _requests(
    rng: np.random.Generator, liked: np.ndarray, offsets: np.ndarray, times: np.ndarray, count: int
) -> tuple[pa.Table, pa.Table]:
    """Returns (requests, targets)."""
    num_users = len(liked)
    users = np.repeat(np.arange(num_users), count)
    request_times = SPLIT_MS + rng.integers(-8_000_000, 3_000_000, len(users))
    order = np.argsort(request_times, kind="stable")
    users, request_times = users[order], request_times[order]
    ends = np.array(
        [
            offsets[user] + np.searchsorted(times[offsets[user] : offsets[user + 1]], request_time)
            for user, request_time in zip(users, request_times, strict=True)
        ]
    )
    sizes = rng.integers(1, 6, len(users))
    target_offsets = np.concatenate([[0], np.cumsum(sizes)])
    topics = rng.integers(0, NUM_TOPICS, target_offsets[-1])
    owner = np.repeat(users, sizes)
    clicked = (
        rng.random(len(topics)) < np.where((liked[owner] == topics[:, None]).any(1), 0.9, 0.1)
    ).astype(np.int8)
    items = FIRST_ID + topics + NUM_TOPICS * rng.integers(0, NUM_ITEMS // NUM_TOPICS, len(topics))
    items[-1] = 42  # an item that is not in the table
    targets = pa.table(
        {
            "item_id": items,
            "click": clicked,
            "buy": (clicked * (rng.random(len(topics)) < 0.3)).astype(np.int8),
        }
    )
    splits = np.where(request_times < SPLIT_MS, "train", "eval").astype("<U6")
    splits[:5] = "warmup"
    requests = pa.table(
        {
            "request_id": 1000 + np.arange(len(users)),
            "user_row": users,
            "timestamp": request_times,
            "event_start": offsets[users],
            "event_end": ends,
            "target_start": target_offsets[:-1],
            "target_end": target_offsets[1:],
            "split": splits,
        }
    )
    return requests, targets
