"""Chunks of work on several threads: the same results in the same order, whatever a helper does."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from longrec.nn import parallel

HAS_SEVERAL_CORES = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    parallel.set_num_threads(3)
    yield
    parallel.set_num_threads(1)
    torch.set_num_threads(before)


def test_chunks_run_at_the_same_time_and_return_in_order() -> None:
    barrier = threading.Barrier(3, timeout=60)  # passes only when three threads are in a chunk

    def chunk(number: int) -> tuple[int, bool, int]:
        barrier.wait()
        return number, torch.is_inference_mode_enabled(), torch.get_num_threads()

    with torch.inference_mode():
        results = parallel.run_chunks([functools.partial(chunk, number) for number in range(3)])
    assert results == [(0, True, 1), (1, True, 1), (2, True, 1)]


def test_busy_helpers_are_not_waited_for() -> None:
    release = threading.Event()
    busy = [parallel._executor.submit(release.wait, 60) for _ in range(2)]
    chunks = [functools.partial(int, number) for number in range(50)]
    try:
        assert parallel.run_chunks(chunks) == list(range(50))
        assert not any(helper.done() for helper in busy)
    finally:
        release.set()


def test_an_error_of_a_chunk_is_raised() -> None:
    barrier = threading.Barrier(2, timeout=60)

    def fail() -> None:
        barrier.wait()
        raise ValueError("this one")

    for chunks in ([fail, barrier.wait], [barrier.wait, fail]):
        with pytest.raises(ValueError, match="this one"):
            parallel.run_chunks(chunks)
    assert parallel.run_chunks([lambda: 1, lambda: 2]) == [1, 2]


def test_rows_in_chunks_equal_the_rows_of_the_whole() -> None:
    rows = torch.randn(10, 3)
    assert torch.equal(parallel.map_rows(lambda part: part * 2, rows, 4), rows * 2)


@pytest.mark.skipif(not HAS_SEVERAL_CORES, reason="there is one core")
def test_helpers_wake_up_on_other_cores_than_their_waker() -> None:
    own_cores = os.sched_getaffinity(0)
    barrier = threading.Barrier(3, timeout=60)

    def forbidden_cores() -> int:
        barrier.wait()
        return len(own_cores - os.sched_getaffinity(0))

    # New helpers may be anywhere.
    assert sorted(parallel.run_chunks([forbidden_cores] * 3)) == [0, 0, 0]
    for _ in range(2):
        assert sorted(parallel.run_chunks([forbidden_cores] * 3)) == [0, 1, 1]
    assert os.sched_getaffinity(0) == own_cores
