"""Search for the longest history that trains within a limit of GPU memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from harness import training_step
from longrec.nn.ranker import Ranker

LIMIT_GIB = 16
BYTES_PER_GIB = 2**30
STEP = 512
FIRST_LENGTH = 512
LAST_LENGTH = 1 << 20
PRECISION = 50
"""The result is exact to one part in so many."""
BatchSizes = tuple[int, int, int]
"""Requests, events and targets."""


def longest_history(model: Ranker, sizes: Callable[[int], BatchSizes], device: torch.device) -> int:
    """Return the most events of a training step within LIMIT_GIB, to 2 %.

    Args:
        model: is trained.
        sizes: gives the sizes of a batch for a length.
        device: a CUDA device.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(LIMIT_GIB * BYTES_PER_GIB / total)
    low = FIRST_LENGTH
    high = LAST_LENGTH
    while high - low > max(STEP, low // PRECISION):
        middle = (low + high) // 2 // STEP * STEP
        if _fits(model, sizes(middle), device):
            low = middle
        else:
            high = middle
    torch.cuda.set_per_process_memory_fraction(1.0)
    return low


def free_memory() -> None:
    """Release the cached memory of the device and forget its peak."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Return the peak of the allocated memory since it was last forgotten."""
    return torch.cuda.max_memory_allocated() / BYTES_PER_GIB


def _fits(model: Ranker, sizes: BatchSizes, device: torch.device) -> bool:
    """Return whether two training steps find the memory they need."""
    fits = _trains(model, sizes, device)
    model.zero_grad()
    free_memory()
    return fits


def _trains(model: Ranker, sizes: BatchSizes, device: torch.device) -> bool:
    try:
        step = training_step.make_step(model, training_step.random_batch(*sizes, device))
        step()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    return True
