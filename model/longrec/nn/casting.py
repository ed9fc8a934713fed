"""Cast all weights to 16 bits in one operation forward and one backward, not two for each weight.

Values and gradients equal those of autocast bit for bit. Autocast, too, casts a weight once a pass
and sums its gradients in 16 bits.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from longrec.nn.fused.paths import apply_function

Slot: TypeAlias = tuple[nn.Module, str]
"""Module and attribute that hold a parameter."""


def parameter_slots(module: nn.Module, names: re.Pattern[str]) -> dict[str, Slot]:
    """Return the slots of the parameters whose full name matches a pattern, by name."""
    slots = {}
    for name, _ in module.named_parameters():
        if names.fullmatch(name):
            path, _, attribute = name.rpartition(".")
            slots[name] = (module.get_submodule(path), attribute)
    return slots


@contextlib.contextmanager
def cast_weights_once(slots: Mapping[str, Slot], device: torch.device) -> Iterator[None]:
    """Replace parameters by their 16-bit casts within the block.

    Nothing changes unless autocast is on, gradients are wanted and all parameters are float32.
    Without gradients several threads may share a module, so its parameters must not be replaced.
    Autocast must stay on within the block.

    Args:
        slots: module and attribute of each parameter; only matrix products may read them.
        device: of the parameters.
    """
    all_slots = list(slots.values())
    parameters = [module._parameters[attribute] for module, attribute in all_slots]
    weights = [weight for weight in parameters if weight is not None]
    is_complete = len(weights) == len(parameters)
    is_float32 = all(weight.dtype == torch.float32 for weight in weights)
    is_autocast = torch.is_grad_enabled() and torch.is_autocast_enabled(device.type)
    if not (is_autocast and is_complete and is_float32):
        yield
        return
    dtype = torch.get_autocast_dtype(device.type)
    casts = apply_function(_CastWeights, dtype, *weights)
    try:
        _assign(all_slots, casts)
        yield
    finally:
        _assign(all_slots, weights)


def _assign(slots: Sequence[Slot], values: Iterable[Any]) -> None:
    for (module, attribute), value in zip(slots, values, strict=True):
        module._parameters[attribute] = value


class _CastWeights(torch.autograd.Function):
    """Cast of all weights forward, and of all their gradients backward."""

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that was not read has no gradient
        ctx.weight_dtype = weights[0].dtype
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        casts = iter(_cast(present, ctx.weight_dtype))
        by_weight = [None if gradient is None else next(casts) for gradient in gradients]
        return None, *by_weight


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return casts of all tensors; one call copies and casts them together."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
