"""A small random dataset with ties, baskets, nulls, huge ids and partly unknown users.

Most users have events and features. `NO_FEATURES` has no row in users.parquet, `NO_EVENTS` has
features and requests but no event, and `NOBODY` has only requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import history
from longrec.data.dataset import Dataset, event_schema, item_schema, target_schema, user_schema
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.shards import part_of
from longrec.schema import Feature, Schema, Task

HUGE = 2**60 + 1
START_MS = 1_600_000_000_000
NO_FEATURES = 5
NO_EVENTS = HUGE + 1
NOBODY = HUGE + 2
NUM_ITEMS = 30
SCHEMA = Schema(
    name="random",
    item=(
        Feature("item_id", "id"),
        Feature("author", "id"),
        Feature("topic", "category", max_null_share=0.0),
        Feature("price", "number", "float64"),
    ),
    user=(
        Feature("inviter", "id"),
        Feature("group", "id", max_null_share=0.0),
        Feature("age", "number"),
        Feature("city", "category", "string"),
        Feature("score", "number", "float64"),
    ),
    event=(
        Feature("action", "category", "string"),
        Feature("seconds", "number", "float64"),
        Feature("source", "id"),
    ),
    tasks=(Task("click"), Task("buy")),
    has_baskets=True,
    has_event_numbers=True,
)


def write(
    directory: Path,
    *,
    seed: int = 0,
    num_users: int = 20,
    max_events: int = 25,
    num_parts: int = 2,
    schema: Schema = SCHEMA,
) -> Dataset:
    """Write the dataset and open it."""
    rng = np.random.default_rng(seed)
    ids = np.array([*range(num_users - 1), HUGE])
    events = [
        row
        for user in ids.tolist()
        for row in _events_of(rng, user, int(rng.integers(1, max_events)))
    ]
    targets = _targets(rng, [*ids.tolist(), NO_EVENTS, NOBODY], events)
    with DatasetWriter(
        directory, schema, name="random", source={"seed": seed}, num_parts=num_parts
    ) as writer:
        for part in range(num_parts):
            writer.write_part(
                part,
                _of_part(
                    events,
                    event_schema(schema),
                    part,
                    num_parts,
                    ("user_id", "timestamp", "event_seq"),
                ),
                _of_part(
                    targets,
                    target_schema(schema),
                    part,
                    num_parts,
                    ("user_id", "timestamp", "request_id"),
                ),
            )
        known = [user for user in [*ids.tolist(), NO_EVENTS] if user != NO_FEATURES]
        writer.write_entities(_items(rng, schema), _users(rng, known, schema))
    return Dataset.open(directory)


def _events_of(
    rng: np.random.Generator,
    user: int,
    count: int,
) -> list[dict[str, Any]]:
    """Return baskets of one to three events; baskets often share a time."""
    rows: list[dict[str, Any]] = []
    time = START_MS + int(rng.integers(0, 10))
    while len(rows) < count:
        time += int(rng.integers(0, 4))
        for _ in range(int(rng.integers(1, 4))):
            rows.append(
                {
                    "user_id": user,
                    "item_id": _item(int(rng.integers(0, NUM_ITEMS + 3))),
                    "timestamp": time,
                    "event_seq": len(rows) * 2 + 1,
                    "basket_id": HUGE + time * 7 + user % 1000,
                    "action": rng.choice(["view", "buy", "größe", None]),
                    "seconds": rng.choice([0.5, None, float("nan"), 1e300]),
                    "source": rng.choice([None, HUGE, HUGE + 2]),
                }
            )
    return rows


def _targets(
    rng: np.random.Generator, users: list[int], events: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return requests at the time of an event, next to it, and before and after all events."""
    rows = []
    request = 1000
    for user in users:
        times = [row["timestamp"] for row in events if row["user_id"] == user] or [START_MS]
        request_times = sorted(
            {int(rng.choice(times)) + int(rng.integers(-1, 2)) for _ in range(4)}
            | {max(times) + 1, min(times)}
        )
        for request_time in request_times:
            request += 1
            for _ in range(int(rng.integers(1, 4))):
                rows.append(
                    {
                        "request_id": request,
                        "user_id": user,
                        "timestamp": request_time,
                        "item_id": _item(int(rng.integers(0, NUM_ITEMS))),
                        "click": int(rng.integers(0, 2)),
                        "buy": int(rng.integers(0, 2)),
                    }
                )
    return rows


def _items(rng: np.random.Generator, schema: Schema) -> pa.Table:
    rows = [
        {
            "item_id": _item(row),
            "author": rng.choice([None, HUGE + row]),
            "topic": row % 4,
            "price": rng.choice([None, row * 0.1]),
        }
        for row in range(NUM_ITEMS)
    ]
    return pa.Table.from_pylist(rows, schema=item_schema(schema))


def _users(
    rng: np.random.Generator,
    users: list[int],
    schema: Schema,
) -> pa.Table:
    rows = [
        {
            "user_id": user,
            "inviter": rng.choice([None, HUGE, -HUGE]),
            "group": HUGE + user % 3,
            "age": rng.choice([None, 2**53, -7]),
            "city": rng.choice(["", "Köln", None]),
            "score": rng.choice([None, float("nan"), 0.1]),
        }
        for user in users
    ]
    return pa.Table.from_pylist(rows, schema=user_schema(schema))


def _of_part(
    rows: list[dict[str, Any]], schema: pa.Schema, part: int, num_parts: int, order: tuple[str, ...]
) -> pa.Table:
    own = [row for row in rows if part_of(np.array([row["user_id"]]), num_parts)[0] == part]
    return pa.Table.from_pylist(
        sorted(own, key=lambda row: [row[name] for name in order]), schema=schema
    )


def _item(row: int) -> int:
    return HUGE + 3 * row


def live(
    rng: np.random.Generator,
    count: int,
    users: list[int],
    *,
    seq: int = 100_000,
) -> pa.Table:
    """Return new events at random times, often before or at those of stored ones."""
    rows = []
    for number in range(count):
        time = START_MS + int(rng.integers(0, 80))
        rows.append(
            {
                "user_id": int(rng.choice(np.array(users))),
                "item_id": int(rng.integers(1, 40)),
                "timestamp": time,
                "event_seq": seq + number,
                "basket_id": -1 - time,
                "action": rng.choice(["view", "neu", None]),
                "seconds": rng.choice([0.25, None, float("nan")]),
                "source": rng.choice([None, HUGE]),
            }
        )
    return table_of(rows)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    plain = pa.schema(
        [
            pa.field(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
            for field in history.arrow_schema(SCHEMA)
        ]
    )
    names = [pa.field("user_id", pa.int64())] if rows and "user_id" in rows[0] else []
    return pa.Table.from_pylist(rows, schema=pa.schema([*names, *plain]))
