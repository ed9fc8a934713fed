"""The SwiGLU FFN of all events on a CUDA device: the same sums as longrec.nn.layers, with fewer trips to memory.

Most of a training step is the history's FFN, and most of its memory traffic is the hidden rows between the products. Here
the layers share one product (all of them read the same X), gate and normalization are computed inside the products next to
them where the width allows, and the scale and shift of the norm are folded into the weights that read it:

    X --[U_i | V_i]--> (u, v) --gate, W_o, normalize--> xhat_i --diag(gamma) [W_K | W_V]--> keys and values

    LN(y) W = (xhat * gamma + beta) W = xhat (diag(gamma) W) + beta W

beta W_K adds one number to all logits of a query, which softmax ignores; beta W_V is added to each output of the attention.

Values differ from the layers' by rounding only. Shape letters: T events, D width, M layers, H hidden width, In input width.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ROWS = 1 << 19
"""Most rows whose hidden gradients exist at the same time in a backward pass."""
TILE = 128
"""Rows of the tiles of most kernels."""
FEWEST_ROWS = 1024
"""Rows below which the layers themselves are as fast."""
TILED_WIDTHS = (64, 128, 256)
"""Widths whose row of 128 events fits the accumulators of one block: gate and norm then run inside
the products, both ways.
"""
WIDE = 512
"""The width whose row of 64 events does: the same forward; backward the gate runs inside one
product, and its rows are kept for another.
"""
NARROW = 64
"""Columns of rows so narrow that u and v cost less to compute than to read."""

_reference_only = False


@functools.cache
def _capable() -> bool:
    return (
        importlib.util.find_spec("triton") is not None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (9, 0)
    )


def available() -> bool:
    """Returns whether Triton is installed and the CUDA device has what the kernels need (capability
    9.0: tile copies).
    """
    return not _reference_only and _capable()


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Within it the readable twins run, on any device: for comparisons."""
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Returns what the function returns, recorded for the backward pass."""
    return function.apply(*arguments)


def usable(events: Tensor, width: int, hidden: int) -> bool:
    """Returns whether the fused path takes these rows: on a CUDA device, 16-bit, many of them,
    sizes that are multiples of 64.
    """
    return (
        events.is_cuda
        and events.dtype in (torch.bfloat16, torch.float16)
        and events.shape[0] >= FEWEST_ROWS
        and width % 64 == 0
        and hidden % 64 == 0
        and available()
    )


def encode(
    events: Float[Tensor, "T D"],
    w_uv: Float[Tensor, "M 2 H D"],
    w_o: Float[Tensor, "M D H"],
    w_kv: Float[Tensor, "M D W"] | None,
    *,
    recompute: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """Returns normalize(SwiGLUFFN_i(X)) W_i for every layer i, each [T, W], in the dtype of the
    events.

    Args:
        events: X.
        w_uv: W_u and W_v transposed (as nn.Linear holds them), of every layer.
        w_o: W_o transposed, of every layer.
        w_kv: W_i, the weights that read the normalized rows, scale of the norm included; None for
            the rows themselves, [T, D].
        recompute: whether u and v are computed again in the backward pass (M 4 H bytes less per
            event).
        eps: of the norm.

    Source: arXiv 2511.06077, X_i = LN(SwiGLUFFN_i(X)) with its keys and values.
    """
    return tuple(apply(_Encode, events, w_uv, w_o, w_kv, recompute, eps))


def gated(
    x: Float[Tensor, "T In"],
    w_u: Float[Tensor, "H In"],
    w_v: Float[Tensor, "H In"],
    w_o: Float[Tensor, "D H"],
) -> Float[Tensor, "T D"]:
    """Returns SwiGLUFFN(x); weights as nn.Linear holds them."""
    output: Tensor = apply(_Gated, x, w_u, w_v, w_o)
    return output


class _Encode(torch.autograd.Function):
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
        w_uv, w_o = w_uv.to(events.dtype), w_o.to(events.dtype)
        w_kv = None if w_kv is None else w_kv.to(events.dtype)
        needs_grad = any(ctx.needs_input_grad)
        keep = needs_grad and not recompute
        (num_rows, width), layers = events.shape, w_o.shape[0]
        xhat, rstd = (
            events.new_empty((num_rows, layers, width)),
            events.new_empty((num_rows, layers), dtype=torch.float32),
        )
        uv = hidden(events, w_uv) if keep else None
        h = events.new_empty((num_rows, layers, w_o.shape[2])) if keep and width == WIDE else None
        for rows in _chunks(num_rows):
            _normalized(
                hidden(events[rows], w_uv) if uv is None else uv[rows],
                w_o,
                xhat[rows],
                rstd[rows],
                eps,
                _rows_of(h, rows),
            )
        if needs_grad:
            ctx.save_for_backward(events, w_uv, w_o, w_kv, xhat, rstd, uv, h)
        return (
            xhat.unbind(1) if w_kv is None else tuple(xhat[:, i] @ w_kv[i] for i in range(layers))
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import gated as kernels

        events, w_uv, w_o, w_kv, xhat, rstd, uv, h = ctx.saved_tensors
        dy, dw_kv = (
            torch.empty_like(xhat),
            None if w_kv is None else torch.empty_like(w_kv, dtype=torch.float32),
        )
        for i, gradient in enumerate(gradients):
            if w_kv is None or dw_kv is None:
                kernels.normalize_backward(gradient.contiguous(), xhat, rstd, i, dy)
            else:
                dw_kv[i] = _rows_product(xhat, i, gradient.contiguous())
                _project_normalize_backward(gradient.contiguous(), w_kv[i], xhat, rstd, i, dy)
        devents, dw_uv, dw_o = gated_backward(dy, events, uv, w_uv, w_o, h)
        return devents, dw_uv, dw_o, dw_kv, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_u: Tensor,
        w_v: Tensor,
        w_o_master: Tensor,
    ) -> Tensor:
        w_uv, w_o = x.new_empty((1, 2, *w_u.shape)), x.new_empty((1, *w_o_master.shape))
        torch._foreach_copy_(
            [*w_uv[0].unbind(), w_o[0]], [w_u, w_v, w_o_master]
        )  # stacked and cast in one operation
        uv = hidden(x, w_uv)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, uv, w_uv, w_o)
        return project(uv, w_o, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, uv, w_uv, w_o = ctx.saved_tensors
        dx, dw_uv, dw_o = gated_backward(gradients[0].contiguous().unsqueeze(1), x, uv, w_uv, w_o)
        return dx, dw_uv[0, 0], dw_uv[0, 1], dw_o[0]


def project(uv: Tensor, w_o: Tensor, residual: Tensor | None) -> Tensor:
    """Returns residual + gate(uv) W_o of one layer, [T, D]; the rows of the residual may have any
    stride.
    """
    from longrec.nn.kernels import gated as kernels

    if w_o.shape[1] in TILED_WIDTHS:
        output = uv.new_empty((uv.shape[0], w_o.shape[1]))
        kernels.gate_project(uv, w_o, output.unsqueeze(1), None, residual=residual)
        return output
    rows = uv.new_empty((uv.shape[0], 1, uv.shape[3]))
    kernels.gate(uv, rows)
    return (
        rows[:, 0] @ w_o[0].t()
        if residual is None
        else torch.addmm(residual, rows[:, 0], w_o[0].t())
    )


def narrow(x: Tensor, width: int) -> bool:
    """Returns whether `narrow_project` takes these rows."""
    return x.shape[1] == NARROW and width in (*TILED_WIDTHS, WIDE)


def narrow_project(
    x: Tensor, w_uv: Tensor, w_o: Tensor, w_x: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns x W_x + gate(x W_uv) W_o, [T, D], and u and v where `gated_backward` is faster with
    them, [T, 1, 2, H].
    """
    from longrec.nn.kernels import gated as kernels

    (width, wide), num_rows = w_o.shape, x.shape[0]
    output = x.new_empty((num_rows, width))
    uv = x.new_empty((num_rows, 1, 2, wide)) if keep and width in TILED_WIDTHS else None
    kernels.narrow_gate_project(
        x, w_uv, w_o, w_x.t().contiguous(), None if uv is None else uv[:, 0], output
    )
    return output, uv


