"""Requests of exposures: each exposure is a target once, at the time of the first one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from longrec.data.importers.requests.exposures import exposure_requests
from longrec.data.importers.requests.grouping import RequestGrouping
from tests.longrec.data.importers.requests.events import (
    EXPOSURES,
    GROUPINGS,
    LOGS,
    LogRow,
    event_table,
    rows_by_request,
    timestamps,
)


@given(LOGS, GROUPINGS)
@settings(max_examples=100, deadline=None)
def test_exposures_become_targets_once_at_the_time_of_the_first(
    log: list[LogRow],
    grouping: RequestGrouping,
) -> None:
    events = event_table(log)
    targets = exposure_requests(events, EXPOSURES, grouping, 10).targets
    requests = rows_by_request(targets)
    assert list(requests) == list(range(10, 10 + len(requests)))
    for rows in requests.values():
        assert len({(row["user_id"], row["timestamp"]) for row in rows}) == 1
        assert len(rows) <= grouping.max_targets
    if grouping.max_requests_per_user:
        users = [rows[0]["user_id"] for rows in requests.values()]
        counts = np.unique(users, return_counts=True)[1]
        assert counts.max() <= grouping.max_requests_per_user
        return
    assert targets["item_id"].to_pylist() == events["item_id"].to_pylist()
    assert targets["click"].to_pylist() == events["click"].to_pylist()
    times = events["timestamp"].cast(pa.int64()).to_pylist()
    place = 0
    for rows in requests.values():
        first_time = rows[0]["timestamp"]
        for time in times[place : place + len(rows)]:
            assert first_time <= time <= first_time + grouping.window_ms
        place += len(rows)


def test_a_basket_of_exposures_is_one_request() -> None:
    events = pa.table(
        {
            "user_id": [1] * 5,
            "item_id": [1, 2, 3, 4, 5],
            "timestamp": timestamps(np.array([5, 5, 5, 5, 9])),
            "event_seq": [0, 1, 2, 3, 4],
            "basket_id": [8, 7, 8, 7, 6],
            "click": pa.array([1, 0, 0, 1, 1], pa.int8()),
            "like": pa.array([0] * 5, pa.int8()),
        }
    )
    schema = dataclasses.replace(EXPOSURES, has_baskets=True)
    targets = exposure_requests(events, schema, RequestGrouping(), 0).targets
    assert targets["request_id"].to_pylist() == [0, 0, 1, 1, 2]
    assert targets["item_id"].to_pylist() == [2, 4, 1, 3, 5]
    assert targets["click"].to_pylist() == [0, 1, 1, 0, 1]
