"""Mounts for the tests: small disks and read-only folders."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(source: Path | str, target: Path, *options: str) -> Iterator[None]:
    """Mount a folder once with each text of options; skip the test where that is not allowed."""
    try:
        for option in options:
            _mount("-o", option, str(source), str(target))
        yield
    finally:
        subprocess.run(["umount", str(target)], check=False, capture_output=True)


@contextlib.contextmanager
def small_disk(target: Path, num_bytes: int) -> Iterator[None]:
    """Mount a file system in memory of this size; skip the test where that is not allowed."""
    target.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(target))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