def hidden(x: Tensor, w_uv: Tensor) -> Tensor:
    """Returns u and v of all layers, [T, M, 2, H]."""
    return (x @ w_uv.view(-1, w_uv.shape[3]).t()).view(x.shape[0], *w_uv.shape[:3])


def _normalized(
    uv: Tensor, w_o: Tensor, xhat: Tensor, rstd: Tensor, eps: float, h: Tensor | None
) -> None:
    """Writes xhat [T, M, D] and rstd [T, M], and gate(uv) to h [T, M, H] where it is given."""
    from longrec.nn.kernels import gated as kernels

    if xhat.shape[2] in TILED_WIDTHS:
        kernels.gate_project(uv, w_o, xhat, rstd, eps=eps)
        return
    if xhat.shape[2] == WIDE:
        kernels.gate_project(
            uv,
            w_o,
            xhat,
            rstd,
            eps=eps,
            h=h,
            block_t=64,
            block_h=32,
            stages=4,
        )
        return
    gated_rows = uv.new_empty((*uv.shape[:2], uv.shape[3]))
    kernels.gate(uv, gated_rows)
    for i in range(w_o.shape[0]):
        torch.mm(gated_rows[:, i], w_o[i].t(), out=xhat[:, i])
    kernels.normalize(xhat, xhat, rstd, eps=eps)


