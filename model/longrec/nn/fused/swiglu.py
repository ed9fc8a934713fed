"""Steps of the fused SwiGLU FFN, each with the fastest kernels for its width.

    width D        forward                              backward
    64, 128, 256   gate and norm inside the product     gate inside both products, norm inside one
    512            the same, with tiles of 64 rows      gate inside one product; h is stored
    others         gate, product and norm in turn       product, gate and norm in turn

The hidden rows are u and v; h = gate(uv) = u swish(v). Weights are as nn.Linear holds them, so the
product x W is x @ weight.t() in code.

Shape letters: T rows, M layers, D width, H hidden width, In input width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longrec.nn.rounding import ceil_div, round_up

MAX_CHUNK_ROWS = 1 << 19
"""Most rows whose hidden gradients exist at the same time in a backward pass."""
TILE_ROWS = 128
"""Rows of the tiles of most kernels."""
TILED_WIDTHS = (64, 128, 256)
"""Widths for which 128 rows fit the accumulators of one block.

Gate and norm then run inside the products, forward and backward.
"""
WIDE_WIDTH = 512
"""The width for which 64 rows fit the accumulators of one block."""
NARROW_INPUT_WIDTH = 64
"""Input width for which u and v cost less to compute than to read."""
ROWS_PRODUCT_SHAPE = (256, 512)
"""Shape of the result of a product over rows that is too small for cuBLAS to fill the device."""


def hidden_rows(x: Tensor, w_uv: Tensor) -> Tensor:
    """Return u and v of all layers, [T, M, 2, H].

    Args:
        x: [T, In].
        w_uv: [M, 2, H, In].
    """
    weight = w_uv.view(-1, w_uv.shape[3])
    return (x @ weight.t()).view(x.shape[0], *w_uv.shape[:3])


def gate_project(
    uv: Tensor,
    w_o: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Return residual + gate(uv) W_o of one layer, [T, D].

    Args:
        uv: [T, 1, 2, H].
        w_o: [1, D, H].
        residual: [T, D], rows of any stride, or None.
    """
    from longrec.nn.kernels import gate_forward as kernels

    num_rows, _, _, num_hidden = uv.shape
    width = w_o.shape[1]
    if width in TILED_WIDTHS:
        output = uv.new_empty((num_rows, width))
        kernels.gate_project(
            uv,
            w_o,
            output.unsqueeze(1),
            None,
            residual=residual,
        )
        return output
    h = uv.new_empty((num_rows, 1, num_hidden))
    kernels.gate(uv, h)
    weight = w_o[0].t()
    if residual is None:
        return h[:, 0] @ weight
    return torch.addmm(residual, h[:, 0], weight)


def is_narrow(x: Tensor, out_width: int) -> bool:
    """Return whether `narrow_gate_project` takes these rows."""
    return x.shape[1] == NARROW_INPUT_WIDTH and out_width in (*TILED_WIDTHS, WIDE_WIDTH)


