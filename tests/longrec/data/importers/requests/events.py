"""Small random event tables and strategies for tests of requests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from longrec.data.columns import TIMESTAMP_TYPE
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.schema import Feature, Schema, Task

LogRow = tuple[int, int, int, int]
"""User, time, item and click."""

ITEM = (Feature("item_id", "id"),)
EXPOSURES = Schema(
    name="exposures",
    item=ITEM,
    user=(),
    event=(),
    tasks=(Task("click"), Task("like")),
)
BASKETS = Schema(
    name="baskets",
    item=ITEM,
    user=(),
    event=(),
    tasks=(Task("label"),),
    has_baskets=True,
)
WINDOWS = Schema(
    name="windows",
    item=ITEM,
    user=(),
    event=(),
    tasks=(Task("label"),),
)
LOGS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 9), st.integers(0, 1)),
    min_size=1,
    max_size=60,
)
GROUPINGS = st.builds(
    RequestGrouping,
    window_ms=st.integers(0, 4),
    max_targets=st.integers(1, 5),
    max_requests_per_user=st.integers(0, 3),
    seed=st.integers(0, 3),
)


def timestamps(times: np.ndarray) -> pa.Array:
    return pa.array(times, pa.int64()).cast(pa.timestamp("ms")).cast(TIMESTAMP_TYPE)


def event_table(rows: list[LogRow], *, has_baskets: bool = False) -> pa.Table:
    """Return the events; with baskets, one basket per (user, time)."""
    rows = sorted(rows, key=lambda row: row[:2])
    users, times, items, clicks = np.array(rows, np.int64).T
    columns = {
        "user_id": users,
        "item_id": items,
        "timestamp": timestamps(times),
        "event_seq": np.arange(len(rows)),
        "click": clicks.astype(np.int8),
        "like": (items % 2).astype(np.int8),
    }
    if has_baskets:
        columns["basket_id"] = users * 100 + 50 - times
    return pa.table(columns)


def rows_by_request(targets: pa.Table) -> dict[int, list[dict[str, int]]]:
    """Return request id -> its targets, with times in ms."""
    times = targets["timestamp"].cast(pa.int64())
    requests: dict[int, list[dict[str, int]]] = {}
    for row in targets.set_column(2, "timestamp", times).to_pylist():
        requests.setdefault(row["request_id"], []).append(row)
    return requests
