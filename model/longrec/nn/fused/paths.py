"""Switch of the fused paths: whether the CUDA kernels run, or their reference implementations."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

MIN_CAPABILITY = (9, 0)
"""Least compute capability of the device (Hopper): the kernels copy tiles by tensor descriptors."""

_reference_only = False


def available() -> bool:
    """Return whether Triton is installed and the CUDA device has the capability for its kernels."""
    return not _reference_only and _is_capable()


@functools.cache
def _is_capable() -> bool:
    return (
        importlib.util.find_spec("triton") is not None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= MIN_CAPABILITY
    )


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Run the reference implementations within the block, on any device, for comparisons."""
    global _reference_only
    before = _reference_only
    _reference_only = True
    try:
        yield
    finally:
        _reference_only = before


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return function.apply(*arguments), which torch leaves untyped."""
    return function.apply(*arguments)
