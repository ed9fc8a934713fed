"""Errors of tensors against a truth in float64, with bounds per precision."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_FLOAT32_ERROR = 1e-5
MAX_ERROR_RATIO = 2.0
"""Largest error in bfloat16 over that of plain PyTorch in bfloat16."""
MAX_SMALL_ERROR = 2**-6
"""Largest error of a tensor that is too small for a ratio: the size of bfloat16's step."""
MIN_RATIO_NUMBERS = 64
"""Numbers of a tensor from which on its ratio is no luck."""
TINY = 1e-30
Tensors = dict[str, Tensor]
Check = tuple[str, bool, str]
"""Name, whether it passed, and details."""


def relative_error(tensor: Tensor, truth: Tensor) -> float:
    """Return |tensor - truth| / |truth|; infinite for a NaN."""
    exact = truth.detach().double()
    difference = tensor.detach().double() - exact
    distance = float(difference.norm() / exact.norm().clamp_min(TINY))
    return float("inf") if distance != distance else distance


def stacked(results: list[Tensors]) -> Tensors:
    """Return the results of several batches as one."""
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def compare(
    name: str,
    ours: Tensors,
    plain: Tensors,
    truth: Tensors,
    min_ratio_numbers: int = MIN_RATIO_NUMBERS,
) -> Check:
    """Check that every tensor of `ours` is within twice the error of `plain`.

    Args:
        name: of the check.
        ours: of the fused paths.
        plain: of plain PyTorch, in the same precision.
        truth: in float64.
        min_ratio_numbers: smaller tensors are compared with MAX_SMALL_ERROR instead.
    """
    if set(ours) != set(truth):
        return name, False, f"gradients missing: {sorted(set(truth) - set(ours))}"
    keys = [key for key, tensor in truth.items() if float(tensor.norm()) > 0]
    our_errors = {key: relative_error(ours[key], truth[key]) for key in keys}
    plain_errors = {key: relative_error(plain[key], truth[key]) for key in keys}
    large = [key for key in keys if truth[key].numel() >= min_ratio_numbers]
    small = [key for key in keys if truth[key].numel() < min_ratio_numbers]
    ratios = {key: our_errors[key] / max(plain_errors[key], 1e-12) for key in large}
    worst = max(ratios, key=lambda key: ratios[key])
    small_error = max((our_errors[key] for key in small), default=0.0)
    passed = ratios[worst] <= MAX_ERROR_RATIO and small_error <= MAX_SMALL_ERROR
    details = (
        f"logits {our_errors['logits']:.2e} (plain {plain_errors['logits']:.2e}); "
        f"worst ratio {ratios[worst]:.2f} ({worst}: {our_errors[worst]:.2e}, "
        f"plain {plain_errors[worst]:.2e}); small ones {small_error:.1e}; {len(keys)} tensors"
    )
    return name, passed, details
