"""The SwiGLU FFN of all events on a CUDA device, with less memory traffic than longrec.nn.layers.

Most of a training step is the FFN of the history, and most of its memory traffic is the hidden
rows between the products. Here the layers share one product, since all of them read the same X.
Gate and normalization run inside the products next to them where the width allows. Scale and shift
of the norm are folded into the weights that read it:

    X --[U_i | V_i]--> (u, v) --gate, W_o, normalize--> xhat_i --diag(gamma) [W_K | W_V]--> K, V

    LN(y) W = (xhat * gamma + beta) W = xhat (diag(gamma) W) + beta W

beta W_K adds one number to all logits of a query, which softmax ignores. beta W_V is added to each
output of the attention.

The reference is SwiGLUFFN.reference and STCALayer.encode; values differ by rounding only.

Shape letters: T events, D width, M layers, H hidden width, In input width, W width of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.fused.paths import apply_function, available
from longrec.nn.fused.swiglu import (
    WIDE_WIDTH,
    gate_project,
    gate_project_normalize,
    hidden_rows,
    project_normalize_backward,
    row_chunks,
    rows_of,
    rows_product,
    swiglu_backward,
)

MIN_ROWS = 1024
"""Rows below which the layers themselves are as fast."""
WIDTH_MULTIPLE = 64
"""The kernels take widths that are multiples of it."""


def usable(
    events: Tensor,
    width: int,
    hidden: int,
) -> bool:
    """Return whether the fused path takes these rows.

    It takes many 16-bit rows on a CUDA device, of sizes that are multiples of 64.
    """
    is_16_bit = events.dtype in (torch.bfloat16, torch.float16)
    is_multiple = width % WIDTH_MULTIPLE == 0 and hidden % WIDTH_MULTIPLE == 0
    is_long = events.shape[0] >= MIN_ROWS
    return events.is_cuda and is_16_bit and is_long and is_multiple and available()


def encode(
    events: Float[Tensor, "T D"],
    w_uv: Float[Tensor, "M 2 H D"],
    w_o: Float[Tensor, "M D H"],
    w_kv: Float[Tensor, "M D W"] | None,
    *,
    recompute: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """Return normalize(SwiGLUFFN_i(X)) W_i for every layer i, each [T, W], in the dtype of X.

    Args:
        events: X.
        w_uv: W_u and W_v transposed (as nn.Linear holds them), of every layer.
        w_o: W_o transposed, of every layer.
        w_kv: W_i, the weights that read the normalized rows, scale of the norm included; None for
            the rows themselves, [T, D].
        recompute: whether the backward pass computes u and v again. This saves the 4 M H bytes per
            event that u and v of all layers take in 16 bits.
        eps: of the norm.

    Source: arXiv 2511.06077, X_i = LN(SwiGLUFFN_i(X)) with its keys and values.
    """
    return tuple(
        apply_function(
            _Encode,
            events,
            w_uv,
            w_o,
            w_kv,
            recompute,
            eps,
        )
    )


def swiglu_ffn(
    x: Float[Tensor, "T In"],
    w_u: Float[Tensor, "H In"],
    w_v: Float[Tensor, "H In"],
    w_o: Float[Tensor, "D H"],
) -> Float[Tensor, "T D"]:
    """Return SwiGLUFFN(x); weights as nn.Linear holds them."""
    output: Tensor = apply_function(
        _SwiGLUFFN,
        x,
        w_u,
        w_v,
        w_o,
    )
    return output


class _Encode(torch.autograd.Function):
    """normalize(SwiGLUFFN_i(X)) W_i of all layers."""

    @staticmethod
    def forward(
        ctx: Any,
        events: Tensor,
        w_uv: Tensor,
        w_o: Tensor,
        w_kv: Tensor | None,
        recompute: bool,
        eps: float,
    ) -> tuple[Tensor, ...]:
        dtype = events.dtype
        w_uv = w_uv.to(dtype)
        w_o = w_o.to(dtype)
        if w_kv is not None:
            w_kv = w_kv.to(dtype)
        needs_grad = any(ctx.needs_input_grad)
        save_hidden = needs_grad and not recompute
        num_rows, width = events.shape
        layers, _, num_hidden = w_o.shape
        xhat = events.new_empty((num_rows, layers, width))
        rstd = events.new_empty((num_rows, layers), dtype=torch.float32)
        uv = hidden_rows(events, w_uv) if save_hidden else None
        h = None
        # At this width the backward pass reads gate(uv) too (fused_swiglu).
        if save_hidden and width == WIDE_WIDTH:
            h = events.new_empty((num_rows, layers, num_hidden))
        for rows in row_chunks(num_rows):
            gate_project_normalize(
                hidden_rows(events[rows], w_uv) if uv is None else uv[rows],
                w_o,
                xhat[rows],
                rstd[rows],
                eps=eps,
                h=rows_of(h, rows),
            )
        if needs_grad:
            ctx.save_for_backward(events, w_uv, w_o, w_kv, xhat, rstd, uv, h)
        if w_kv is None:
            return xhat.unbind(1)
        return tuple(xhat[:, i] @ w_kv[i] for i in range(layers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels.normalization import normalize_backward

        events, w_uv, w_o, w_kv, xhat, rstd, uv, h = ctx.saved_tensors
        dy = torch.empty_like(xhat)
        dw_kv = None if w_kv is None else torch.empty_like(w_kv, dtype=torch.float32)
        for i, gradient in enumerate(gradients):
            gradient = gradient.contiguous()
            if dw_kv is None:
                normalize_backward(gradient, xhat, rstd, i, dy)
            else:
                dw_kv[i] = rows_product(xhat, i, gradient)
                project_normalize_backward(
                    gradient,
                    w_kv[i],
                    xhat,
                    rstd,
                    i,
                    dy,
                )
        devents, dw_uv, dw_o = swiglu_backward(
            dy,
            events,
            uv,
            w_uv,
            w_o,
            h=h,
        )
        return devents, dw_uv, dw_o, dw_kv, None, None


class _SwiGLUFFN(torch.autograd.Function):
    """SwiGLUFFN(x) of one layer."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_u: Tensor,
        w_v: Tensor,
        w_o_parameter: Tensor,
    ) -> Tensor:
        w_uv = x.new_empty((1, 2, *w_u.shape))
        w_o = x.new_empty((1, *w_o_parameter.shape))
        # Stacked and cast in one operation.
        copies = [*w_uv[0].unbind(), w_o[0]]
        torch._foreach_copy_(copies, [w_u, w_v, w_o_parameter])
        uv = hidden_rows(x, w_uv)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, uv, w_uv, w_o)
        return gate_project(uv, w_o, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, uv, w_uv, w_o = ctx.saved_tensors
        dy = gradients[0].contiguous().unsqueeze(1)
        dx, dw_uv, dw_o = swiglu_backward(dy, x, uv, w_uv, w_o)
        return dx, dw_uv[0, 0], dw_uv[0, 1], dw_o[0]
