"""A small histories directory with labels that depend on the history.

Every user likes two topics. Most of the user's events are of them, and most clicked targets too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from longrec.config import DataConfig
from longrec.data.histories_writer import HistoriesWriter, split_requests
from longrec.schema import Feature, Schema, Task

Array: TypeAlias = np.ndarray

NUM_ITEMS = 60
NUM_TOPICS = 6
ITEMS_PER_TOPIC = NUM_ITEMS // NUM_TOPICS
FIRST_ID = 2**60 + 1
UNKNOWN_ID = 42
SPLIT_MS = 1_700_000_000_000
TIME_STEP_MS = 100_000
"""Times are multiples of it, so some are equal."""
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
    tasks=(
        Task("click"),
        Task("buy"),
    ),
)


def write(
    directory: Path,
    *,
    num_users: int = 60,
    max_events: int = 60,
    requests_per_user: int = 10,
    validation_fraction: float = 0.0,
    split: Literal["time", "user"] = "time",
    seed: int = 0,
) -> Path:
    """Write the directory and return it; the first user has no event.

    Without a validation part and by time, evaluation requests are those from SPLIT_MS on.
    """
    rng = np.random.default_rng(seed)
    num_events = rng.integers(1, max_events, num_users)
    num_events[0] = 0
    liked = rng.integers(0, NUM_TOPICS, (num_users, 2))
    offsets = np.concatenate([[0], np.cumsum(num_events)])
    events, times = _events(rng, liked, num_events)
    users = pa.table(
        {
            "user_row": np.arange(num_users),
            "user_id": np.arange(num_users) * 11 + 5,
            "event_start": offsets[:-1],
            "event_end": offsets[1:],
            "region": rng.choice(["north", "south"], num_users),
        }
    )
    items = _items(rng)
    # two record batches, as from two shards
    middle = int(offsets[num_users // 2])
    with HistoriesWriter(directory, SCHEMA) as writer:
        writer.add(events.slice(0, middle))
        writer.add(events.slice(middle))
        requests, targets = _requests(
            rng,
            liked,
            offsets,
            times,
            requests_per_user=requests_per_user,
        )
        facts: dict[str, Any] = {"split_time_ms": SPLIT_MS}
        if validation_fraction:
            data = DataConfig(split=split, validation_fraction=validation_fraction)
            requests, facts = _divide(requests, data)
        writer.finish(
            users,
            requests,
            targets,
            items,
            facts,
        )
    return directory


def _events(rng: np.random.Generator, liked: Array, num_events: Array) -> tuple[pa.Table, Array]:
    """Return (events user by user, their times)."""
    total = int(num_events.sum())
    owner = np.repeat(np.arange(len(num_events)), num_events)
    is_liked = rng.random(total) < 0.8
    liked_topics = liked[owner, rng.integers(0, 2, total)]
    other_topics = rng.integers(0, NUM_TOPICS, total)
    topics = np.where(is_liked, liked_topics, other_topics)
    items = _items_of(rng, topics)
    steps = rng.integers(-20_000_000, 2_000_000, total) // TIME_STEP_MS
    times = np.sort(SPLIT_MS + steps * TIME_STEP_MS)
    parts = []
    for size in num_events:
        chosen = rng.permutation(total)[:size]
        parts.append(np.sort(times[chosen]))
    if total:
        times = np.concatenate(parts)
    actions = rng.choice(["view", "buy"], total)
    seconds = [None if value < 0.1 else float(value) for value in rng.random(total)]
    events = pa.table(
        {
            "item_id": items,
            "timestamp": times,
            "event_seq": np.arange(total),
            "action": actions,
            "seconds": pa.array(seconds),
        }
    )
    return events.combine_chunks(), times


def _items(rng: np.random.Generator) -> pa.Table:
    ids = FIRST_ID + np.arange(NUM_ITEMS)
    return pa.table(
        {
            "item_id": ids,
            "topic": (ids - FIRST_ID) % NUM_TOPICS,
            "price": rng.random(NUM_ITEMS),
        }
    )


def _items_of(rng: np.random.Generator, topics: Array) -> Array:
    """Return a random item of each topic."""
    numbers = rng.integers(0, ITEMS_PER_TOPIC, len(topics))
    return FIRST_ID + topics + NUM_TOPICS * numbers


def _requests(
    rng: np.random.Generator,
    liked: Array,
    offsets: Array,
    times: Array,
    *,
    requests_per_user: int,
) -> tuple[pa.Table, pa.Table]:
    """Return (requests in time order, their targets)."""
    user_rows = np.repeat(np.arange(len(liked)), requests_per_user)
    request_times = SPLIT_MS + rng.integers(-8_000_000, 3_000_000, len(user_rows))
    order = np.argsort(request_times, kind="stable")
    user_rows = user_rows[order]
    request_times = request_times[order]
    num_targets = rng.integers(1, 6, len(user_rows))
    target_offsets = np.concatenate([[0], np.cumsum(num_targets)])
    owners = np.repeat(user_rows, num_targets)
    targets = _targets(rng, liked[owners])
    splits = np.where(request_times < SPLIT_MS, "train", "eval").astype("<U6")
    splits[:5] = "warmup"
    requests = pa.table(
        {
            "request_id": 1000 + np.arange(len(user_rows)),
            "user_row": user_rows,
            "timestamp": request_times,
            "event_start": offsets[user_rows],
            "event_end": _event_ends(offsets, times, user_rows, request_times),
            "target_start": target_offsets[:-1],
            "target_end": target_offsets[1:],
            "split": splits,
        }
    )
    return requests, targets


def _divide(requests: pa.Table, data: DataConfig) -> tuple[pa.Table, dict[str, Any]]:
    """Return the requests with other parts, and the entries of the manifest."""
    columns = {name: np.asarray(requests[name]) for name in requests.column_names}
    num_targets = columns["target_end"] - columns["target_start"]
    found = split_requests(columns["timestamp"], columns["user_row"], num_targets, data)
    columns["split"] = pa.array(found.names)
    facts = {
        "split": data.split,
        "train_end_ms": found.train_end,
        "split_time_ms": found.eval_start,
    }
    return pa.table(columns), facts


def _event_ends(offsets: Array, times: Array, user_rows: Array, request_times: Array) -> Array:
    """Return the end of each request's history: events strictly before its time."""
    ends = []
    for user, request_time in zip(user_rows, request_times, strict=True):
        start = offsets[user]
        own_times = times[start : offsets[user + 1]]
        ends.append(start + np.searchsorted(own_times, request_time))
    return np.array(ends)


def _targets(rng: np.random.Generator, liked: Array) -> pa.Table:
    """Return the targets of users who like some topics.

    Args:
        rng: generator.
        liked: [N, 2], topics that the user of each target likes.
    """
    num_targets = len(liked)
    topics = rng.integers(0, NUM_TOPICS, num_targets)
    is_liked = (liked == topics[:, None]).any(1)
    click_rates = np.where(is_liked, 0.9, 0.1)
    is_clicked = rng.random(num_targets) < click_rates
    items = _items_of(rng, topics)
    items[-1] = UNKNOWN_ID
    is_bought = is_clicked & (rng.random(num_targets) < 0.3)
    return pa.table(
        {
            "item_id": items,
            "click": is_clicked.astype(np.int8),
            "buy": is_bought.astype(np.int8),
        }
    )
