"""The weights of products in 16 bits, cast together under autocast: one operation each way, where
autocast takes two for every weight.

Values and gradients are those of autocast, bit for bit: it too casts a weight once a pass and sums
its gradients in 16 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def together(owners: Mapping[str, tuple[nn.Module, str]], device: torch.device) -> Iterator[None]:
    """Within it the parameters are their casts, where autocast is on, as it must stay, and
    gradients are wanted.

    Without gradients several threads may share a module, and nothing is changed in it.

    Args:
        owners: module and attribute of each parameter, which nothing but products may read.
        device: of them.
    """
    places = list(owners.values())
    weights = [module._parameters[name] for module, name in places]
    if not (
        torch.is_grad_enabled()
        and torch.is_autocast_enabled(device.type)
        and all(weight is not None and weight.dtype == torch.float32 for weight in weights)
    ):
        yield
        return
    cast = _Cast.apply(torch.get_autocast_dtype(device.type), *weights)  # type: ignore[no-untyped-call]
    try:
        for (module, name), value in zip(places, cast, strict=True):
            module._parameters[name] = value
        yield
    finally:
        for (module, name), weight in zip(places, weights, strict=True):
            module._parameters[name] = weight


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that was not read has no gradient
        ctx.kind = weights[0].dtype
        return _cast(weights, kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_cast([gradient for gradient in gradients if gradient is not None], ctx.kind))
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def _cast(tensors: Any, kind: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=kind) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
