# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of the gated FFN with a normalized output: everything between its matrix products,
forward and backward.

    uv = x [W_u | W_v]                       one product for all layers, left to cuBLAS
    xhat = normalize((u swish(v)) W_o)       gate_project: gate on the way in, normalization on the
    way out
    dy = normalize'(dkv [W_k | W_v]^T)       project_normalize_backward
    du, dv, h = gate'(dy W_o^T)              project_gate_backward
    dx, dW                                   products again, left to cuBLAS

Normalization here is without scale and shift: they are folded into the weights that read it
(longrec.nn.fused_ffn).

Shape letters: T rows, M layers, D width, H hidden width of the FFN. Memory layouts: uv [T, M, 2,
H], h [T, M, H],
xhat and dy [T, M, D], rstd [T, M]. All launchers take contiguous inputs and write their last
arguments.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + e^-x); FAST by one hardware instruction, absolute error below 2.5e-4, a quarter of
    bfloat16's step at 0.5.
    """
    if FAST:
        t = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * t + 0.5
    return tl.sigmoid(x)


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
    KEEP: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = normalize((u swish(v)) W_o^T) or residual + (u swish(v)) W_o^T, one tile of BLOCK_T
    rows and all D columns at a time.

    The loops over tiles and over blocks of H are one, so that loads of the next tile are under way
    during the epilogue.
    """
    first, step = tl.program_id(0), tl.num_programs(0)
    num_tiles = tl.cdiv(num_rows, BLOCK_T) * M
    num_blocks: tl.constexpr = H // BLOCK_H
    acc = tl.zeros((BLOCK_T, D), tl.float32)
    for i in tl.range(0, tl.cdiv(num_tiles - first, step) * num_blocks, num_stages=STAGES):
        tile, block = first + (i // num_blocks) * step, i % num_blocks
        row, layer = (tile // M) * BLOCK_T, tile % M
        u = uv.load([row, layer * 2 * H + block * BLOCK_H])
        v = uv.load([row, layer * 2 * H + H + block * BLOCK_H])
        w = w_o.load([layer * D, block * BLOCK_H])
        wide = v.to(tl.float32)
        hidden = (u.to(tl.float32) * wide * sigmoid(wide, FAST)).to(u.dtype)
        if KEEP:
            local, column = (
                tl.arange(0, BLOCK_T)[:, None],
                block * BLOCK_H + tl.arange(0, BLOCK_H)[None, :],
            )
            tl.store(
                h + ((row + local).to(tl.int64) * M + layer) * H + column,
                hidden,
                mask=row + local < num_rows,
            )
        acc = tl.dot(hidden, w.T, acc, input_precision=PRECISION)
        if block == num_blocks - 1:
            if NORMALIZE:
                centred = acc - tl.sum(acc, 1)[:, None] / D
                rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
                rows = row + tl.arange(0, BLOCK_T)
                tl.store(rstd_pointer + rows * M + layer, rstd, mask=rows < num_rows)
                acc = centred * rstd[:, None]
            if RESIDUAL:  # by pointers: tiles of both would not fit on chip
                local, column = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, D)[None, :]
                inside = row + local < num_rows
                acc += tl.load(
                    residual + row.to(tl.int64) * stride + local * stride + column,
                    mask=inside,
                    other=0.0,
                ).to(tl.float32)
                tl.store(residual_out + row.to(tl.int64) * D + local * D + column, acc, mask=inside)
            else:
                out.store([row, layer * D], acc.to(out.dtype))
            acc = tl.zeros((BLOCK_T, D), tl.float32)


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
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dy = (g - mean(g) - xhat mean(g xhat)) rstd with g = dkv W^T, W [D, WIDE]; tiles as in
    _gate_project.
    """
    first, step = tl.program_id(0), tl.num_programs(0)
    num_tiles = tl.cdiv(num_rows, BLOCK_T)
    num_blocks: tl.constexpr = WIDE // BLOCK_K
    acc = tl.zeros((BLOCK_T, D), tl.float32)
    for i in tl.range(0, tl.cdiv(num_tiles - first, step) * num_blocks, num_stages=STAGES):
        row, block = (first + (i // num_blocks) * step) * BLOCK_T, i % num_blocks
        g = dkv.load([row, block * BLOCK_K])
        w = w_kv.load([0, block * BLOCK_K])
        acc = tl.dot(g, w.T, acc, input_precision=PRECISION)
        if block == num_blocks - 1:
            rows = row + tl.arange(0, BLOCK_T)
            rstd = tl.load(rstd_pointer + rows * M + layer, mask=rows < num_rows, other=0.0)
            x = xhat.load([row, layer * D])
            mean_gx = tl.sum(acc * x.to(tl.float32), 1) / D
            mean_g = tl.sum(acc, 1) / D
            acc = (acc - mean_g[:, None] - x.to(tl.float32) * mean_gx[:, None]) * rstd[:, None]
            local = tl.arange(0, BLOCK_T)[:, None] * (M * D) + tl.arange(0, D)[None, :]
            tl.store(
                dy + (row.to(tl.int64) * M + layer) * D + local,
                acc,
                mask=(rows < num_rows)[:, None],
            )
            acc = tl.zeros((BLOCK_T, D), tl.float32)


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
    """du = dh swish(v), dv = dh u swish'(v) with dh = dy W_o, and dW_o = dy^T (u swish(v)), W_o [D,
    H].

    A program keeps BLOCK_H columns of W_o and of its gradient on chip and goes through a part of
    the rows, so that u swish(v) never
    reaches memory. Results are stored by pointers: tile stores of one shape share a buffer, and
    each waits for the one before it.
    """
    num_blocks: tl.constexpr = H // BLOCK_H
    column, layer = (tl.program_id(0) % num_blocks) * BLOCK_H, (tl.program_id(0) // num_blocks) % M
    part = tl.program_id(0) // (num_blocks * M)
    first = part * rows_per_program
    w = w_o.load([layer * D, column])
    acc = tl.zeros((D, BLOCK_H), tl.float32)
    columns, local = column + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_T)
    for row in tl.range(
        first, tl.minimum(first + rows_per_program, num_rows), BLOCK_T, num_stages=STAGES
    ):
        g = dy.load([row, layer * D])
        u = uv.load([row, layer * 2 * H + column]).to(tl.float32)
        v = uv.load([row, layer * 2 * H + H + column]).to(tl.float32)
        dh = tl.dot(g, w, input_precision=PRECISION)
        s = sigmoid(v, FAST)
        swish = v * s
        rows = row + local
        spot = duv + (rows.to(tl.int64) * M + layer)[:, None] * (2 * H) + columns[None, :]
        inside = (rows < num_rows)[:, None]
        tl.store(spot, dh * swish, mask=inside)
        tl.store(spot + H, dh * u * (s + swish * (1.0 - s)), mask=inside)
        acc = tl.dot(g.T, (u * swish).to(g.dtype), acc, input_precision=PRECISION)
    place = (part * M + layer) * D * H + tl.arange(0, D)[:, None] * H + columns[None, :]
    tl.store(dw_o + place, acc)


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
    KEEP: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = x W_x^T + (u swish(v)) W_o^T with u = x W_u, v = x W_v, for x of so few columns that
    its tile stays on chip.
    """
    parts: tl.constexpr = D // BLOCK_D
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_T) * parts, tl.num_programs(0)):
        row, place = (tile // parts) * BLOCK_T, (tile % parts) * BLOCK_D
        rows = x.load([row, 0])
        acc = tl.dot(rows, w_x.load([place, 0]).T, input_precision=PRECISION)
        for column in tl.range(0, H, BLOCK_H, num_stages=STAGES):
            u = tl.dot(rows, w_uv.load([column, 0]).T, input_precision=PRECISION).to(out.dtype)
            v = tl.dot(rows, w_uv.load([H + column, 0]).T, input_precision=PRECISION).to(out.dtype)
            if KEEP:  # with one part
                uv.store([row, column], u)
                uv.store([row, H + column], v)
            wide = v.to(tl.float32)
            hidden = (u.to(tl.float32) * wide * sigmoid(wide, FAST)).to(out.dtype)
            acc = tl.dot(hidden, w_o.load([place, column]).T, acc, input_precision=PRECISION)
        out.store([row, place], acc.to(out.dtype))


@triton.jit
def _wide_gate_backward(
    dy,
    w_o,
    uv,
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
    """du = dh swish(v), dv = dh u swish'(v) with dh = dy W_o, one tile of BLOCK_T rows and BLOCK_H
    columns at a time; w_o [M D, H].

    With NARROW `uv` is x (of few columns, M = 1): u and v are computed anew, and h = u swish(v) is
    written as well.
    """
    num_columns: tl.constexpr = M * (H // BLOCK_H)
    tile = tl.program_id(0)
    row, layer, column = (
        (tile // num_columns) * BLOCK_T,
        (tile % num_columns) % M,
        ((tile % num_columns) // M) * BLOCK_H,
    )
    if NARROW:
        rows = uv.load([row, 0])
        u = tl.dot(rows, w_uv.load([column, 0]).T, input_precision=PRECISION).to(duv.dtype)
        v = tl.dot(rows, w_uv.load([H + column, 0]).T, input_precision=PRECISION).to(duv.dtype)
    else:
        u = uv.load([row, layer * 2 * H + column])
        v = uv.load([row, layer * 2 * H + H + column])
    dh = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for at in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        dh = tl.dot(
            dy.load([row, layer * D + at]),
            w_o.load([layer * D + at, column]),
            dh,
            input_precision=PRECISION,
        )
    wide = v.to(tl.float32)
    s = sigmoid(wide, FAST)
    swish = wide * s
    duv.store([row, layer * 2 * H + column], (dh * swish).to(duv.dtype))
    duv.store(
        [row, layer * 2 * H + H + column],
        (dh * u.to(tl.float32) * (s + swish * (1.0 - s))).to(duv.dtype),
    )
    if NARROW:
        h.store([row, column], (u.to(tl.float32) * swish).to(h.dtype))


def _tile(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Returns a descriptor of a contiguous tensor as a matrix [first dimensions, last], read in
    tiles [rows, columns].
    """
    return TensorDescriptor.from_tensor(tensor, [rows, columns])


def _precision(tensor: Tensor) -> str:
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


def _num_programs(num_tiles: int, device: torch.device, per_processor: int = 1) -> int:
    if INTERPRETED:
        return min(3, num_tiles)
    return min(
        num_tiles, per_processor * torch.cuda.get_device_properties(device).multi_processor_count
    )


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
    """Writes normalize((u swish(v)) W_o^T) and 1/deviation, or with `residual` the sum of it and (u
    swish(v)) W_o^T.

    Args:
        uv: [T, M, 2, H].
        w_o: [M, D, H].
        out: [T, M, D].
        rstd: float32 [T, M], or None with `residual`.
        residual: [T, D], rows of any stride, for M = 1.
        h: [T, M, H], gets u swish(v); None to leave that on chip.
    """
    num_rows, layers, _, hidden = uv.shape
    width = w_o.shape[1]
    grid = (_num_programs(triton.cdiv(num_rows, block_t) * layers, uv.device, per_processor),)
    rows = _tile(out.view(num_rows, -1), block_t, width)
    _gate_project[grid](
        _tile(uv.view(num_rows, -1), block_t, block_h),
        _tile(w_o.view(-1, hidden), width, block_h),
        out if residual is None else residual,
        out,
        rows,
        out if h is None else h,
        rstd if rstd is not None else out,
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
        KEEP=h is not None,
        FAST=not INTERPRETED,
        PRECISION=_precision(uv),
        STAGES=stages,
        num_warps=warps,
    )


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
    """Writes the gradient of one layer's output before normalization into dy[:, layer].

    Args:
        dkv: [T, 2 D], gradient of xhat W. w_kv: W, [D, 2 D]. xhat, dy: [T, M, D]. rstd: float32 [T,
            M].
    """
    num_rows, layers, width = xhat.shape
    grid = (_num_programs(triton.cdiv(num_rows, block_t), dkv.device, per_processor),)
    _project_normalize_backward[grid](
        _tile(dkv, block_t, block_k),
        _tile(w_kv, width, block_k),
        _tile(xhat.view(num_rows, -1), block_t, width),
        rstd,
        dy,
        num_rows,
        layer,
        M=layers,
        D=width,
        WIDE=w_kv.shape[1],
        BLOCK_T=block_t,
        BLOCK_K=block_k,
        PRECISION=_precision(dkv),
        STAGES=stages,
        num_warps=warps,
    )


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
    """Writes the gradient of uv; returns that of w_o, float32 [M, D, H].

    Args:
        dy: [T, M, D]. w_o: [M, D, H]. uv, duv: [T, M, 2, H].
    """
    num_rows, layers, _, hidden = uv.shape
    width, blocks = w_o.shape[1], layers * (hidden // block_h)
    parts = max(
        1,
        _num_programs(blocks * triton.cdiv(num_rows, block_t), dy.device, per_processor) // blocks,
    )
    rows_per_program = triton.cdiv(triton.cdiv(num_rows, parts), block_t) * block_t
    dw_o = torch.empty((parts, *w_o.shape), dtype=torch.float32, device=dy.device)
    _project_gate_backward[(parts * blocks,)](
        _tile(dy.view(num_rows, -1), block_t, width),
        _tile(w_o.view(-1, hidden), width, block_h),
        _tile(uv.view(num_rows, -1), block_t, block_h),
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
        PRECISION=_precision(dy),
        STAGES=stages,
        num_warps=warps,
    )
    return dw_o.sum(0)


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
    """Writes x W_x^T + (u swish(v)) W_o^T, and u and v unless uv is None.

    Args:
        x: [T, In], In a power of two, 128 at most. w_uv: [2, H, In]. w_o: [D, H]. w_x: [D, In]. uv:
            [T, 2, H]. out: [T, D].
    """
    (num_rows, columns), (width, hidden) = x.shape, w_o.shape
    block_d = block_d or min(width, 256)
    block_h, stages = block_h or (64 if uv is None else 32), stages or (2 if uv is None else 3)
    grid = (_num_programs(triton.cdiv(num_rows, block_t) * (width // block_d), x.device),)
    rows = _tile(out, block_t, block_d)
    _narrow_gate_project[grid](
        _tile(x, block_t, columns),
        _tile(w_uv.view(-1, columns), block_h, columns),
        _tile(w_o, block_d, block_h),
        _tile(w_x, block_d, columns),
        rows if uv is None else _tile(uv.view(num_rows, -1), block_t, block_h),
        rows,
        num_rows,
        D=width,
        H=hidden,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        KEEP=uv is not None,
        FAST=not INTERPRETED,
        PRECISION=_precision(x),
        STAGES=stages,
        num_warps=warps,
    )


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
    """Writes the gradient of uv.

    Args:
        dy: [T, M, D]. w_o: [M, D, H]. uv, duv: [T, M, 2, H].
    """
    num_rows = uv.shape[0]
    rows, gradients = (_tile(tensor.view(num_rows, -1), block_t, block_h) for tensor in (uv, duv))
    _launch_wide(
        dy,
        w_o,
        rows,
        rows,
        gradients,
        gradients,
        block_t,
        block_h,
        block_k,
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
    """Writes the gradient of uv = x W_uv^T, and h = u swish(v).

    Args:
        dy: [T, D]. w_o: [D, H]. x: [T, In], In a power of two, 128 at most. w_uv: [2, H, In]. duv:
            [T, 2, H]. h: [T, H].
    """
    num_rows, columns = x.shape
    _launch_wide(
        dy[:, None],
        w_o[None],
        _tile(x, block_t, columns),
        _tile(w_uv.view(-1, columns), block_h, columns),
        _tile(duv.view(num_rows, -1), block_t, block_h),
        _tile(h, block_t, block_h),
        block_t,
        block_h,
        block_k,
        NARROW=True,
        STAGES=stages,
        num_warps=warps,
    )


def _launch_wide(
    dy: Tensor,
    w_o: Tensor,
    uv: TensorDescriptor,
    w_uv: TensorDescriptor,
    duv: TensorDescriptor,
    h: TensorDescriptor,
    block_t: int,
    block_h: int,
    block_k: int,
    **options: int,
) -> None:
    num_rows, layers, width = dy.shape
    hidden = w_o.shape[2]
    _wide_gate_backward[(triton.cdiv(num_rows, block_t) * layers * (hidden // block_h),)](
        _tile(dy.view(num_rows, -1), block_t, block_k),
        _tile(w_o.view(-1, hidden), block_k, block_h),
        uv,
        w_uv,
        duv,
        h,
        num_rows,
        M=layers,
        D=width,
        H=hidden,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        BLOCK_K=block_k,
        FAST=not INTERPRETED,
        PRECISION=_precision(dy),
        **options,
    )


@triton.jit
def _rows_product(
    a,
    b,
    out,
    num_rows,
    rows_per_program,
    first_column,
    A: tl.constexpr,
    B: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = a^T b over a part of the rows, one tile [BLOCK, BLOCK] of it a program."""
    across: tl.constexpr = B // BLOCK
    tiles: tl.constexpr = (A // BLOCK) * across
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    i, j = (tile // across) * BLOCK, (tile % across) * BLOCK
    first = part * rows_per_program
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for row in tl.range(
        first, tl.minimum(first + rows_per_program, num_rows), BLOCK_T, num_stages=STAGES
    ):
        acc = tl.dot(
            a.load([row, first_column + i]).T, b.load([row, j]), acc, input_precision=PRECISION
        )
    tl.store(
        out
        + part * A * B
        + (i + tl.arange(0, BLOCK))[:, None] * B
        + j
        + tl.arange(0, BLOCK)[None, :],
        acc,
    )


def rows_product(
    a: Tensor,
    layer: int,
    b: Tensor,
    *,
    block: int = 128,
    block_t: int = 64,
    stages: int = 5,
    warps: int = 8,
) -> Tensor:
    """Returns a[:, layer]^T b, float32 [A, B]: a sum over very many rows with a small result, split
    over the rows.

    Args:
        a: [T, M, A]. b: [T, B]. A and B: multiples of `block`.
    """
    (num_rows, _, height), width = a.shape, b.shape[1]
    tiles = (height // block) * (width // block)
    parts = max(1, _num_programs(tiles * triton.cdiv(num_rows, block_t), b.device) // tiles)
    rows_per_program = triton.cdiv(triton.cdiv(num_rows, parts), block_t) * block_t
    out = torch.empty((parts, height, width), dtype=torch.float32, device=b.device)
    _rows_product[(tiles * parts,)](
        _tile(a.view(num_rows, -1), block_t, block),
        _tile(b, block_t, block),
        out,
        num_rows,
        rows_per_program,
        layer * height,
        A=height,
        B=width,
        BLOCK=block,
        BLOCK_T=block_t,
        PRECISION=_precision(b),
        STAGES=stages,
        num_warps=warps,
    )
    return out.sum(0)


@triton.jit
def _gate(
    uv,
    h,
    total,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    FAST: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    pair, column = at // H, at % H
    u = tl.load(uv + pair * 2 * H + column, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(uv + pair * 2 * H + H + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + at, u * v * sigmoid(v, FAST), mask=inside)


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
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    pair, column = at // H, at % H
    u = tl.load(uv + pair * 2 * H + column, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(uv + pair * 2 * H + H + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    s = sigmoid(v, FAST)
    swish = v * s
    tl.store(duv + pair * 2 * H + column, g * swish, mask=inside)
    tl.store(duv + pair * 2 * H + H + column, g * u * (s + swish * (1.0 - s)), mask=inside)
    tl.store(dh + at, u * swish, mask=inside)


def gate(uv: Tensor, h: Tensor, *, block: int = 2048) -> None:
    """Writes h = u swish(v). uv: [T, M, 2, H]. h: [T, M, H]."""
    _gate[(triton.cdiv(h.numel(), block),)](
        uv, h, h.numel(), H=h.shape[-1], BLOCK=block, FAST=not INTERPRETED, num_warps=8
    )


def gate_backward(
    dh: Tensor,
    uv: Tensor,
    duv: Tensor,
    *,
    block: int = 2048,
) -> None:
    """Writes the gradient of uv, and h = u swish(v) over dh. dh: [T, M, H]. uv, duv: [T, M, 2,
    H].
    """
    _gate_backward[(triton.cdiv(dh.numel(), block),)](
        dh, uv, duv, dh.numel(), H=dh.shape[-1], BLOCK=block, FAST=not INTERPRETED, num_warps=8
    )


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
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    at = rows[:, None] * D + columns[None, :]
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, 1)[:, None] / D, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    tl.store(rstd_pointer + rows, rstd, mask=rows < num_rows)
    tl.store(xhat + at, centred * rstd[:, None], mask=inside)


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
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    at = (rows * M + layer)[:, None] * D + columns[None, :]
    value = tl.load(g + rows[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.load(xhat + at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_pointer + rows * M + layer, mask=rows < num_rows, other=0.0)
    result = (
        value - tl.sum(value, 1)[:, None] / D - x * (tl.sum(value * x, 1) / D)[:, None]
    ) * rstd[:, None]
    tl.store(dy + at, result, mask=inside)


def normalize(
    y: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    *,
    eps: float = 1e-5,
) -> None:
    """Writes (y - mean) / deviation and 1/deviation of each row; xhat may be y. y, xhat: [T, M, D].
    rstd: float32 [T, M].
    """
    num_rows, width = rstd.numel(), y.shape[2]
    block_d = triton.next_power_of_2(width)
    block_t = max(1, 2048 // block_d)
    _normalize[(triton.cdiv(num_rows, block_t),)](
        y, xhat, rstd, num_rows, eps, D=width, BLOCK_D=block_d, BLOCK_T=block_t
    )


def normalize_backward(
    g: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    layer: int,
    dy: Tensor,
) -> None:
    """Writes the gradient of one layer's rows before normalization into dy[:, layer].

    Args:
        g: [T, D], gradient of xhat[:, layer]. xhat, dy: [T, M, D]. rstd: float32 [T, M].
    """
    num_rows, layers, width = xhat.shape
    block_d = triton.next_power_of_2(width)
    block_t = max(1, 2048 // block_d)
    _normalize_backward[(triton.cdiv(num_rows, block_t),)](
        g, xhat, rstd, dy, num_rows, layer, M=layers, D=width, BLOCK_D=block_d, BLOCK_T=block_t
    )
