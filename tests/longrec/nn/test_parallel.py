"""Pieces of work on several threads: the same results in the same order, whatever a helper does."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from longrec.nn import parallel


@pytest.fixture(autouse=True)
def shared() -> Iterator[None]:
    before = torch.get_num_threads()
    parallel.share(3)
    yield
    parallel.share(1)
    torch.set_num_threads(before)


def test_pieces_run_at_the_same_time_and_come_back_in_order() -> None:
    barrier = threading.Barrier(3, timeout=60)  # passes only when three threads are in a piece

    def piece(number: int) -> tuple[int, bool, int]:
        barrier.wait()
        return number, torch.is_inference_mode_enabled(), torch.get_num_threads()

    with torch.inference_mode():
        found = parallel.run([lambda number=number: piece(number) for number in range(3)])
    assert found == [(0, True, 1), (1, True, 1), (2, True, 1)]


def test_helpers_that_are_busy_are_not_waited_for() -> None:
    release = threading.Event()
    busy = [parallel._helpers.submit(release.wait, 60) for _ in range(2)]
    try:
        assert parallel.run([lambda number=number: number for number in range(50)]) == list(
            range(50)
        )
        assert not any(each.done() for each in busy)
    finally:
        release.set()


def test_what_a_piece_raises_comes_out() -> None:
    together = threading.Barrier(2, timeout=60)

    def fails() -> None:
        together.wait()
        raise ValueError("this one")

    for piece in ([fails, together.wait], [together.wait, fails]):
        with pytest.raises(ValueError, match="this one"):
            parallel.run(piece)
    assert parallel.run([lambda: 1, lambda: 2]) == [1, 2]


def test_rows_by_pieces_are_those_of_the_whole() -> None:
    rows = torch.randn(10, 3)
    assert torch.equal(parallel.by_rows(lambda part: part * 2, rows, 4), rows * 2)


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="there is one core"
)
def test_helpers_are_woken_on_other_cores_than_their_waker() -> None:
    mine = os.sched_getaffinity(0)
    together = threading.Barrier(3, timeout=60)
    found = parallel.run([lambda: (together.wait(), os.sched_getaffinity(0))[1]] * 3)
    assert sorted(len(mine - each) for each in found) == [
        0,
        0,
        0,
    ]  # helpers that are new may be anywhere
    for _ in range(2):
        found = parallel.run([lambda: (together.wait(), os.sched_getaffinity(0))[1]] * 3)
        assert sorted(len(mine - each) for each in found) == [0, 1, 1]
    assert os.sched_getaffinity(0) == mine
