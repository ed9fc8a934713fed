"""The machine that settings are derived for."""

from __future__ import annotations

import dataclasses
import os

CPU_FLOPS_PER_CORE = 40e9
"""FLOP/s of one core in the matrix products of a training step in float32; a cautious value."""
CPU_SECONDS_PER_ROW = 2.5e-6
"""Time of one core for an event or target in the forward pass, apart from matrix products."""
GPU_FLOPS = 60e12
"""FLOP/s of a GPU in a training step of a narrow model in bfloat16; a cautious value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a training.

    Args:
        num_cpus: cores that this process may use.
        memory_bytes: memory of the machine.
        has_gpu: whether torch finds a CUDA device.
    """

    num_cpus: int
    memory_bytes: int
    has_gpu: bool = False

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        import torch

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(len(os.sched_getaffinity(0)), memory, torch.cuda.is_available())

    def forward_seconds(self, flops: float, num_rows: float) -> float:
        """Return the expected time of the forward pass of one request.

        Args:
            flops: of its matrix products.
            num_rows: its events and targets.
        """
        if self.has_gpu:
            return flops / GPU_FLOPS
        return (flops / CPU_FLOPS_PER_CORE + num_rows * CPU_SECONDS_PER_ROW) / self.num_cpus

    def __str__(self) -> str:
        device = "a GPU" if self.has_gpu else f"{self.num_cpus} CPU cores"
        return f"{device}, {self.memory_bytes / 2**30:.0f} GiB of memory"
