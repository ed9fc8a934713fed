"""Grouping of events into requests: windows, samples of requests and limits."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from longrec.data.importers.requests.exposures import exposure_requests
from longrec.data.importers.requests.grouping import RequestGrouping, window_starts
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.errors import DataError
from tests.longrec.data.importers.requests.events import (
    EXPOSURES,
    GROUPINGS,
    LOGS,
    LogRow,
    event_table,
)


@given(LOGS, GROUPINGS)
@settings(max_examples=100, deadline=None)
def test_windows_equal_a_plain_loop(log: list[LogRow], grouping: RequestGrouping) -> None:
    rows = sorted((user, time) for user, time, _, _ in log)
    starts: list[int] = []
    for place, (user, time) in enumerate(rows):
        first_user, first_time = rows[starts[-1]] if starts else (-1, 0)
        is_late = time - first_time > grouping.window_ms
        is_full = bool(starts) and place - starts[-1] >= grouping.max_targets
        if first_user != user or is_late or is_full:
            starts.append(place)
    users, times = np.array(rows, np.int64).T
    assert window_starts(users, times, grouping).tolist() == starts


def test_the_sample_of_requests_does_not_depend_on_the_partition() -> None:
    rows = [(user, 10 * place, place % 7, 1) for user in range(6) for place in range(20)]
    grouping = RequestGrouping(window_ms=0, max_requests_per_user=4, seed=3)
    whole = exposure_requests(event_table(rows), EXPOSURES, grouping, 0).targets
    halves = []
    for half in (0, 1):
        users_of_half = event_table([row for row in rows if row[0] % 2 == half])
        halves.append(exposure_requests(users_of_half, EXPOSURES, grouping, 0).targets)
    chosen = _users_and_times(whole)
    assert chosen == _users_and_times(pa.concat_tables(halves))
    assert len(chosen) == 24
    times_of_users = [[time for owner, time in chosen if owner == user] for user in range(6)]
    assert any(first != second for first, second in itertools.combinations(times_of_users, 2)), (
        "users get different places"
    )


def _users_and_times(targets: pa.Table) -> list[tuple[int, object]]:
    users = targets["user_id"].to_pylist()
    return sorted(zip(users, targets["timestamp"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"window_ms": -1}, {"max_targets": 0}, {"max_requests_per_user": -1}],
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(DataError):
        RequestGrouping(**options)


@pytest.mark.parametrize("per_positive", [0, 10**6])
def test_a_number_of_negatives_out_of_range_is_refused(per_positive: int) -> None:
    with pytest.raises(DataError):
        NegativeSampling(per_positive)
