"""Times of repeated calls, with what the host did during each of them."""

from __future__ import annotations

import dataclasses
import gc
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_WARM_CALLS = 5
NUM_SLOWEST = 3
Quantiles = tuple[float, float, float]


def quantiles_of(milliseconds: list[float]) -> Quantiles:
    """Return the 50, 95 and 99 % quantiles."""
    p50, p95, p99 = np.quantile(milliseconds, [0.5, 0.95, 0.99]).tolist()
    return p50, p95, p99


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Args:
        wall_ms: by the clock.
        cpu_ms: of the calling thread.
        num_switches: involuntary switches of the calling thread.
        num_faults: page faults of the calling thread.
        num_collections: collections of Python's garbage.
    """

    wall_ms: float
    cpu_ms: float
    num_switches: int
    num_faults: int
    num_collections: int

    def __str__(self) -> str:
        return (
            f"{self.wall_ms:.2f} ms (cpu {self.cpu_ms:.1f}, {self.num_switches} switches, "
            f"{self.num_faults} faults, {self.num_collections} collections)"
        )


@dataclasses.dataclass(frozen=True)
class CallTimes:
    """Repeated calls in their order."""

    calls: list[Call]

    @classmethod
    def measure(cls, work: Callable[[int], object], repeats: int) -> CallTimes:
        """Call `work` with 0, 1, ... and return the later `repeats` calls.

        A call ends when its result is on the host.
        """
        counter = _CollectionCounter()
        gc.callbacks.append(counter)
        calls = [_measure_call(work, number, counter) for number in range(repeats + NUM_WARM_CALLS)]
        gc.callbacks.remove(counter)
        return cls(calls[NUM_WARM_CALLS:])

    @property
    def wall_ms(self) -> list[float]:
        """Time of each call in ms."""
        return [call.wall_ms for call in self.calls]

    @property
    def quantiles(self) -> Quantiles:
        """The 50, 95 and 99 % quantiles in ms."""
        return quantiles_of(self.wall_ms)

    @property
    def num_collections(self) -> int:
        """Number of garbage collections during the calls."""
        return sum(call.num_collections for call in self.calls)

    @property
    def slowest(self) -> str:
        """The three slowest calls and the median one, as text."""
        ordered = sorted(self.calls, key=lambda call: call.wall_ms)
        chosen = [*reversed(ordered[-NUM_SLOWEST:]), ordered[len(ordered) // 2]]
        return ", ".join(map(str, chosen))


class _CollectionCounter:
    """Counts the collections of Python's garbage."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop":
            self.count += 1


def _measure_call(work: Callable[[int], object], number: int, counter: _CollectionCounter) -> Call:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    num_collections = counter.count
    cpu_started = time.thread_time()
    started = time.perf_counter()
    work(number)
    wall_ms = (time.perf_counter() - started) * 1e3
    cpu_ms = (time.thread_time() - cpu_started) * 1e3
    after = resource.getrusage(resource.RUSAGE_THREAD)
    return Call(
        wall_ms=wall_ms,
        cpu_ms=cpu_ms,
        num_switches=after.ru_nivcsw - usage.ru_nivcsw,
        num_faults=after.ru_minflt - usage.ru_minflt,
        num_collections=counter.count - num_collections,
    )