def narrow_gate_project(
    x: Tensor,
    w_uv: Tensor,
    w_o: Tensor,
    w_x: Tensor,
    *,
    save_hidden: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return x W_x + gate(x W_uv) W_o, [T, D], and u and v, [T, 1, 2, H].

    u and v are None unless `save_hidden` is set and `swiglu_backward` is faster with them.

    Args:
        x: [T, In].
        w_uv: [2, H, In].
        w_o: [D, H].
        w_x: [In, D].
        save_hidden: whether a backward pass follows.
    """
    from longrec.nn.kernels import gate_forward as kernels

    num_rows = x.shape[0]
    width, num_hidden = w_o.shape
    output = x.new_empty((num_rows, width))
    uv = None
    if save_hidden and width in TILED_WIDTHS:
        uv = x.new_empty((num_rows, 1, 2, num_hidden))
    kernels.narrow_gate_project(
        x,
        w_uv,
        w_o,
        w_x.t().contiguous(),
        None if uv is None else uv[:, 0],
        output,
    )
    return output, uv


def swiglu_backward(
    dy: Tensor,
    x: Tensor,
    uv: Tensor | None,
    w_uv: Tensor,
    w_o: Tensor,
    *,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients (dx, dw_uv, dw_o) of the sum over layers of gate(x W_uv) W_o.

    Rows are processed in chunks.

    Args:
        dy: [T, M, D].
        x: [T, In].
        uv: [T, M, 2, H], or None to compute it again.
        w_uv: [M, 2, H, In].
        w_o: [M, D, H].
        h: gate(uv), [T, M, H], if the forward pass stored it.
    """
    weight = w_uv.view(-1, w_uv.shape[3])
    dx = torch.empty_like(x)
    total_dw_uv: Tensor | None = None
    total_dw_o: Tensor | None = None
    for rows in row_chunks(x.shape[0]):
        duv = x.new_empty((*dy[rows].shape[:2], 2, w_o.shape[2]))  # filled by the next call
        dw_o = _hidden_backward(
            dy[rows],
            x[rows],
            rows_of(uv, rows),
            w_uv,
            w_o,
            rows_of(h, rows),
            duv,
        )
        torch.mm(duv.flatten(1), weight, out=dx[rows])
        dw_uv = duv.flatten(1).t() @ x[rows]
        total_dw_uv = _add_float32(total_dw_uv, dw_uv)
        total_dw_o = _add_float32(total_dw_o, dw_o)
    assert total_dw_uv is not None and total_dw_o is not None  # there is at least one chunk
    return dx, total_dw_uv.view_as(w_uv), total_dw_o


def _add_float32(total: Tensor | None, part: Tensor) -> Tensor:
    return part.float() if total is None else total.add_(part.float())


def gate_project_normalize(
    uv: Tensor,
    w_o: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    *,
    eps: float,
    h: Tensor | None,
) -> None:
    """Write xhat [T, M, D] and rstd [T, M], and gate(uv) to h [T, M, H] unless it is None."""
    from longrec.nn.kernels import gate_forward as kernels
    from longrec.nn.kernels.normalization import normalize

    layers, width, num_hidden = w_o.shape
    if width in TILED_WIDTHS:
        kernels.gate_project(uv, w_o, xhat, rstd, eps=eps)
        return
    if width == WIDE_WIDTH:
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
    gate_rows = uv.new_empty((uv.shape[0], layers, num_hidden))
    kernels.gate(uv, gate_rows)
    for i in range(layers):
        torch.mm(gate_rows[:, i], w_o[i].t(), out=xhat[:, i])
    normalize(xhat, xhat, rstd, eps=eps)


def project_normalize_backward(
    dkv: Tensor,
    w_kv: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    layer: int,
    dy: Tensor,
) -> None:
    """Write dy[:, layer], the gradient before normalization of one layer."""
    from longrec.nn.kernels import normalization as kernels

    if xhat.shape[2] in TILED_WIDTHS:
        kernels.project_normalize_backward(
            dkv,
            w_kv,
            xhat,
            rstd,
            layer,
            dy,
        )
        return
    kernels.normalize_backward(dkv @ w_kv.t(), xhat, rstd, layer, dy)


def _hidden_backward(
    dy: Tensor,
    x: Tensor,
    uv: Tensor | None,
    w_uv: Tensor,
    w_o: Tensor,
    h: Tensor | None,
    duv: Tensor,
) -> Tensor:
    """Write the gradient of uv to duv [T, M, 2, H]; return that of w_o, [M, D, H]."""
    from longrec.nn.kernels import gate_backward as kernels

    layers, width, num_hidden = w_o.shape
    if uv is None and width == WIDE_WIDTH and is_narrow(x, width):
        recomputed_h = x.new_empty((x.shape[0], 1, num_hidden))
        kernels.narrow_gate_backward(
            dy[:, 0],
            w_o[0],
            x,
            w_uv[0],
            duv[:, 0],
            recomputed_h[:, 0],
        )
        return _product_by_layer(dy, recomputed_h)
    if uv is None:
        uv = hidden_rows(x, w_uv)
    if width in TILED_WIDTHS:
        return kernels.project_gate_backward(dy, w_o, uv, duv)
    if h is not None:
        kernels.wide_gate_backward(dy, w_o, uv, duv)
        return _product_by_layer(dy, h)
    dh = uv.new_empty((uv.shape[0], layers, num_hidden))
    for i in range(layers):
        torch.mm(dy[:, i], w_o[i], out=dh[:, i])
    kernels.gate_backward(dh, uv, duv)
    h = dh  # the kernel has overwritten dh with gate(uv)
    return _product_by_layer(dy, h)


def _product_by_layer(dy: Tensor, h: Tensor) -> Tensor:
    """Return dy[:, i]^T h[:, i] of every layer i, [M, D, H]."""
    return torch.stack([dy[:, i].t() @ h[:, i] for i in range(dy.shape[1])])


def rows_product(
    a: Tensor,
    layer: int,
    b: Tensor,
) -> Tensor:
    """Return a[:, layer]^T b.

    The kernel runs where the result is too small for cuBLAS to fill the device (measured,
    docs/benchmarks/training.md).
    """
    from longrec.nn.kernels import rows_product as kernels

    if (a.shape[2], b.shape[1]) == ROWS_PRODUCT_SHAPE:
        return kernels.rows_product(a, layer, b)
    return a[:, layer].t() @ b


def rows_of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """Return some rows of a tensor, or None for None."""
    return None if tensor is None else tensor[rows]


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Yield the rows of each chunk: at least one, about equal, in whole tiles."""
    num_chunks = max(1, ceil_div(num_rows, MAX_CHUNK_ROWS))
    rows_per_chunk = ceil_div(num_rows, num_chunks)
    size = max(1, round_up(rows_per_chunk, TILE_ROWS))
    for start in range(0, max(1, num_rows), size):
        yield slice(start, min(start + size, num_rows))
