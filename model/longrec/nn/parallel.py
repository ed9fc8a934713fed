"""Pieces of one forward pass on several cores of a process that serves: big work is shared out,
small work stays on one thread.

OpenMP cuts every operation into equal parts and waits for the last of them, some fifty times a
request; on a core that has other work each
wait costs more than the part was worth. After `share` torch has one thread, and whoever is free
takes the next piece of what is worth
cutting: attention over kept events, encoding of many, the head of many targets. A helper that does
not get a core holds nobody up.
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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from longrec.errors import ConfigError

T = TypeVar("T")
_helpers: ThreadPoolExecutor | None = None
_helper_ids: dict[int, int] = {}
"""Native ids of the helpers, and the core that each keeps off."""
_num_threads = 1


def share(num_threads: int) -> None:
    """From now on `run` has this many threads, its caller counted, and torch one in each; a setting
    of the process, as torch's own is.

    Raises:
        ConfigError: fewer than one.
    """
    if num_threads < 1:
        raise ConfigError("a forward pass needs a thread", found=num_threads, expected="1 or more")
    global _helpers, _num_threads
    if _helpers is not None:
        _helpers.shutdown()
    _helper_ids.clear()
    torch.set_num_threads(1)
    _helpers = (
        ThreadPoolExecutor(num_threads - 1, "longrec-piece", _begin) if num_threads > 1 else None
    )
    _num_threads = num_threads


def num_threads(rows: Tensor) -> int:
    """Returns the threads that may share work on these rows; 1 before `share`, on another device,
    and under autocast, a thread's own.
    """
    return 1 if rows.device.type != "cpu" or torch.is_autocast_enabled("cpu") else _num_threads


def run(pieces: Sequence[Callable[[], T]]) -> list[T]:
    """Returns what each piece returns; they run in any order, at the same time where `share` was
    called. Raises what a piece raises.
    """
    if len(pieces) == 1 or _helpers is None:
        return [piece() for piece in pieces]
    results, todo, is_inference = (
        dict[int, T](),
        deque(enumerate(pieces)),
        torch.is_inference_mode_enabled(),
    )

    def work() -> None:
        with torch.inference_mode(is_inference):
            while todo:
                try:
                    index, piece = todo.popleft()
                except IndexError:
                    return
                results[index] = piece()

    _keep_off_this_core()
    helping = [_helpers.submit(work) for _ in range(min(_num_threads, len(pieces)) - 1)]
    try:
        work()
    finally:
        todo.clear()
        under_way = [
            helper for helper in helping if not helper.cancel()
        ]  # one that has not begun is not waited for
        errors = [helper.exception() for helper in under_way]
    for error in errors:
        if error is not None:
            raise error
    return [results[index] for index in range(len(pieces))]


def by_rows(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Returns function(rows) of a function whose rows depend on their own row only, `size` rows a
    piece.
    """
    if num_threads(rows) == 1 or len(rows) <= size:
        return function(rows)
    return torch.cat(run([functools.partial(function, part) for part in rows.split(size)]))


def _begin() -> None:
    torch.get_num_threads()  # products of a new thread take all cores until torch is asked
    _helper_ids[threading.get_native_id()] = -1


def _keep_off_this_core() -> None:
    """Lets helpers wake up on other cores than this thread's. Linux leaves a thread that is woken
    after an idle time beside its waker, for
    ten milliseconds and more, while another core does nothing: it goes by what it last knew of
    their load (docs/log.md)."""
    if sys.platform != "linux":
        return
    core = _libc().sched_getcpu()
    others = os.sched_getaffinity(0) - {core}
    for helper, kept_off in _helper_ids.items():
        if others and kept_off != core:
            with contextlib.suppress(OSError):  # a helper that has ended
                os.sched_setaffinity(helper, others)
            _helper_ids[helper] = core


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
