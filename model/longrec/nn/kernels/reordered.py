# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of the reordered attention over packed requests: keys and values are never formed, events
are read once each way.

Every (target, head) pair is a row u of full width; softmax(u X^T + bias) X is the same sum for all
of them, so that one program
takes up to BLOCK_M rows of a request and a part of its events. Best for few targets (rows) per
request.

Shape letters: R requests, T packed events, N packed targets, D width, H heads, S splits. Logits in
units of log2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.attention import LOG2E, join, part, precision

BLOCK_M = 64


@triton.jit
def _bias(
    bias,
    events,
    inside,
    num_events,
    row,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the bias [rows, events] of [H, T], as a product: row r picks head r % H; low parts
    keep float32's digits.
    """
    j = tl.arange(0, 2 * HEADS)
    head = j % HEADS
    pick = (head[None, :] == (row % H)[:, None]).to(dtype)
    value = tl.load(
        bias + head[:, None] * num_events + events[None, :],
        mask=(head < H)[:, None] & inside[None, :],
        other=0.0,
    )
    high = value.to(dtype)
    low = (value - high.to(tl.float32)).to(dtype)
    return tl.dot(pick, tl.where((j < HEADS)[:, None], high, low), input_precision=PRECISION)


@triton.jit
def _forward(
    u,
    x,
    stride,
    bias,
    event_offsets,
    target_offsets,
    part_o,
    part_m,
    part_l,
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
    split, request = tl.program_id(0), tl.program_id(2)
    first, length = part(event_offsets, request, split, splits, BLOCK_L)
    begin, last = (
        tl.load(target_offsets + request) * H + tl.program_id(1) * BLOCK_M,
        tl.load(target_offsets + request + 1) * H,
    )
    rows = begin + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, D)
    known = rows < last
    x_at, bias_at = x + first * stride, bias + first
    if begin < last:
        lifted = tl.load(u + rows[:, None] * D + columns[None, :], mask=known[:, None], other=0.0)
        high = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, D), tl.float32)
        for at in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = at + tl.arange(0, BLOCK_L)
            inside = events < length
            tokens = tl.load(
                x_at + events[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0
            )
            logits = tl.dot(lifted, tokens.T, input_precision=PRECISION)
            if BIAS:
                logits += _bias(
                    bias_at,
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
            higher = tl.maximum(high, tl.max(logits, 1))
            weights = tl.exp2(logits - higher[:, None])
            shrink = tl.exp2(high - higher)
            total = total * shrink + tl.sum(weights, 1)
            acc = tl.dot(
                weights.to(tokens.dtype), tokens, acc * shrink[:, None], input_precision=PRECISION
            )
            high = higher
        place = split.to(tl.int64) * num_rows + rows
        tl.store(part_o + place[:, None] * D + columns[None, :], acc, mask=known[:, None])
        tl.store(part_m + place, high, mask=known)
        tl.store(part_l + place, total, mask=known)


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
    """du of each part (to be added up over parts), dx and dbias of each block of rows (to be added
    up over blocks).
    """
    split, block, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, length = part(event_offsets, request, split, splits, BLOCK_L)
    begin, last = (
        tl.load(target_offsets + request) * H + block * BLOCK_M,
        tl.load(target_offsets + request + 1) * H,
    )
    rows = begin + tl.arange(0, BLOCK_M)
    known = rows < last
    columns, heads = tl.arange(0, D), tl.arange(0, HEADS)
    x_at, bias_at = x + first * stride, bias + first
    dx_at, dbias_at = (
        dx + (block.to(tl.int64) * num_events + first) * D,
        dbias + block.to(tl.int64) * H * num_events + first,
    )
    place = rows[:, None] * D + columns[None, :]
    lifted = tl.load(u + place, mask=known[:, None], other=0.0)
    upstream = tl.load(dout + place, mask=known[:, None], other=0.0)
    delta = tl.sum(
        upstream.to(tl.float32)
        * tl.load(out + place, mask=known[:, None], other=0.0).to(tl.float32),
        1,
    )
    norm = tl.load(lse + rows, mask=known, other=float("inf"))
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    for at in tl.range(0, length, BLOCK_L, num_stages=STAGES):
        events = at + tl.arange(0, BLOCK_L)
        inside = events < length
        tokens = tl.load(
            x_at + events[:, None] * stride + columns[None, :], mask=inside[:, None], other=0.0
        )
        logits = tl.dot(lifted, tokens.T, input_precision=PRECISION)
        if BIAS:
            logits += _bias(
                bias_at, events, inside, num_events, rows, H, HEADS, u.dtype.element_ty, PRECISION
            )
        weights = tl.where(inside[None, :], tl.exp2(logits * LOG2E - norm[:, None]), 0.0)
        dlogits = weights * (tl.dot(upstream, tokens.T, input_precision=PRECISION) - delta[:, None])
        low = dlogits.to(lifted.dtype)
        acc = tl.dot(low, tokens, acc, input_precision=PRECISION)
        dtokens = tl.dot(weights.to(lifted.dtype).T, upstream, input_precision=PRECISION)
        dtokens = tl.dot(low.T, lifted, dtokens, input_precision=PRECISION)
        tl.store(
            dx_at + events[:, None] * D + columns[None, :],
            dtokens.to(dx.dtype.element_ty),
            mask=inside[:, None],
        )
        if BIAS:
            pick = ((rows % H)[None, :] == heads[:, None]).to(tl.float32)
            per_head = tl.dot(pick.to(lifted.dtype), low, input_precision=PRECISION)
            tl.store(
                dbias_at + heads[:, None] * num_events + events[None, :],
                per_head,
                mask=(heads < H)[:, None] & inside[None, :],
            )
    tl.store(
        du + (split.to(tl.int64) * num_rows + rows)[:, None] * D + columns[None, :],
        acc,
        mask=known[:, None],
    )


def _block_m(most_targets: int, heads: int) -> int:
    return int(min(BLOCK_M, max(16, triton.next_power_of_2(most_targets * heads))))


def num_blocks(most_targets: int, heads: int) -> int:
    """Returns the programs that share the rows of the request with the most targets."""
    return int(triton.cdiv(most_targets * heads, _block_m(most_targets, heads)))


def forward(
    u: Tensor,
    x: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    most_targets: int,
    splits: int,
    *,
    block_l: int = 32,
    warps: int = 4,
    stages: int = 4,
) -> tuple[Tensor, Tensor]:
    """Returns (softmax(u X^T + bias) X [N, H, D], log2 of the softmax sums float32 [N, H]); 0 for
    an empty history.

    Args:
        u: [N, H, D], scaled. x: [T, D], rows of any stride. bias: float32 [H, T], or None.
            most_targets: of one request.
    """
    (num_targets, heads, width), num_events = u.shape, x.shape[0]
    num_rows, block_m = num_targets * heads, _block_m(most_targets, heads)
    part_o = torch.empty((splits, num_rows, width), dtype=torch.float32, device=u.device)
    part_m, part_l = (
        torch.empty((splits, num_rows, 1), dtype=torch.float32, device=u.device) for _ in range(2)
    )
    out, lse = (
        torch.empty_like(u),
        torch.empty((num_targets, heads), dtype=torch.float32, device=u.device),
    )
    _forward[(splits, num_blocks(most_targets, heads), event_offsets.numel() - 1)](
        u,
        x,
        x.stride(0),
        bias if bias is not None else lse,
        event_offsets,
        target_offsets,
        part_o,
        part_m,
        part_l,
        num_rows,
        num_events,
        splits,
        H=heads,
        HEADS=max(8, triton.next_power_of_2(heads)),
        D=width,
        BLOCK_M=block_m,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=precision(u),
        STAGES=stages,
        num_warps=warps,
    )
    join(part_o, part_m, part_l, out, lse, heads=1, head_width=width)
    return out, lse


def backward(
    u: Tensor,
    x: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    most_targets: int,
    splits: int,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    *,
    block_l: int = 64,
    warps: int = 4,
    stages: int = 2,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the gradients of (u, x, bias); arguments as in `forward`, with its results."""
    (num_targets, heads, width), num_events = u.shape, x.shape[0]
    num_rows, block_m = num_targets * heads, _block_m(most_targets, heads)
    blocks = num_blocks(most_targets, heads)
    du = torch.empty((splits, *u.shape), dtype=torch.float32, device=u.device)
    dx = torch.empty((blocks, num_events, width), dtype=x.dtype, device=x.device)
    dbias = (
        None
        if bias is None
        else torch.empty((blocks, *bias.shape), dtype=torch.float32, device=u.device)
    )
    _backward[(splits, blocks, event_offsets.numel() - 1)](
        u,
        x,
        x.stride(0),
        bias if bias is not None else lse,
        event_offsets,
        target_offsets,
        out,
        lse,
        dout,
        du,
        dx,
        dbias if dbias is not None else du,
        num_rows,
        num_events,
        splits,
        H=heads,
        HEADS=max(16, triton.next_power_of_2(heads)),
        D=width,
        BLOCK_M=block_m,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=precision(u),
        STAGES=stages,
        num_warps=warps,
    )
    one = dx[0] if blocks == 1 else dx.sum(0, dtype=torch.float32).to(x.dtype)
    return du.sum(0).to(u.dtype), one, None if dbias is None else dbias.sum(0)
