"""Arithmetic on sorted rows: runs of equal keys, steps back, split baskets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.data.timelines import (
    equals_previous,
    find_split_basket,
    group_lengths,
    group_spans,
    group_starts,
    steps_back,
)

pairs = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    max_size=12,
)


def columns_of(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@given(rows=pairs)
def test_steps_are_those_of_comparing_rows_one_by_one(rows: list[tuple[int, int]]) -> None:
    columns = columns_of(rows)
    steps = list(itertools.pairwise(rows))
    assert equals_previous(*columns).tolist() == [after == before for before, after in steps]
    assert steps_back(*columns).tolist() == [after < before for before, after in steps]


@given(rows=pairs)
def test_groups_are_the_runs_of_equal_rows(rows: list[tuple[int, int]]) -> None:
    columns = columns_of(rows)
    spans = list(group_spans(*columns))
    assert [row for start, end in spans for row in rows[start:end]] == rows
    assert all(len(set(rows[start:end])) == 1 for start, end in spans)
    assert group_starts(*columns).tolist() == [start for start, _ in spans]
    assert group_lengths(*columns).tolist() == [end - start for start, end in spans]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([5, 5, 6], None),
        ([5, 6, 6], (1, "basket 7 of user 1")),
    ],
)
def test_a_basket_with_two_times_is_found(
    times: list[int],
    expected: tuple[int, str] | None,
) -> None:
    users = np.array([1, 1, 1])
    baskets = np.array([7, 7, 8])
    assert find_split_basket(users, baskets, np.array(times)) == expected
