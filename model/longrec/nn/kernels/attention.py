# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of target-to-history attention over packed requests, forward and backward.

Queries are few and histories very long. One program takes one head and one split of the events
of a request (longrec.nn.kernels.splits). It reads keys and values once forward and once backward.
Keys and values of one head are adjacent in the row of an event, [H, 2, K].

Shape letters: R requests, T packed events, N packed targets, D width, H heads, K head width,
S splits. BLOCK_N targets, BLOCK_L events. Logits are in units of log2.
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

MIN_BLOCK_N = 16
MAX_BLOCK_N = 128


# Not specialized: one compilation serves batches of any size.
@triton.jit(
    do_not_specialize=["event_offsets", "target_offsets", "num_targets", "num_events", "splits"]
)
def _forward(
    q,
    kv,
    bias,
    event_offsets,
    target_offsets,
    split_outputs,
    split_maxima,
    split_sums,
    num_targets,
    num_events,
    splits,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the softmax sums of one head over one split, BLOCK_N targets at a time."""
    split = tl.program_id(0)
    head = tl.program_id(1)
    request = tl.program_id(2)
    D: tl.constexpr = H * K
    first, length = split_bounds(event_offsets, request, split, splits, BLOCK_L)
    first_target = tl.load(target_offsets + request)
    last_target = tl.load(target_offsets + request + 1)
    columns = head * K + tl.arange(0, K)
    key_columns = head * (2 * K) + tl.arange(0, K)
    keys_start = kv + first * (2 * D)
    values_start = keys_start + K
    bias_start = bias + head * num_events + first
    for block in range(first_target, last_target, BLOCK_N):
        rows = block + tl.arange(0, BLOCK_N)
        is_target = rows < last_target
        q_offsets = rows[:, None] * D + columns[None, :]
        queries = tl.load(q + q_offsets, mask=is_target[:, None], other=0.0)
        # The online softmax: a new maximum rescales all sums of earlier events.
        maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        acc = tl.zeros((BLOCK_N, K), tl.float32)
        for start in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = start + tl.arange(0, BLOCK_L)
            inside = events < length
            kv_offsets = events[:, None] * (2 * D) + key_columns[None, :]
            keys = tl.load(keys_start + kv_offsets, mask=inside[:, None], other=0.0)
            values = tl.load(values_start + kv_offsets, mask=inside[:, None], other=0.0)
            logits = tl.dot(queries, keys.T, input_precision=PRECISION)
            if BIAS:
                logits += tl.load(bias_start + events, mask=inside, other=0.0)[None, :]
            logits = tl.where(inside[None, :], logits * LOG2E, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, 1))
            weights = tl.exp2(logits - new_maximum[:, None])
            rescale = tl.exp2(maximum - new_maximum)
            total = total * rescale + tl.sum(weights, 1)
            acc = tl.dot(
                weights.to(values.dtype),
                values,
                acc * rescale[:, None],
                input_precision=PRECISION,
            )
            maximum = new_maximum
        split_rows = split * num_targets + rows
        scalars = split_rows * H + head
        matrix = split_rows[:, None] * D + columns[None, :]
        tl.store(split_outputs + matrix, acc, mask=is_target[:, None])
        tl.store(split_maxima + scalars, maximum, mask=is_target)
        tl.store(split_sums + scalars, total, mask=is_target)


@triton.jit
def _backward(
    q,
    kv,
    bias,
    event_offsets,
    target_offsets,
    out,
    lse,
    dout,
    dq,
    dkv,
    dbias,
    num_targets,
    num_events,
    splits,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BIAS: tl.constexpr,
    SINGLE_PASS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write dq of each split, to be summed, and dkv and dbias of all events.

    Logits are held as [events, targets]. Without SINGLE_PASS, targets of a request beyond BLOCK_N
    are taken in later passes, which add to dkv. The sums are exact up to the rounding of its dtype.
    """
    split = tl.program_id(0)
    head = tl.program_id(1)
    request = tl.program_id(2)
    D: tl.constexpr = H * K
    first, length = split_bounds(event_offsets, request, split, splits, BLOCK_L)
    first_target = tl.load(target_offsets + request)
    last_target = tl.load(target_offsets + request + 1)
    columns = head * K + tl.arange(0, K)
    key_columns = head * (2 * K) + tl.arange(0, K)
    keys_start = kv + first * (2 * D)
    values_start = keys_start + K
    dkeys_start = dkv + first * (2 * D)
    dvalues_start = dkeys_start + K
    bias_start = bias + head * num_events + first
    dbias_start = dbias + head * num_events + first
    for block in range(first_target, last_target, BLOCK_N):
        rows = block + tl.arange(0, BLOCK_N)
        is_target = rows < last_target
        mask = is_target[:, None]
        q_offsets = rows[:, None] * D + columns[None, :]
        queries = tl.load(q + q_offsets, mask=mask, other=0.0)
        doutput = tl.load(dout + q_offsets, mask=mask, other=0.0)
        output = tl.load(out + q_offsets, mask=mask, other=0.0)
        # delta = sum(output * doutput) of each target: softmax's derivative subtracts it.
        delta = tl.sum(doutput.to(tl.float32) * output.to(tl.float32), 1)
        log_sum_exp = tl.load(lse + rows * H + head, mask=is_target, other=float("inf"))
        acc = tl.zeros((K, BLOCK_N), tl.float32)
        for start in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = start + tl.arange(0, BLOCK_L)
            inside = events < length
            kv_offsets = events[:, None] * (2 * D) + key_columns[None, :]
            keys = tl.load(keys_start + kv_offsets, mask=inside[:, None], other=0.0)
            values = tl.load(values_start + kv_offsets, mask=inside[:, None], other=0.0)
            logits = tl.dot(keys, queries.T, input_precision=PRECISION)
            if BIAS:
                logits += tl.load(bias_start + events, mask=inside, other=0.0)[:, None]
            weights = tl.exp2(logits * LOG2E - log_sum_exp[None, :])
            weights = tl.where(inside[:, None], weights, 0.0)
            dvalues = tl.dot(weights.to(queries.dtype), doutput, input_precision=PRECISION)
            dweights = tl.dot(values, doutput.T, input_precision=PRECISION)
            dlogits = weights * (dweights - delta[None, :])
            dlogits_cast = dlogits.to(queries.dtype)
            dkeys = tl.dot(dlogits_cast, queries, input_precision=PRECISION)
            acc = tl.dot(
                keys.T,
                dlogits_cast,
                acc,
                input_precision=PRECISION,
            )
            if BIAS:
                per_event = tl.sum(dlogits, 1)
            if not SINGLE_PASS:
                is_later_pass = inside & (block > first_target)
                add_mask = is_later_pass[:, None]
                earlier_dkeys = tl.load(dkeys_start + kv_offsets, mask=add_mask, other=0.0)
                earlier_dvalues = tl.load(dvalues_start + kv_offsets, mask=add_mask, other=0.0)
                dkeys += earlier_dkeys.to(tl.float32)
                dvalues += earlier_dvalues.to(tl.float32)
                if BIAS:
                    per_event += tl.load(dbias_start + events, mask=is_later_pass, other=0.0)
            tl.store(dkeys_start + kv_offsets, dkeys, mask=inside[:, None])
            tl.store(dvalues_start + kv_offsets, dvalues, mask=inside[:, None])
            if BIAS:
                tl.store(dbias_start + events, per_event, mask=inside)
        dq_rows = split * num_targets + rows
        tl.store(dq + dq_rows[:, None] * D + columns[None, :], tl.trans(acc), mask=mask)
        if not SINGLE_PASS:
            tl.debug_barrier()  # the next pass reads dkv as other threads wrote it


def targets_per_block(num_targets: list[int]) -> int:
    """Return how many targets of a request a program takes at a time: a power of two, 16 to 128.

    It holds all targets of the largest request where that is possible.
    """
    enough = triton.next_power_of_2(max(num_targets))
    return int(min(MAX_BLOCK_N, max(MIN_BLOCK_N, enough)))


def forward(
    q: Tensor,
    kv: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    num_heads: int,
    block_n: int,
    splits: int,
    *,
    block_l: int = 128,
    warps: int = 4,
    stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return (out [N, D], log2-sum-exp float32 [N, H]); out is 0 for an empty history.

    Args:
        q: [N, D], heads side by side, scaled.
        kv: [T, 2 D], [H, 2, K] in a row.
        bias: float32 [H, T], or None.
        event_offsets, target_offsets: int64 [R+1].
        num_heads: H.
        block_n: targets of a request taken at a time, a power of two from 16.
        splits: S.
        block_l, warps, stages: launch parameters.
    """
    num_targets, width = q.shape
    split_outputs, split_maxima, split_sums = split_buffers(
        (splits, num_targets, num_heads),
        width // num_heads,
        q.device,
    )
    out = torch.empty_like(q)
    lse = torch.empty_like(split_sums[0])
    # Without a bias the kernel reads none, but needs some tensor: `lse` stands in.
    _forward[(splits, num_heads, event_offsets.numel() - 1)](
        q,
        kv,
        lse if bias is None else bias,
        event_offsets,
        target_offsets,
        split_outputs,
        split_maxima,
        split_sums,
        num_targets,
        kv.shape[0],
        splits,
        H=num_heads,
        K=width // num_heads,
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=attention_precision(q),
        STAGES=stages,
        num_warps=warps,
    )
    merge_splits(
        split_outputs,
        split_maxima,
        split_sums,
        out,
        lse,
        heads=num_heads,
        head_width=width // num_heads,
    )
    return out, lse


def backward(
    q: Tensor,
    kv: Tensor,
    bias: Tensor | None,
    event_offsets: Tensor,
    target_offsets: Tensor,
    num_heads: int,
    block_n: int,
    splits: int,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    *,
    single_pass: bool,
    block_l: int = 64,
    warps: int = 4,
    stages: int = 3,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of (q, kv, bias).

    Args:
        q, kv, bias, event_offsets, target_offsets, num_heads, block_n, splits: as in `forward`.
        out, lse: results of `forward`.
        dout: [N, D], gradient of out.
        single_pass: whether no request has more than block_n targets.
        block_l, warps, stages: launch parameters.
    """
    num_targets, width = q.shape
    dq = torch.empty(
        (splits, num_targets, width),
        dtype=torch.float32,
        device=q.device,
    )
    dkv = torch.empty_like(kv)
    dbias = None if bias is None else torch.empty_like(bias)
    _backward[(splits, num_heads, event_offsets.numel() - 1)](
        q,
        kv,
        lse if bias is None else bias,
        event_offsets,
        target_offsets,
        out,
        lse,
        dout,
        dq,
        dkv,
        dq if dbias is None else dbias,
        num_targets,
        kv.shape[0],
        splits,
        H=num_heads,
        K=width // num_heads,
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        SINGLE_PASS=single_pass,
        PRECISION=attention_precision(q),
        STAGES=stages,
        num_warps=warps,
    )
    return dq.sum(0).to(q.dtype), dkv, dbias
