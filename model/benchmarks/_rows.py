"""What the benchmarks share: timing, the peaks of the machine, and rows of results.csv."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import itertools
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results.csv"
FIELDS = (
    "claim",
    "command",
    "device",
    "versions",
    "commit",
    "shape",
    "dtype",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "flops",
    "bytes",
    "share_of_floor",
    "notes",
)
Times = tuple[float, float, float]
"""20, 50 and 80 % quantiles, ms."""


def timed(
    work: Callable[[], object], device: torch.device, *, repeats: int = 20, warm: int = 3
) -> Times:
    """Returns the times of one call. On a CUDA device the calls follow one another without waiting,
    as in a training loop.
    """
    for _ in range(warm):
        work()
    if device.type != "cuda":
        return _quantiles([_seconds(work) * 1e3 for _ in range(repeats)])
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return _quantiles([before.elapsed_time(after) for before, after in itertools.pairwise(marks)])


def replayed(work: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that repeats what `work` does on the CUDA device, without the host's part
    (a captured graph).
    """
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
    """Returns the rate of a square matrix product on random data, FLOP/s; of `repeats` of them, 0
    for a few.

    On a GPU at its power limit a product that goes on for a second is slower than a few of them.
    """
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return (
        2
        * size**3
        / timed(
            lambda: left @ right, device, repeats=repeats or (30 if device.type == "cuda" else 5)
        )[1]
        * 1e3
    )


def copy_peak(device: torch.device, *, size: int = 1 << 31) -> float:
    """Returns the rate of a copy on the device, bytes read plus bytes written per second."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, repeats=10)[1] * 1e3


def row(
    claim: str,
    shape: str,
    dtype: str,
    times: Times | None,
    *,
    flops: float = 0,
    num_bytes: float = 0,
    share: float | None = None,
    notes: str = "",
) -> dict[str, str]:
    """Returns one row of results.csv, with this command (but for where rows go), device, versions
    and commit.
    """
    quantiles = ("", "", "") if times is None else tuple(f"{value:.4f}" for value in times)
    words = [
        word
        for before, word in itertools.pairwise(["", *sys.argv[1:]])
        if "--out" not in (before, word)
    ]
    values = (
        claim,
        shlex.join(["python", os.path.relpath(sys.argv[0], Path(__file__).parents[2]), *words]),
        _device(),
        _versions(),
        _commit(),
        shape,
        dtype,
        *quantiles,
        f"{flops:.4g}" if flops else "",
        f"{num_bytes:.4g}" if num_bytes else "",
        "" if share is None else f"{share:.3f}",
        notes,
    )
    return dict(zip(FIELDS, values, strict=True))


def append(rows: list[dict[str, str]], path: Path = RESULTS) -> None:
    """Adds rows to a CSV file, with its header when it is new."""
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _quantiles(times: list[float]) -> Times:
    low, *_, high = statistics.quantiles(times, n=5, method="inclusive")
    return low, statistics.median(times), high


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def cpu_name() -> str:
    """Returns what the processor calls itself."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    return platform.processor() or platform.machine()


def _versions() -> str:
    found = [f"torch {torch.__version__}"]
    if importlib.util.find_spec("triton") is not None:
        import triton

        found.append(f"triton {triton.__version__}")
    if torch.cuda.is_available():
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            found.append(
                f"driver {subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()}"
            )
    return ", ".join(found)


def _commit() -> str:
    if "LONGREC_COMMIT" in os.environ:
        return os.environ["LONGREC_COMMIT"]
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return found.stdout.strip()
