# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of the SwiGLU FFN, forward: everything between its matrix products.

    uv = x [W_u | W_v]                        one product for all layers, left to cuBLAS
    xhat = normalize((u swish(v)) W_o)        gate_project: the gate enters the product,
                                              the normalization leaves it
    x W_x + (u swish(v)) W_o, uv = x W_uv     narrow_gate_project: x of few columns

Normalization here has no scale and no shift. They are folded into the weights that read the
normalized rows (longrec.nn.fused.ffn). The backward kernels are in gate_backward.py.

Shape letters: T rows, M layers, D width, H hidden width of the FFN, In input width.
Memory layouts: uv [T, M, 2, H], h [T, M, H], xhat [T, M, D], rstd [T, M].
Weights are as nn.Linear holds them, so x W above is x W^T in the docstrings of the kernels.
All launchers take contiguous inputs and write their output arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.tiles import INTERPRETED, dot_precision, num_programs, sigmoid, tile

MAX_BLOCK_D = 256
"""Most columns of an output tile whose accumulator fits on chip."""
NARROW_BLOCK_H = {True: 32, False: 64}
"""Measured best BLOCK_H of the narrow kernel, with and without saving u and v."""
NARROW_STAGES = {True: 3, False: 2}
"""Measured best STAGES of the narrow kernel, with and without saving u and v."""


