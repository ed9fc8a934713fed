# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of the reordered attention over packed requests; keys and values are never formed.

Every (target, head) pair is a row u of full width, and softmax(u X^T + bias) X is the same sum for
all of them. One program takes up to BLOCK_M rows of a request and one split of its events
(longrec.nn.kernels.splits). Events are read once forward and once backward. These kernels are
faster than those of longrec.nn.kernels.attention if requests have few rows.

Shape letters: R requests, T packed events, N packed targets, D width, H heads, S splits.
BLOCK_M rows, BLOCK_L events. HEADS is H with padding: products need at least 16 rows and columns,
so it is at least 8 forward, for the two parts of a bias, and at least 16 backward. Logits are in
units of log2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.splits import (
    LOG2E,
    attention_precision,
    merge_splits,
    split_bounds,
    split_buffers,
)

MIN_BLOCK_M = 16
MAX_BLOCK_M = 64


@triton.jit
def _bias(
    bias,
    events,
    inside,
    num_events,
    rows,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the bias [rows, events] of [H, T] as a product: row r picks head r % H.

    The product runs in `dtype`. Each bias enters as the sum of two parts, its rounding and the
    rest, so the result is almost as precise as float32.
    """
    j = tl.arange(0, 2 * HEADS)
    head = j % HEADS
    is_high_part = j < HEADS
    row_head = rows % H
    pick = (head[None, :] == row_head[:, None]).to(dtype)
    value = tl.load(
        bias + head[:, None] * num_events + events[None, :],
        mask=(head < H)[:, None] & inside[None, :],
        other=0.0,
    )
    high_part = value.to(dtype)
    low_part = (value - high_part.to(tl.float32)).to(dtype)
    parts = tl.where(is_high_part[:, None], high_part, low_part)
    return tl.dot(pick, parts, input_precision=PRECISION)


@triton.jit
def _forward(
    u,
    x,
    stride,
    bias,
    event_offsets,
    target_offsets,
    split_outputs,
    split_maxima,
    split_sums,
    num_rows,
    num_events,
    splits,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the softmax sums of BLOCK_M rows over one split."""
    split = tl.program_id(0)
    block = tl.program_id(1)
    request = tl.program_id(2)
    first, length = split_bounds(event_offsets, request, split, splits, BLOCK_L)
    first_row = tl.load(target_offsets + request) * H + block * BLOCK_M
    last_row = tl.load(target_offsets + request + 1) * H
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, D)
    is_row = rows < last_row
    x_start = x + first * stride
    bias_start = bias + first
    if first_row < last_row:
        u_offsets = rows[:, None] * D + columns[None, :]
        lifted = tl.load(u + u_offsets, mask=is_row[:, None], other=0.0)
        # The online softmax: a new maximum rescales all sums of earlier events.
        maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, D), tl.float32)
        for start in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = start + tl.arange(0, BLOCK_L)
            inside = events < length
            x_offsets = events[:, None] * stride + columns[None, :]
            tokens = tl.load(x_start + x_offsets, mask=inside[:, None], other=0.0)
            logits = tl.dot(lifted, tokens.T, input_precision=PRECISION)
            if BIAS:
                logits += _bias(
                    bias_start,
                    events,
                    inside,
                    num_events,
                    rows,
                    H,
                    HEADS,
                    u.dtype.element_ty,
                    PRECISION,
                )
            logits = tl.where(inside[None, :], logits * LOG2E, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, 1))
            weights = tl.exp2(logits - new_maximum[:, None])
            rescale = tl.exp2(maximum - new_maximum)
            total = total * rescale + tl.sum(weights, 1)
            acc = tl.dot(
                weights.to(tokens.dtype),
                tokens,
                acc * rescale[:, None],
                input_precision=PRECISION,
            )
            maximum = new_maximum
        split_rows = split.to(tl.int64) * num_rows + rows
        matrix = split_rows[:, None] * D + columns[None, :]
        tl.store(split_outputs + matrix, acc, mask=is_row[:, None])
        tl.store(split_maxima + split_rows, maximum, mask=is_row)
        tl.store(split_sums + split_rows, total, mask=is_row)


