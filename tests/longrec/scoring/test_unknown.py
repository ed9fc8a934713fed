"""Counts of unknown values in histories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from longrec.data.encoder import Encoder
from longrec.schema import Feature, Schema, Task
from longrec.scoring.unknown import count_unknown

SCHEMA = Schema(
    name="shop",
    user=(),
    item=(Feature("item_id", "id"),),
    event=(
        Feature("action", "category", dtype="string", num_oov=3),
        Feature("price", "number", dtype="float64"),
        Feature("shop", "id", num_oov=0),
    ),
    tasks=(Task("label"),),
)


def encoder() -> Encoder:
    """Return an encoder that knows the items 1 and 2, the action `view` and the shop 7."""
    events = pa.record_batch(
        {
            "item_id": pa.array([1, 2]),
            "action": ["view", "view"],
            "price": [1.0, 2.0],
            "shop": pa.array([7, 7]),
        }
    )
    items = pa.table({"item_id": pa.array([1, 2])})
    return Encoder.fit(SCHEMA, items, pa.table({}), [events])


def count(**columns: list) -> dict[str, int]:
    known = {
        "item_id": [1, 2, 1],
        "timestamp": [0, 0, 0],
        "action": ["view"] * 3,
        "price": [1.0] * 3,
        "shop": [7] * 3,
    }
    fitted = encoder()
    rows, features, _ = fitted.events(pa.record_batch({**known, **columns}))
    return count_unknown(fitted, rows, features)


def test_known_values_are_not_counted() -> None:
    assert count() == {"item_id": 0, "action": 0, "shop": 0}


def test_each_column_counts_its_own_unknown_values() -> None:
    unknown = count(item_id=[1, 9, 8], action=["buy", "view", "view"])
    assert unknown == {"item_id": 2, "action": 1, "shop": 0}


def test_every_shared_index_is_unknown() -> None:
    fitted = encoder()
    features = np.array([[1, 5, 0], [2, 5, 0], [3, 5, 0], [4, 5, 0], [0, 5, 0]], np.int32)
    rows = np.ones(5, np.int32)
    assert count_unknown(fitted, rows, features)["action"] == 3


def test_missing_values_and_numbers_are_not_unknown() -> None:
    unknown = count(action=pa.nulls(3, pa.string()), price=[-1e9, None, 1e9])
    assert unknown == {"item_id": 0, "action": 0, "shop": 0}


def test_a_history_without_events_has_no_unknown_values() -> None:
    no_features = np.zeros((0, 3), np.int32)
    unknown = count_unknown(encoder(), np.zeros(0, np.int32), no_features)
    assert unknown == {"item_id": 0, "action": 0, "shop": 0}
