"""Rows of results.csv: what was measured, by which command, on which device, at which commit."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import itertools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from harness.timing import Times

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "model" / "benchmarks" / "results.csv"
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
PRINTED_FIELDS = ("claim", "shape", "p50_ms", "share_of_floor", "notes")
Row = dict[str, str]


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
) -> Row:
    """Return one row of results.csv with this command, device, versions and commit.

    Args:
        claim: name of the measurement.
        shape: sizes, such as `R4 L2048 m16 d64 h4 M2`.
        dtype: of the products.
        times: three quantiles in ms.
        flops: of one call.
        num_bytes: that one call moves.
        share: least possible time over the measured one.
        notes: everything else.
    """
    quantiles = ("", "", "") if times is None else tuple(f"{value:.4f}" for value in times)
    values = (
        claim,
        _command(),
        _device_name(),
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


def append(rows: Iterable[Row], path: Path = RESULTS) -> None:
    """Append rows to a CSV file; a new file gets the header."""
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def show(measured: Row) -> None:
    """Print the result of a row on one line."""
    print(*(measured[field] for field in PRINTED_FIELDS), sep=" | ", flush=True)


def cpu_name() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _command() -> str:
    """Return this command without `--out FILE`: the destination of rows is no part of it."""
    words = [
        word
        for before, word in itertools.pairwise(["", *sys.argv[1:]])
        if "--out" not in (before, word)
    ]
    return shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *words])


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def _versions() -> str:
    found = [f"torch {torch.__version__}"]
    if importlib.util.find_spec("triton") is not None:
        import triton

        found.append(f"triton {triton.__version__}")
    if torch.cuda.is_available():
        with contextlib.suppress(OSError):
            found.append(f"driver {_driver_version()}")
    return ", ".join(found)


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _commit() -> str:
    if "LONGREC_COMMIT" in os.environ:
        return os.environ["LONGREC_COMMIT"]
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return described.stdout.strip()