def _project_normalize_backward(
    dkv: Tensor, w_kv: Tensor, xhat: Tensor, rstd: Tensor, layer: int, dy: Tensor
) -> None:
    """Writes dy[:, layer], the gradient before normalization of one layer."""
    from longrec.nn.kernels import gated as kernels

    if xhat.shape[2] in TILED_WIDTHS:
        kernels.project_normalize_backward(dkv, w_kv, xhat, rstd, layer, dy)
        return
    kernels.normalize_backward(dkv @ w_kv.t(), xhat, rstd, layer, dy)


def gated_backward(
    dy: Tensor, x: Tensor, uv: Tensor | None, w_uv: Tensor, w_o: Tensor, h: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients (dx, dw_uv, dw_o) of the sum over layers of gate(x W_uv) W_o, rows by
    chunks.

    Args:
        dy: [T, M, D].
        x: [T, In].
        uv: [T, M, 2, H], or None to compute it again.
        w_uv: [M, 2, H, In].
        w_o: [M, D, H].
        h: gate(uv), [T, M, H], where it was kept.
    """
    flat = w_uv.view(-1, w_uv.shape[3])
    dx = torch.empty_like(x)
    sums: list[Tensor] = []
    for rows in _chunks(x.shape[0]):
        duv = x.new_empty((*dy[rows].shape[:2], 2, w_o.shape[2]))
        of_w_o = _hidden_backward(
            dy[rows], x[rows], _rows_of(uv, rows), w_uv, w_o, _rows_of(h, rows), duv
        )
        torch.mm(duv.flatten(1), flat, out=dx[rows])
        parts = ((duv.flatten(1).t() @ x[rows]).float(), of_w_o.float())
        sums = (
            [total.add_(part) for total, part in zip(sums, parts, strict=True)]
            if sums
            else list(parts)
        )
    return dx, sums[0].view_as(w_uv), sums[1]


def _hidden_backward(
    dy: Tensor,
    x: Tensor,
    uv: Tensor | None,
    w_uv: Tensor,
    w_o: Tensor,
    h: Tensor | None,
    duv: Tensor,
) -> Tensor:
    """Writes the gradient of uv to duv [T, M, 2, H]; returns that of w_o."""
    from longrec.nn.kernels import gated as kernels

    width = w_o.shape[1]
    if uv is None and narrow(x, width) and width == WIDE:
        h = x.new_empty((x.shape[0], 1, w_o.shape[2]))
        kernels.narrow_gate_backward(dy[:, 0], w_o[0], x, w_uv[0], duv[:, 0], h[:, 0])
        return _by_layer(dy, h)
    uv = hidden(x, w_uv) if uv is None else uv
    if width in TILED_WIDTHS:
        return kernels.project_gate_backward(dy, w_o, uv, duv)
    if h is not None:
        kernels.wide_gate_backward(dy, w_o, uv, duv)
        return _by_layer(dy, h)
    rows = uv.new_empty((*uv.shape[:2], uv.shape[3]))
    for i in range(w_o.shape[0]):
        torch.mm(dy[:, i], w_o[i], out=rows[:, i])
    kernels.gate_backward(rows, uv, duv)
    return _by_layer(dy, rows)


def _by_layer(dy: Tensor, h: Tensor) -> Tensor:
    """Returns dy[:, i]^T h[:, i] of every layer i."""
    return torch.stack([dy[:, i].t() @ h[:, i] for i in range(dy.shape[1])])


def _rows_product(a: Tensor, layer: int, b: Tensor) -> Tensor:
    """Returns a[:, layer]^T b: by the kernel where the result is too small for cuBLAS to fill the
    device (measured, docs/engine.md).
    """
    from longrec.nn.kernels import gated as kernels

    return (
        kernels.rows_product(a, layer, b)
        if a.shape[2] == 256 and b.shape[1] == 512
        else a[:, layer].t() @ b
    )


def _rows_of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _chunks(num_rows: int) -> Iterator[slice]:
    """Yields the rows of each chunk, of which there is at least one; chunks are about equal, in
    whole tiles.
    """
    count = max(1, -(-num_rows // CHUNK_ROWS))
    size = max(1, -(-num_rows // count // TILE) * TILE)
    return (slice(start, min(start + size, num_rows)) for start in range(0, max(1, num_rows), size))
