"""Chunks of one forward pass on several cores of a serving process.

OpenMP splits each of about fifty operations of a request over the cores and waits for the slowest
core every time. Where a core has other work, these waits cost more than the split saves. Therefore
`set_num_threads` gives torch one thread, and only large work is split: attention over cached
events, encoding of many events, the head of many targets. Each free thread takes the next chunk, so
a helper thread that does not get a core delays nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from longrec.errors import ConfigError

T = TypeVar("T")
NO_CORE = -1
"""Number of no core, for a helper thread that may run anywhere."""
_executor: ThreadPoolExecutor | None = None
_avoided_cores: dict[int, int] = {}
"""Core that each helper thread may not use, by the thread's native id."""
_num_threads = 1


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads that `run_chunks` uses, for the whole process.

    torch itself gets one thread.

    Args:
        num_threads: threads, the caller's included.

    Raises:
        ConfigError: fewer than one.
    """
    global _executor, _num_threads
    if num_threads < 1:
        raise ConfigError("a forward pass needs a thread", found=num_threads, expected="1 or more")
    if _executor is not None:
        _executor.shutdown()
    _avoided_cores.clear()
    torch.set_num_threads(1)
    _executor = None
    if num_threads > 1:
        _executor = ThreadPoolExecutor(num_threads - 1, "longrec-chunk", _start_helper)
    _num_threads = num_threads


def num_threads_for(rows: Tensor) -> int:
    """Return the number of threads that may share work on these rows.

    It is 1 before `set_num_threads`, on other devices than the CPU, and under autocast: a helper
    thread would not see this setting of the calling thread.
    """
    if rows.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return 1
    return _num_threads


def run_chunks(chunks: Sequence[Callable[[], T]]) -> list[T]:
    """Call each chunk and return its result, in the order of the chunks.

    After `set_num_threads` they run at the same time, in any order. An error of a chunk is raised
    here.
    """
    if len(chunks) == 1 or _executor is None:
        return [chunk() for chunk in chunks]
    results: dict[int, T] = {}
    pending = deque(enumerate(chunks))
    is_inference_mode = torch.is_inference_mode_enabled()

    def take_chunks() -> None:
        with torch.inference_mode(is_inference_mode):
            while pending:
                try:
                    index, chunk = pending.popleft()
                except IndexError:  # another thread took the last one after the test
                    return
                results[index] = chunk()

    _move_helpers_to_other_cores()
    num_helpers = min(_num_threads, len(chunks)) - 1
    helpers = [_executor.submit(take_chunks) for _ in range(num_helpers)]
    try:
        take_chunks()
    finally:
        pending.clear()
        errors = _errors_of(helpers)
    for error in errors:
        if error is not None:
            raise error
    return [results[index] for index in range(len(chunks))]


def map_rows(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    chunk_rows: int,
) -> Tensor:
    """Return function(rows), computed in chunks of rows.

    Args:
        function: each row of its result depends on the same row only.
        rows: [T, ...].
        chunk_rows: rows of a chunk.
    """
    if num_threads_for(rows) == 1 or len(rows) <= chunk_rows:
        return function(rows)
    chunks = [functools.partial(function, part) for part in rows.split(chunk_rows)]
    return torch.cat(run_chunks(chunks))


def _errors_of(helpers: list[Future[None]]) -> list[BaseException | None]:
    """Wait for the helpers that have begun, cancel the others; return the errors."""
    running = [helper for helper in helpers if not helper.cancel()]
    return [helper.exception() for helper in running]


def _start_helper() -> None:
    # torch applies its thread limit to a new thread at the first query. Without one, products of
    # this thread would use all cores.
    torch.get_num_threads()
    _avoided_cores[threading.get_native_id()] = NO_CORE


def _move_helpers_to_other_cores() -> None:
    """Let helper threads wake up on other cores than this thread's.

    Linux wakes an idle thread on the core of its waker. It leaves the thread there for ten
    milliseconds and more while another core is idle, since its load record is out of date
    (docs/log.md).
    """
    if sys.platform != "linux":
        return
    core = _libc().sched_getcpu()
    others = os.sched_getaffinity(0) - {core}
    for helper, avoided_core in _avoided_cores.items():
        if not others or avoided_core == core:
            continue
        with contextlib.suppress(OSError):  # a helper that has ended
            os.sched_setaffinity(helper, others)
        _avoided_cores[helper] = core


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
