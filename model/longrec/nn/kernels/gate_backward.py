# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of the SwiGLU FFN, backward: gradients of u, v and W_o from those of the output rows.

    dh = dy w_o                               inside every kernel but gate_backward, which reads it
    du = dh swish(v), dv = dh u swish'(v)
    dw_o = dy^T (u swish(v))                  project_gate_backward only
    dx, dw_uv                                 products of duv, left to cuBLAS

Shape letters: T rows, M layers, D width, H hidden width of the FFN, In input width.
Memory layouts: uv and duv [T, M, 2, H], h [T, M, H], dy [T, M, D].
Weights are as nn.Linear holds them: w_o [D, H].
All launchers take contiguous inputs and write their output arguments.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longrec.nn.kernels.tiles import INTERPRETED, dot_precision, num_row_parts, sigmoid, tile


@triton.jit
def _project_gate_backward(
    dy,
    w_o,
    uv,
    duv,
    dw_o,
    num_rows,
    rows_per_program,
    M: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write du, dv and dw_o = dy^T (u swish(v)) with dh = dy w_o.

    A program holds BLOCK_H columns of w_o and of its gradient on chip and passes over a part of
    the rows, so u swish(v) never reaches memory. Results are stored by pointers: two tile stores of
    one shape share a buffer and would wait for each other.
    """
    num_blocks: tl.constexpr = H // BLOCK_H
    program = tl.program_id(0)
    column = (program % num_blocks) * BLOCK_H
    layer = (program // num_blocks) % M
    part = program // (num_blocks * M)
    first = part * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    w = w_o.load([layer * D, column])
    acc = tl.zeros((D, BLOCK_H), tl.float32)
    columns = column + tl.arange(0, BLOCK_H)
    local = tl.arange(0, BLOCK_T)
    for row in tl.range(first, last, BLOCK_T, num_stages=STAGES):
        dy_tile = dy.load([row, layer * D])
        u = uv.load([row, layer * 2 * H + column]).to(tl.float32)
        v = uv.load([row, layer * 2 * H + H + column]).to(tl.float32)
        dh = tl.dot(dy_tile, w, input_precision=PRECISION)
        s = sigmoid(v, FAST)
        swish = v * s
        rows = row + local
        du_pointer = duv + (rows.to(tl.int64) * M + layer)[:, None] * (2 * H) + columns[None, :]
        inside = (rows < num_rows)[:, None]
        tl.store(du_pointer, dh * swish, mask=inside)
        tl.store(du_pointer + H, dh * u * (s + swish * (1.0 - s)), mask=inside)
        hidden = (u * swish).to(dy_tile.dtype)
        acc = tl.dot(
            dy_tile.T,
            hidden,
            acc,
            input_precision=PRECISION,
        )
    start = (part * M + layer) * D * H
    offsets = start + tl.arange(0, D)[:, None] * H + columns[None, :]
    tl.store(dw_o + offsets, acc)


@triton.jit
def _wide_gate_backward(
    dy,
    w_o,
    x_or_uv,
    w_uv,
    duv,
    h,
    num_rows,
    M: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NARROW: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write du and dv with dh = dy w_o, one tile [BLOCK_T, BLOCK_H] a program; w_o is [M D, H].

    `x_or_uv` holds uv, or with NARROW x (of few columns, M = 1). Then u and v are computed again,
    and h = u swish(v) is written as well.
    """
    num_columns: tl.constexpr = M * (H // BLOCK_H)
    program = tl.program_id(0)
    row = (program // num_columns) * BLOCK_T
    layer = (program % num_columns) % M
    column = ((program % num_columns) // M) * BLOCK_H
    if NARROW:
        rows = x_or_uv.load([row, 0])
        w_u = w_uv.load([column, 0])
        w_v = w_uv.load([H + column, 0])
        u = tl.dot(rows, w_u.T, input_precision=PRECISION).to(duv.dtype)
        v = tl.dot(rows, w_v.T, input_precision=PRECISION).to(duv.dtype)
    else:
        u = x_or_uv.load([row, layer * 2 * H + column])
        v = x_or_uv.load([row, layer * 2 * H + H + column])
    dh = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for k in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        dh = tl.dot(
            dy.load([row, layer * D + k]),
            w_o.load([layer * D + k, column]),
            dh,
            input_precision=PRECISION,
        )
    v_float = v.to(tl.float32)
    s = sigmoid(v_float, FAST)
    swish = v_float * s
    du = (dh * swish).to(duv.dtype)
    dv = (dh * u.to(tl.float32) * (s + swish * (1.0 - s))).to(duv.dtype)
    duv.store([row, layer * 2 * H + column], du)
    duv.store([row, layer * 2 * H + H + column], dv)
    if NARROW:
        h.store([row, column], (u.to(tl.float32) * swish).to(h.dtype))


@triton.jit
def _gate_backward(
    dh,
    uv,
    duv,
    total,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write du and dv, and h = u swish(v) over dh, element by element."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    pair = index // H
    column = index % H
    u_offset = pair * 2 * H + column
    v_offset = u_offset + H
    u = tl.load(uv + u_offset, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(uv + v_offset, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dh + index, mask=inside, other=0.0).to(tl.float32)
    s = sigmoid(v, FAST)
    swish = v * s
    tl.store(duv + u_offset, gradient * swish, mask=inside)
    tl.store(duv + v_offset, gradient * u * (s + swish * (1.0 - s)), mask=inside)
    tl.store(dh + index, u * swish, mask=inside)


def project_gate_backward(
    dy: Tensor,
    w_o: Tensor,
    uv: Tensor,
    duv: Tensor,
    *,
    block_t: int = 64,
    block_h: int = 64,
    stages: int = 4,
    warps: int = 8,
    per_processor: int = 1,
) -> Tensor:
    """Write the gradient of uv; return that of w_o, float32 [M, D, H].

    Args:
        dy: [T, M, D].
        w_o: [M, D, H].
        uv, duv: [T, M, 2, H].
        block_t, block_h, stages, warps, per_processor: launch parameters.
    """
    num_rows, layers, _, hidden = uv.shape
    width = w_o.shape[1]
    num_tiles = layers * (hidden // block_h)
    parts, rows_per_program = num_row_parts(
        num_rows,
        block_t,
        num_tiles,
        dy.device,
        per_processor,
    )
    dw_o = torch.empty(
        (parts, *w_o.shape),
        dtype=torch.float32,
        device=dy.device,
    )
    _project_gate_backward[(parts * num_tiles,)](
        tile(dy.view(num_rows, -1), block_t, width),
        tile(w_o.view(-1, hidden), width, block_h),
        tile(uv.view(num_rows, -1), block_t, block_h),
        duv,
        dw_o,
        num_rows,
        rows_per_program,
        M=layers,
        D=width,
        H=hidden,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        FAST=not INTERPRETED,
        PRECISION=dot_precision(dy),
        STAGES=stages,
        num_warps=warps,
    )
    return dw_o.sum(0)


def wide_gate_backward(
    dy: Tensor,
    w_o: Tensor,
    uv: Tensor,
    duv: Tensor,
    *,
    block_t: int = 64,
    block_h: int = 128,
    block_k: int = 64,
    stages: int = 3,
    warps: int = 8,
) -> None:
    """Write the gradient of uv.

    Args:
        dy: [T, M, D].
        w_o: [M, D, H].
        uv, duv: [T, M, 2, H].
        block_t, block_h, block_k, stages, warps: launch parameters.
    """
    num_rows = uv.shape[0]
    uv_tiles = tile(uv.view(num_rows, -1), block_t, block_h)
    duv_tiles = tile(duv.view(num_rows, -1), block_t, block_h)
    _launch_wide(
        dy,
        w_o,
        # The variant that is not NARROW reads neither w_uv nor h: other tiles stand in.
        x_or_uv=uv_tiles,
        w_uv=uv_tiles,
        duv=duv_tiles,
        h=duv_tiles,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_K=block_k,
        NARROW=False,
        STAGES=stages,
        num_warps=warps,
    )


def narrow_gate_backward(
    dy: Tensor,
    w_o: Tensor,
    x: Tensor,
    w_uv: Tensor,
    duv: Tensor,
    h: Tensor,
    *,
    block_t: int = 128,
    block_h: int = 128,
    block_k: int = 64,
    stages: int = 3,
    warps: int = 8,
) -> None:
    """Write the gradient of uv = x W_uv^T, and h = u swish(v).

    Args:
        dy: [T, D].
        w_o: [D, H].
        x: [T, In]; In is a power of two, 128 at most.
        w_uv: [2, H, In].
        duv: [T, 2, H].
        h: [T, H].
        block_t, block_h, block_k, stages, warps: launch parameters.
    """
    num_rows, columns = x.shape
    _launch_wide(
        dy[:, None],
        w_o[None],
        x_or_uv=tile(x, block_t, columns),
        w_uv=tile(w_uv.view(-1, columns), block_h, columns),
        duv=tile(duv.view(num_rows, -1), block_t, block_h),
        h=tile(h, block_t, block_h),
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_K=block_k,
        NARROW=True,
        STAGES=stages,
        num_warps=warps,
    )


def _launch_wide(
    dy: Tensor,
    w_o: Tensor,
    *,
    BLOCK_T: int,
    BLOCK_H: int,
    BLOCK_K: int,
    **arguments: TensorDescriptor | int,
) -> None:
    """Launch the kernel on dy [T, M, D] and w_o [M, D, H] with tiles and sizes of the caller."""
    num_rows, layers, width = dy.shape
    hidden = w_o.shape[2]
    num_tiles = triton.cdiv(num_rows, BLOCK_T) * layers * (hidden // BLOCK_H)
    _wide_gate_backward[(num_tiles,)](
        tile(dy.view(num_rows, -1), BLOCK_T, BLOCK_K),
        tile(w_o.view(-1, hidden), BLOCK_K, BLOCK_H),
        num_rows=num_rows,
        M=layers,
        D=width,
        H=hidden,
        BLOCK_T=BLOCK_T,
        BLOCK_H=BLOCK_H,
        BLOCK_K=BLOCK_K,
        FAST=not INTERPRETED,
        PRECISION=dot_precision(dy),
        **arguments,
    )


def gate_backward(
    dh: Tensor,
    uv: Tensor,
    duv: Tensor,
    *,
    block: int = 2048,
) -> None:
    """Write the gradient of uv, and h = u swish(v) over dh.

    Args:
        dh: [T, M, H].
        uv, duv: [T, M, 2, H].
        block: elements of one program.
    """
    total = dh.numel()
    _gate_backward[(triton.cdiv(total, block),)](
        dh,
        uv,
        duv,
        total,
        H=dh.shape[-1],
        BLOCK=block,
        FAST=not INTERPRETED,
        num_warps=8,
    )