@triton.jit
def _gate_project(
    uv,
    w_o,
    residual,
    residual_out,
    out,
    h,
    rstd_pointer,
    num_rows,
    stride,
    eps,
    M: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    NORMALIZE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SAVE_HIDDEN: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write normalize((u swish(v)) W_o^T), or residual + (u swish(v)) W_o^T.

    A program takes one tile of BLOCK_T rows and all D columns at a time. One loop runs over tiles
    and blocks of H, so loads of the next tile are under way during the epilogue.
    """
    first = tl.program_id(0)
    step = tl.num_programs(0)
    num_tiles = tl.cdiv(num_rows, BLOCK_T) * M
    num_blocks: tl.constexpr = H // BLOCK_H
    num_steps = tl.cdiv(num_tiles - first, step) * num_blocks
    acc = tl.zeros((BLOCK_T, D), tl.float32)
    for i in tl.range(0, num_steps, num_stages=STAGES):
        tile_index = first + (i // num_blocks) * step
        block = i % num_blocks
        row = (tile_index // M) * BLOCK_T
        layer = tile_index % M
        u = uv.load([row, layer * 2 * H + block * BLOCK_H])
        v = uv.load([row, layer * 2 * H + H + block * BLOCK_H])
        w = w_o.load([layer * D, block * BLOCK_H])
        v_float = v.to(tl.float32)
        hidden = (u.to(tl.float32) * v_float * sigmoid(v_float, FAST)).to(u.dtype)
        if SAVE_HIDDEN:
            local = tl.arange(0, BLOCK_T)[:, None]
            column = block * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
            h_offsets = ((row + local).to(tl.int64) * M + layer) * H + column
            tl.store(h + h_offsets, hidden, mask=row + local < num_rows)
        acc = tl.dot(
            hidden,
            w.T,
            acc,
            input_precision=PRECISION,
        )
        if block == num_blocks - 1:  # the epilogue of this tile
            if NORMALIZE:
                centred = acc - tl.sum(acc, 1)[:, None] / D
                rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
                rows = row + tl.arange(0, BLOCK_T)
                tl.store(rstd_pointer + rows * M + layer, rstd, mask=rows < num_rows)
                acc = centred * rstd[:, None]
            if RESIDUAL:  # by pointers: tiles of both would not fit on chip
                local = tl.arange(0, BLOCK_T)[:, None]
                column = tl.arange(0, D)[None, :]
                inside = row + local < num_rows
                source = residual + row.to(tl.int64) * stride + local * stride + column
                acc += tl.load(source, mask=inside, other=0.0).to(tl.float32)
                destination = residual_out + row.to(tl.int64) * D + local * D + column
                tl.store(destination, acc, mask=inside)
            else:
                out.store([row, layer * D], acc.to(out.dtype))
            acc = tl.zeros((BLOCK_T, D), tl.float32)


@triton.jit
def _narrow_gate_project(
    x,
    w_uv,
    w_o,
    w_x,
    uv,
    out,
    num_rows,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SAVE_HIDDEN: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write x W_x^T + (u swish(v)) W_o^T with u = x W_u and v = x W_v.

    x has so few columns that its tile stays on chip for the whole loop over H.
    """
    parts: tl.constexpr = D // BLOCK_D
    num_tiles = tl.cdiv(num_rows, BLOCK_T) * parts
    for tile_index in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = (tile_index // parts) * BLOCK_T
        out_column = (tile_index % parts) * BLOCK_D
        rows = x.load([row, 0])
        acc = tl.dot(rows, w_x.load([out_column, 0]).T, input_precision=PRECISION)
        for column in tl.range(0, H, BLOCK_H, num_stages=STAGES):
            w_u = w_uv.load([column, 0])
            w_v = w_uv.load([H + column, 0])
            u = tl.dot(rows, w_u.T, input_precision=PRECISION).to(out.dtype)
            v = tl.dot(rows, w_v.T, input_precision=PRECISION).to(out.dtype)
            if SAVE_HIDDEN:  # with one part only: BLOCK_D is D
                uv.store([row, column], u)
                uv.store([row, H + column], v)
            v_float = v.to(tl.float32)
            hidden = (u.to(tl.float32) * v_float * sigmoid(v_float, FAST)).to(out.dtype)
            w = w_o.load([out_column, column])
            acc = tl.dot(
                hidden,
                w.T,
                acc,
                input_precision=PRECISION,
            )
        out.store([row, out_column], acc.to(out.dtype))


@triton.jit
def _gate(
    uv,
    h,
    total,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write u swish(v), element by element."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    pair = index // H
    column = index % H
    u_pointer = uv + pair * 2 * H + column
    u = tl.load(u_pointer, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(u_pointer + H, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + index, u * v * sigmoid(v, FAST), mask=inside)


def gate_project(
    uv: Tensor,
    w_o: Tensor,
    out: Tensor,
    rstd: Tensor | None,
    *,
    residual: Tensor | None = None,
    h: Tensor | None = None,
    eps: float = 1e-5,
    block_t: int = 128,
    block_h: int = 64,
    stages: int = 3,
    warps: int = 8,
    per_processor: int = 1,
) -> None:
    """Write normalize((u swish(v)) W_o^T) and 1 / deviation, or the product plus a residual.

    Args:
        uv: [T, M, 2, H].
        w_o: [M, D, H].
        out: [T, M, D].
        rstd: float32 [T, M], 1 / deviation of each row; None with `residual`.
        residual: [T, D], rows of any stride, for M = 1.
        h: [T, M, H], receives u swish(v); None leaves it on chip.
        eps: of the norm.
        block_t, block_h, stages, warps, per_processor: launch parameters.
    """
    num_rows, layers, _, hidden = uv.shape
    width = w_o.shape[1]
    num_tiles = triton.cdiv(num_rows, block_t) * layers
    grid = (num_programs(num_tiles, uv.device, per_processor),)
    # A pointer that a kernel variant does not read still needs some tensor: `out` stands in. The
    # result itself is passed twice, as a pointer (RESIDUAL) and as tiles (otherwise).
    _gate_project[grid](
        tile(uv.view(num_rows, -1), block_t, block_h),
        tile(w_o.view(-1, hidden), width, block_h),
        out if residual is None else residual,
        out,
        tile(out.view(num_rows, -1), block_t, width),
        out if h is None else h,
        out if rstd is None else rstd,
        num_rows,
        0 if residual is None else residual.stride(0),
        eps,
        M=layers,
        D=width,
        H=hidden,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        NORMALIZE=rstd is not None,
        RESIDUAL=residual is not None,
        SAVE_HIDDEN=h is not None,
        FAST=not INTERPRETED,
        PRECISION=dot_precision(uv),
        STAGES=stages,
        num_warps=warps,
    )


def narrow_gate_project(
    x: Tensor,
    w_uv: Tensor,
    w_o: Tensor,
    w_x: Tensor,
    uv: Tensor | None,
    out: Tensor,
    *,
    block_t: int = 128,
    block_h: int | None = None,
    block_d: int | None = None,
    stages: int | None = None,
    warps: int = 8,
) -> None:
    """Write x W_x^T + (u swish(v)) W_o^T, and u and v unless uv is None.

    Args:
        x: [T, In]; In is a power of two, 128 at most.
        w_uv: [2, H, In].
        w_o: [D, H].
        w_x: [D, In].
        uv: [T, 2, H], receives u and v; None leaves them on chip.
        out: [T, D].
        block_t, block_h, block_d, stages, warps: launch parameters; None for the measured ones.
    """
    num_rows, columns = x.shape
    width, hidden = w_o.shape
    save_hidden = uv is not None
    block_d = block_d or min(width, MAX_BLOCK_D)
    assert not save_hidden or block_d == width  # several parts would store the same rows
    block_h = block_h or NARROW_BLOCK_H[save_hidden]
    stages = stages or NARROW_STAGES[save_hidden]
    num_tiles = triton.cdiv(num_rows, block_t) * (width // block_d)
    out_tiles = tile(out, block_t, block_d)
    uv_tiles = out_tiles
    if uv is not None:
        uv_tiles = tile(uv.view(num_rows, -1), block_t, block_h)
    _narrow_gate_project[(num_programs(num_tiles, x.device),)](
        tile(x, block_t, columns),
        tile(w_uv.view(-1, columns), block_h, columns),
        tile(w_o, block_d, block_h),
        tile(w_x, block_d, columns),
        uv_tiles,
        out_tiles,
        num_rows,
        D=width,
        H=hidden,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        SAVE_HIDDEN=save_hidden,
        FAST=not INTERPRETED,
        PRECISION=dot_precision(x),
        STAGES=stages,
        num_warps=warps,
    )


def gate(
    uv: Tensor,
    h: Tensor,
    *,
    block: int = 2048,
) -> None:
    """Write h = u swish(v).

    Args:
        uv: [T, M, 2, H].
        h: [T, M, H].
        block: elements of one program.
    """
    total = h.numel()
    _gate[(triton.cdiv(total, block),)](
        uv,
        h,
        total,
        H=h.shape[-1],
        BLOCK=block,
        FAST=not INTERPRETED,
        num_warps=8,
    )