@triton.jit
def _backward(
    u,
    x,
    stride,
    bias,
    event_offsets,
    target_offsets,
    out,
    lse,
    dout,
    du,
    dx,
    dbias,
    num_rows,
    num_events,
    splits,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write du of each split, and dx and dbias of each block of rows; the caller sums them."""
    split = tl.program_id(0)
    block = tl.program_id(1)
    request = tl.program_id(2)
    first, length = split_bounds(event_offsets, request, split, splits, BLOCK_L)
    first_row = tl.load(target_offsets + request) * H + block * BLOCK_M
    last_row = tl.load(target_offsets + request + 1) * H
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < last_row
    mask = is_row[:, None]
    columns = tl.arange(0, D)
    heads = tl.arange(0, HEADS)
    x_start = x + first * stride
    bias_start = bias + first
    block_int64 = block.to(tl.int64)
    dx_start = dx + (block_int64 * num_events + first) * D
    dbias_start = dbias + block_int64 * H * num_events + first
    u_offsets = rows[:, None] * D + columns[None, :]
    lifted = tl.load(u + u_offsets, mask=mask, other=0.0)
    doutput = tl.load(dout + u_offsets, mask=mask, other=0.0)
    output = tl.load(out + u_offsets, mask=mask, other=0.0)
    # delta = sum(output * doutput) of each row: softmax's derivative subtracts it.
    delta = tl.sum(doutput.to(tl.float32) * output.to(tl.float32), 1)
    log_sum_exp = tl.load(lse + rows, mask=is_row, other=float("inf"))
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    for start in tl.range(0, length, BLOCK_L, num_stages=STAGES):
        events = start + tl.arange(0, BLOCK_L)
        inside = events < length
        x_offsets = events[:, None] * stride + columns[None, :]
        tokens = tl.load(x_start + x_offsets, mask=inside[:, None], other=0.0)
        logits = tl.dot(lifted, tokens.T, input_precision=PRECISION)
        if BIAS:
            logits += _bias(
                bias_start,
                events,
                inside,
                num_events,
                rows,
                H,
                HEADS,
                u.dtype.element_ty,
                PRECISION,
            )
        weights = tl.exp2(logits * LOG2E - log_sum_exp[:, None])
        weights = tl.where(inside[None, :], weights, 0.0)
        dweights = tl.dot(doutput, tokens.T, input_precision=PRECISION)
        dlogits = weights * (dweights - delta[:, None])
        dlogits_cast = dlogits.to(lifted.dtype)
        acc = tl.dot(
            dlogits_cast,
            tokens,
            acc,
            input_precision=PRECISION,
        )
        # A token is key and value: both gradients add up in one accumulator.
        dtokens = tl.dot(weights.to(lifted.dtype).T, doutput, input_precision=PRECISION)
        dtokens = tl.dot(
            dlogits_cast.T,
            lifted,
            dtokens,
            input_precision=PRECISION,
        )
        tl.store(
            dx_start + events[:, None] * D + columns[None, :],
            dtokens.to(dx.dtype.element_ty),
            mask=inside[:, None],
        )
        if BIAS:
            row_head = rows % H
            pick = (row_head[None, :] == heads[:, None]).to(tl.float32)
            per_head = tl.dot(pick.to(lifted.dtype), dlogits_cast, input_precision=PRECISION)
            tl.store(
                dbias_start + heads[:, None] * num_events + events[None, :],
                per_head,
                mask=(heads < H)[:, None] & inside[None, :],
            )
    du_rows = split.to(tl.int64) * num_rows + rows
    tl.store(du + du_rows[:, None] * D + columns[None, :], acc, mask=mask)


def _block_m(max_targets: int, heads: int) -> int:
    """Return the rows that a program takes: a power of two from 16 to 64."""
    enough = triton.next_power_of_2(max_targets * heads)
    return int(min(MAX_BLOCK_M, max(MIN_BLOCK_M, enough)))


def num_blocks(max_targets: int, heads: int) -> int:
    """Return the number of programs that share the rows of the request with the most targets."""
    return int(triton.cdiv(max_targets * heads, _block_m(max_targets, heads)))


def forward(
    u: Tensor,
    x: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    max_targets: int,
    splits: int,
    *,
    block_l: int = 32,
    warps: int = 4,
    stages: int = 4,
) -> tuple[Tensor, Tensor]:
    """Return (softmax(u X^T + bias) X [N, H, D], log2-sum-exp float32 [N, H]).

    The output is 0 for an empty history.

    Args:
        u: [N, H, D], scaled.
        x: [T, D], rows of any stride.
        bias: float32 [H, T], or None.
        event_offsets, target_offsets: int64 [R+1].
        max_targets: most targets of one request.
        splits: S.
        block_l, warps, stages: launch parameters.
    """
    num_targets, heads, width = u.shape
    num_rows = num_targets * heads
    split_outputs, split_maxima, split_sums = split_buffers((splits, num_rows, 1), width, u.device)
    out = torch.empty_like(u)
    lse = torch.empty(
        (num_targets, heads),
        dtype=torch.float32,
        device=u.device,
    )
    # Without a bias the kernel reads none, but needs some tensor: `lse` stands in.
    _forward[(splits, num_blocks(max_targets, heads), event_offsets.numel() - 1)](
        u,
        x,
        x.stride(0),
        lse if bias is None else bias,
        event_offsets,
        target_offsets,
        split_outputs,
        split_maxima,
        split_sums,
        num_rows,
        x.shape[0],
        splits,
        H=heads,
        HEADS=max(8, triton.next_power_of_2(heads)),
        D=width,
        BLOCK_M=_block_m(max_targets, heads),
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=attention_precision(u),
        STAGES=stages,
        num_warps=warps,
    )
    merge_splits(
        split_outputs,
        split_maxima,
        split_sums,
        out,
        lse,
        heads=1,
        head_width=width,
    )
    return out, lse


def backward(
    u: Tensor,
    x: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    max_targets: int,
    splits: int,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    *,
    block_l: int = 64,
    warps: int = 4,
    stages: int = 2,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of (u, x, bias).

    Args:
        u, x, bias, event_offsets, target_offsets, max_targets, splits: as in `forward`.
        out, lse: results of `forward`.
        dout: [N, H, D], gradient of out.
        block_l, warps, stages: launch parameters.
    """
    num_targets, heads, width = u.shape
    num_events = x.shape[0]
    blocks = num_blocks(max_targets, heads)
    du = torch.empty(
        (splits, *u.shape),
        dtype=torch.float32,
        device=u.device,
    )
    dx = torch.empty(
        (blocks, num_events, width),
        dtype=x.dtype,
        device=x.device,
    )
    dbias = None
    if bias is not None:
        dbias = torch.empty(
            (blocks, *bias.shape),
            dtype=torch.float32,
            device=u.device,
        )
    _backward[(splits, blocks, event_offsets.numel() - 1)](
        u,
        x,
        x.stride(0),
        lse if bias is None else bias,
        event_offsets,
        target_offsets,
        out,
        lse,
        dout,
        du,
        dx,
        du if dbias is None else dbias,
        num_targets * heads,
        num_events,
        splits,
        H=heads,
        HEADS=max(16, triton.next_power_of_2(heads)),
        D=width,
        BLOCK_M=_block_m(max_targets, heads),
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=attention_precision(u),
        STAGES=stages,
        num_warps=warps,
    )
    summed_dx = dx[0] if blocks == 1 else dx.sum(0, dtype=torch.float32).to(x.dtype)
    summed_dbias = None if dbias is None else dbias.sum(0)
    return du.sum(0).to(u.dtype), summed_dx, summed_dbias
