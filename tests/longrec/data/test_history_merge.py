"""Merging a base history and its tail: every event once, in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data import history
from longrec.schema import Feature, Schema, Task

SCHEMA = Schema(
    "seam",
    (Feature("item_id", "id"),),
    (),
    (Feature("action", "category", "string"),),
    (Task("click"),),
)
KEYS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 2)), max_size=12)


def of(keys: set[tuple[int, int, int]], source: str) -> pa.RecordBatch:
    """Return events of some keys that name their origin."""
    rows = np.array(sorted(keys), np.int64).reshape(-1, 3)
    return history.conform(
        pa.table(
            {
                "timestamp": rows[:, 0],
                "event_seq": rows[:, 1],
                "item_id": rows[:, 2],
                "action": pa.array([source] * len(rows), pa.string()),
            }
        ),
        SCHEMA,
    )


@settings(deadline=None, max_examples=150)
@given(KEYS, KEYS)
def test_each_key_once_in_order_the_base_first(
    base: set[tuple[int, int, int]], tail: set[tuple[int, int, int]]
) -> None:
    found = history.merge(of(base, "base"), of(tail, "tail"), SCHEMA).to_pylist()
    assert [(row["timestamp"], row["event_seq"], row["item_id"]) for row in found] == sorted(
        base | tail
    )
    assert [row["action"] for row in found] == [
        "base" if key in base else "tail" for key in sorted(base | tail)
    ]


def test_a_tail_that_the_base_holds_already_is_dropped() -> None:
    """A reader can see an old tail with the new base during a compaction."""
    base = of({(0, 0, 1), (1, 1, 1), (2, 2, 1)}, "base")
    assert history.pack(history.merge(base, base.slice(1), SCHEMA), SCHEMA) == history.pack(
        base, SCHEMA
    )
