"""Times of calls, and the peak rates of this machine."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Times = tuple[float, float, float]
"""Three quantiles in ms: 20, 50 and 80 %, unless the claim of a row says otherwise."""
GPU_PRODUCTS = 30
CPU_PRODUCTS = 5
"""Number of matrix products behind a peak rate."""


def timed(
    work: Callable[[], object], device: torch.device, *, repeats: int = 20, warm: int = 3
) -> Times:
    """Return the times of one call.

    On a CUDA device the calls follow one another without waiting, as in a training loop.
    """
    for _ in range(warm):
        work()
    if device.type != "cuda":
        return _middle_quantiles([_milliseconds(work) for _ in range(repeats)])
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return _middle_quantiles([start.elapsed_time(end) for start, end in itertools.pairwise(marks)])


def replayed(work: Callable[[], object]) -> Callable[[], None]:
    """Return a function that replays `work` as a CUDA graph, without the host's part."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def matmul_peak(
    device: torch.device, dtype: torch.dtype, *, size: int = 8192, repeats: int = 0
) -> float:
    """Return the rate of a square matrix product on random data, in FLOP/s.

    On a GPU at its power limit a product that runs for a second is slower than a few of them.

    Args:
        device: of the product.
        dtype: of the operands.
        size: rows and columns.
        repeats: number of products; 0 for a few.
    """
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    few = GPU_PRODUCTS if device.type == "cuda" else CPU_PRODUCTS
    _, median, _ = timed(lambda: left @ right, device, repeats=repeats or few)
    return 2 * size**3 / median * 1e3


def copy_peak(device: torch.device, *, size: int = 1 << 31) -> float:
    """Return the rate of a copy on the device: bytes read plus bytes written per second."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    _, median, _ = timed(lambda: target.copy_(source), device, repeats=10)
    return 2 * size / median * 1e3


def _middle_quantiles(times: Sequence[float]) -> Times:
    low, *_, high = statistics.quantiles(times, n=5, method="inclusive")
    return low, statistics.median(times), high


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
