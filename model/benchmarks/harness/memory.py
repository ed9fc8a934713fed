"""Peak memory of this process."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

KIB_PER_MIB = 2**10


def peak_mib() -> float:
    """Return the peak of this program in MiB.

    VmHWM counts this program alone; ru_maxrss also holds the peak of the process that started it.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) / KIB_PER_MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB
