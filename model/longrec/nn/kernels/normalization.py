# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of normalization without scale and shift, forward and backward.

    xhat = (y - mean(y)) / deviation(y)                      normalize
    dy = (g - mean(g) - xhat mean(g xhat)) / deviation(y)    normalize_backward
    the same with g = dkv [W_K | W_V]^T                      project_normalize_backward

Shape letters: T rows, M layers, D width. Memory layouts: y, xhat and dy [T, M, D], rstd [T, M].
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.tiles import dot_precision, num_programs, tile

ELEMENTS_PER_PROGRAM = 2048
"""Elements that a program of the element-wise kernels holds at a time."""


@triton.jit
def _project_normalize_backward(
    dkv,
    w_kv,
    xhat,
    rstd_pointer,
    dy,
    num_rows,
    layer,
    M: tl.constexpr,
    D: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write dy with g = dkv W^T; W is [D, NUM_COLUMNS].

    One loop runs over tiles of rows and blocks of NUM_COLUMNS, as in gate_forward._gate_project.
    """
    first = tl.program_id(0)
    step = tl.num_programs(0)
    num_tiles = tl.cdiv(num_rows, BLOCK_T)
    num_blocks: tl.constexpr = NUM_COLUMNS // BLOCK_K
    num_steps = tl.cdiv(num_tiles - first, step) * num_blocks
    acc = tl.zeros((BLOCK_T, D), tl.float32)
    for i in tl.range(0, num_steps, num_stages=STAGES):
        row = (first + (i // num_blocks) * step) * BLOCK_T
        block = i % num_blocks
        dkv_tile = dkv.load([row, block * BLOCK_K])
        w = w_kv.load([0, block * BLOCK_K])
        acc = tl.dot(
            dkv_tile,
            w.T,
            acc,
            input_precision=PRECISION,
        )
        if block == num_blocks - 1:  # the epilogue of this tile
            rows = row + tl.arange(0, BLOCK_T)
            inside = rows < num_rows
            rstd = tl.load(rstd_pointer + rows * M + layer, mask=inside, other=0.0)
            x = xhat.load([row, layer * D])
            mean_gx = tl.sum(acc * x.to(tl.float32), 1) / D
            mean_g = tl.sum(acc, 1) / D
            acc = (acc - mean_g[:, None] - x.to(tl.float32) * mean_gx[:, None]) * rstd[:, None]
            local = tl.arange(0, BLOCK_T)[:, None] * (M * D) + tl.arange(0, D)[None, :]
            start = dy + (row.to(tl.int64) * M + layer) * D
            tl.store(start + local, acc, mask=inside[:, None])
            acc = tl.zeros((BLOCK_T, D), tl.float32)


@triton.jit
def _normalize(
    y,
    xhat,
    rstd_pointer,
    num_rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write xhat and 1 / deviation of BLOCK_T rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_D)
    is_row = rows < num_rows
    inside = is_row[:, None] & (columns < D)[None, :]
    offsets = rows[:, None] * D + columns[None, :]
    value = tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / D
    centred = tl.where(inside, value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    tl.store(rstd_pointer + rows, rstd, mask=is_row)
    tl.store(xhat + offsets, centred * rstd[:, None], mask=inside)


@triton.jit
def _normalize_backward(
    g,
    xhat,
    rstd_pointer,
    dy,
    num_rows,
    layer,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write dy of BLOCK_T rows of one layer."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_D)
    is_row = rows < num_rows
    inside = is_row[:, None] & (columns < D)[None, :]
    g_offsets = rows[:, None] * D + columns[None, :]
    row_of_layer = rows * M + layer
    offsets = row_of_layer[:, None] * D + columns[None, :]
    g_tile = tl.load(g + g_offsets, mask=inside, other=0.0).to(tl.float32)
    normed = tl.load(xhat + offsets, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_pointer + row_of_layer, mask=is_row, other=0.0)
    mean_g = tl.sum(g_tile, 1) / D
    mean_gx = tl.sum(g_tile * normed, 1) / D
    result = (g_tile - mean_g[:, None] - normed * mean_gx[:, None]) * rstd[:, None]
    tl.store(dy + offsets, result, mask=inside)


def project_normalize_backward(
    dkv: Tensor,
    w_kv: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    layer: int,
    dy: Tensor,
    *,
    block_t: int = 128,
    block_k: int = 32,
    stages: int = 6,
    warps: int = 8,
    per_processor: int = 1,
) -> None:
    """Write the gradient of one layer's output before normalization into dy[:, layer].

    Args:
        dkv: [T, 2 D], gradient of xhat[:, layer] W.
        w_kv: W, [D, 2 D].
        xhat, dy: [T, M, D].
        rstd: float32 [T, M].
        layer: index into M.
        block_t, block_k, stages, warps, per_processor: launch parameters.
    """
    num_rows, layers, width = xhat.shape
    num_tiles = triton.cdiv(num_rows, block_t)
    grid = (num_programs(num_tiles, dkv.device, per_processor),)
    _project_normalize_backward[grid](
        tile(dkv, block_t, block_k),
        tile(w_kv, width, block_k),
        tile(xhat.view(num_rows, -1), block_t, width),
        rstd,
        dy,
        num_rows,
        layer,
        M=layers,
        D=width,
        NUM_COLUMNS=w_kv.shape[1],
        BLOCK_T=block_t,
        BLOCK_K=block_k,
        PRECISION=dot_precision(dkv),
        STAGES=stages,
        num_warps=warps,
    )


def normalize(
    y: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    *,
    eps: float = 1e-5,
) -> None:
    """Write (y - mean) / deviation and 1 / deviation of each row; xhat may be y.

    Args:
        y, xhat: [T, M, D].
        rstd: float32 [T, M].
        eps: added to the variance.
    """
    num_rows = rstd.numel()
    width = y.shape[2]
    block_d = triton.next_power_of_2(width)
    block_t = max(1, ELEMENTS_PER_PROGRAM // block_d)
    _normalize[(triton.cdiv(num_rows, block_t),)](
        y,
        xhat,
        rstd,
        num_rows,
        eps,
        D=width,
        BLOCK_D=block_d,
        BLOCK_T=block_t,
    )


def normalize_backward(
    g: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    layer: int,
    dy: Tensor,
) -> None:
    """Write the gradient of one layer's rows before normalization into dy[:, layer].

    Args:
        g: [T, D], gradient of xhat[:, layer].
        xhat, dy: [T, M, D].
        rstd: float32 [T, M].
        layer: index into M.
    """
    num_rows, layers, width = xhat.shape
    block_d = triton.next_power_of_2(width)
    block_t = max(1, ELEMENTS_PER_PROGRAM // block_d)
    _normalize_backward[(triton.cdiv(num_rows, block_t),)](
        g,
        xhat,
        rstd,
        dy,
        num_rows,
        layer,
        M=layers,
        D=width,
        BLOCK_D=block_d,
        BLOCK_T=block_t,
    )
