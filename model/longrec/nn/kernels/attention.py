# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of target-to-history attention over packed requests: few queries, very long histories,
forward and backward.

One program takes one head of one request and a part of its events (`splits` parts), so that a
single history of 100,000 events
still fills the device; the parts' softmax sums are joined afterwards. Keys and values are read once
each way; those of one head lie
side by side in an event's row, [H, 2, K].

Shape letters: R requests, T packed events, N packed targets, D width, H heads, K head width, B gap
buckets, S splits.
Logits are kept in units of log2 inside.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def part(
    offsets,
    request,
    split,
    splits,
    BLOCK_L: tl.constexpr,
):
    """Returns the first event of one part of a request, and the number of its events (int32, which
    loops are pipelined over).
    """
    start, end = tl.load(offsets + request), tl.load(offsets + request + 1)
    size = tl.cdiv(tl.cdiv(end - start, splits), BLOCK_L) * BLOCK_L
    first = tl.minimum(start + split * size, end)
    return first, tl.minimum(size, end - first).to(tl.int32)


@triton.jit(
    do_not_specialize=["event_offsets", "target_offsets", "num_targets", "num_events", "splits"]
)  # one for batches of any size
def _forward(
    q,
    kv,
    bias,
    event_offsets,
    target_offsets,
    part_o,
    part_m,
    part_l,
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
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    D: tl.constexpr = H * K
    first, length = part(event_offsets, request, split, splits, BLOCK_L)
    target, last = tl.load(target_offsets + request), tl.load(target_offsets + request + 1)
    columns = head * K + tl.arange(0, K)
    pair = head * (2 * K) + tl.arange(0, K)
    keys_at = kv + first * (2 * D)
    bias_at = bias + head * num_events + first
    for block in range(target, last, BLOCK_N):
        rows = block + tl.arange(0, BLOCK_N)
        queries = tl.load(
            q + rows[:, None] * D + columns[None, :], mask=(rows < last)[:, None], other=0.0
        )
        high = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        acc = tl.zeros((BLOCK_N, K), tl.float32)
        for at in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = at + tl.arange(0, BLOCK_L)
            inside = events < length
            spot = events[:, None] * (2 * D) + pair[None, :]
            keys = tl.load(keys_at + spot, mask=inside[:, None], other=0.0)
            values = tl.load(keys_at + K + spot, mask=inside[:, None], other=0.0)
            logits = tl.dot(queries, keys.T, input_precision=PRECISION)
            if BIAS:
                logits += tl.load(bias_at + events, mask=inside, other=0.0)[None, :]
            logits = tl.where(inside[None, :], logits * LOG2E, float("-inf"))
            higher = tl.maximum(high, tl.max(logits, 1))
            weights = tl.exp2(logits - higher[:, None])
            shrink = tl.exp2(high - higher)
            total = total * shrink + tl.sum(weights, 1)
            acc = tl.dot(
                weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION
            )
            high = higher
        place = split * num_targets + rows
        tl.store(part_o + place[:, None] * D + columns[None, :], acc, mask=(rows < last)[:, None])
        tl.store(part_m + place * H + head, high, mask=rows < last)
        tl.store(part_l + place * H + head, total, mask=rows < last)


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _join(
    part_o,
    part_m,
    part_l,
    out,
    lse,
    num_rows,
    splits,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Joins the parts' sums; a row without events gets 0."""
    rows, head = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    inside = rows < num_rows
    D: tl.constexpr = H * K
    columns = head * K + tl.arange(0, K)
    high = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    acc = tl.zeros((BLOCK_N, K), tl.float32)
    place = rows.to(tl.int64)
    for _ in tl.range(0, splits, num_stages=3):
        m = tl.load(part_m + place * H + head, mask=inside, other=float("-inf"))
        part_total = tl.load(part_l + place * H + head, mask=inside, other=0.0)
        part_acc = tl.load(
            part_o + place[:, None] * D + columns[None, :], mask=inside[:, None], other=0.0
        )
        higher = tl.maximum(high, m)
        shrink = tl.where(high == float("-inf"), 0.0, tl.exp2(high - higher))
        weight = tl.where(m == float("-inf"), 0.0, tl.exp2(m - higher))
        total = total * shrink + part_total * weight
        acc = acc * shrink[:, None] + part_acc * weight[:, None]
        high = higher
        place += num_rows
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    tl.store(out + rows[:, None] * D + columns[None, :], acc / total[:, None], mask=inside[:, None])
    tl.store(lse + rows * H + head, tl.where(empty, 0.0, high + tl.log2(total)), mask=inside)


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
    ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq of each part (to be added up over parts), dkv and dbias of all events. Logits are held as
    [events, targets].

    Without ONCE, targets beyond BLOCK_N of a request come in further passes that add to dkv: exact
    up to the rounding of its dtype.
    """
    split, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    D: tl.constexpr = H * K
    first, length = part(event_offsets, request, split, splits, BLOCK_L)
    target, last = tl.load(target_offsets + request), tl.load(target_offsets + request + 1)
    columns = head * K + tl.arange(0, K)
    pair = head * (2 * K) + tl.arange(0, K)
    keys_at, dkeys_at = kv + first * (2 * D), dkv + first * (2 * D)
    bias_at, dbias_at = bias + head * num_events + first, dbias + head * num_events + first
    for block in range(target, last, BLOCK_N):
        rows = block + tl.arange(0, BLOCK_N)
        place = rows[:, None] * D + columns[None, :]
        known = (rows < last)[:, None]
        queries = tl.load(q + place, mask=known, other=0.0)
        upstream = tl.load(dout + place, mask=known, other=0.0)
        delta = tl.sum(
            upstream.to(tl.float32) * tl.load(out + place, mask=known, other=0.0).to(tl.float32), 1
        )
        norm = tl.load(lse + rows * H + head, mask=rows < last, other=float("inf"))
        acc = tl.zeros((K, BLOCK_N), tl.float32)
        for at in tl.range(0, length, BLOCK_L, num_stages=STAGES):
            events = at + tl.arange(0, BLOCK_L)
            inside = events < length
            spot = events[:, None] * (2 * D) + pair[None, :]
            keys = tl.load(keys_at + spot, mask=inside[:, None], other=0.0)
            values = tl.load(keys_at + K + spot, mask=inside[:, None], other=0.0)
            logits = tl.dot(keys, queries.T, input_precision=PRECISION)
            if BIAS:
                logits += tl.load(bias_at + events, mask=inside, other=0.0)[:, None]
            weights = tl.where(inside[:, None], tl.exp2(logits * LOG2E - norm[None, :]), 0.0)
            dvalues = tl.dot(weights.to(queries.dtype), upstream, input_precision=PRECISION)
            dlogits = weights * (
                tl.dot(values, upstream.T, input_precision=PRECISION) - delta[None, :]
            )
            low = dlogits.to(queries.dtype)
            dkeys = tl.dot(low, queries, input_precision=PRECISION)
            acc = tl.dot(keys.T, low, acc, input_precision=PRECISION)
            if BIAS:
                per_event = tl.sum(dlogits, 1)
            if not ONCE:
                again = inside & (block > target)
                dkeys += tl.load(dkeys_at + spot, mask=again[:, None], other=0.0).to(tl.float32)
                dvalues += tl.load(dkeys_at + K + spot, mask=again[:, None], other=0.0).to(
                    tl.float32
                )
                if BIAS:
                    per_event += tl.load(dbias_at + events, mask=again, other=0.0)
            tl.store(dkeys_at + spot, dkeys, mask=inside[:, None])
            tl.store(dkeys_at + K + spot, dvalues, mask=inside[:, None])
            if BIAS:
                tl.store(dbias_at + events, per_event, mask=inside)
        tl.store(
            dq + (split * num_targets + rows)[:, None] * D + columns[None, :],
            tl.trans(acc),
            mask=known,
        )
        if not ONCE:
            tl.debug_barrier()  # the next pass reads dkv as other threads wrote it


@triton.jit
def _by_bucket(
    dbias,
    gaps,
    sums,
    num_events,
    num_buckets,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Sums of a block of events by bucket: [programs, BLOCK_B, HEADS]. Events come in the order of
    time: few buckets a block.
    """
    events, heads, buckets = (
        tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L),
        tl.arange(0, HEADS),
        tl.arange(0, BLOCK_B),
    )
    inside = events < num_events
    bucket = tl.load(gaps + events, mask=inside, other=0)
    value = tl.load(
        dbias + heads[:, None] * num_events + events[None, :],
        mask=inside[None, :] & (heads < H)[:, None],
        other=0.0,
    )
    lowest, highest = tl.min(tl.where(inside, bucket, num_buckets), 0), tl.max(bucket, 0)
    total = tl.zeros((BLOCK_B, HEADS), tl.float32)
    for b in range(lowest, highest + 1):
        per_head = tl.sum(tl.where((inside & (bucket == b))[None, :], value, 0.0), 1)
        total += tl.where((buckets == b)[:, None], per_head[None, :], 0.0)
    tl.store(
        sums + tl.program_id(0) * BLOCK_B * HEADS + buckets[:, None] * HEADS + heads[None, :], total
    )


def block_n(num_targets: list[int]) -> int:
    """Returns the targets of a request taken at a time: enough for the largest, as a power of two
    from 16 to 128.
    """
    return int(min(128, max(16, triton.next_power_of_2(max(num_targets)))))


def precision(tensor: Tensor) -> str:
    """Returns the precision of products: float32 as three products of its parts, which keeps all
    but the last bits.
    """
    return "tf32x3" if tensor.dtype == torch.float32 else "tf32"


def join(
    part_o: Tensor,
    part_m: Tensor,
    part_l: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    heads: int,
    head_width: int,
) -> None:
    """Writes the parts' sums joined: out [rows, heads * head_width] and lse [rows, heads]; rows
    without events get 0.

    Args:
        part_o: float32 [S, rows, heads * head_width]. part_m, part_l: float32 [S, rows, heads].
    """
    splits, num_rows = part_m.shape[:2]
    block = max(1, 256 // head_width)
    _join[(triton.cdiv(num_rows, block), heads)](
        part_o,
        part_m,
        part_l,
        out,
        lse,
        num_rows,
        splits,
        H=heads,
        K=head_width,
        BLOCK_N=block,
        num_warps=1,
    )


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
    """Returns (out [N, D], log2 of the softmax sums float32 [N, H]); out is 0 for an empty history.

    Args:
        q: [N, D], heads side by side, scaled. kv: [T, 2 D], [H, 2, K] in a row. bias: float32 [H,
            T], or None.
        block_n: targets of a request taken at a time, a power of two from 16.
    """
    (num_targets, width), num_events = q.shape, kv.shape[0]
    part_o = torch.empty((splits, num_targets, width), dtype=torch.float32, device=q.device)
    part_m, part_l = (
        torch.empty((splits, num_targets, num_heads), dtype=torch.float32, device=q.device)
        for _ in range(2)
    )
    out, lse = (
        torch.empty_like(q),
        torch.empty((num_targets, num_heads), dtype=torch.float32, device=q.device),
    )
    _forward[(splits, num_heads, event_offsets.numel() - 1)](
        q,
        kv,
        bias if bias is not None else lse,
        event_offsets,
        target_offsets,
        part_o,
        part_m,
        part_l,
        num_targets,
        num_events,
        splits,
        H=num_heads,
        K=width // num_heads,
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        PRECISION=precision(q),
        STAGES=stages,
        num_warps=warps,
    )
    join(part_o, part_m, part_l, out, lse, heads=num_heads, head_width=width // num_heads)
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
    once: bool,
    block_l: int = 64,
    warps: int = 4,
    stages: int = 3,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the gradients of (q, kv, bias); arguments as in `forward`, with its results.

    Args:
        once: whether no request has more than block_n targets.
    """
    (num_targets, width), num_events = q.shape, kv.shape[0]
    dq = torch.empty((splits, num_targets, width), dtype=torch.float32, device=q.device)
    dkv, dbias = torch.empty_like(kv), None if bias is None else torch.empty_like(bias)
    _backward[(splits, num_heads, event_offsets.numel() - 1)](
        q,
        kv,
        bias if bias is not None else lse,
        event_offsets,
        target_offsets,
        out,
        lse,
        dout,
        dq,
        dkv,
        dbias if dbias is not None else dq,
        num_targets,
        num_events,
        splits,
        H=num_heads,
        K=width // num_heads,
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        BIAS=bias is not None,
        ONCE=once,
        PRECISION=precision(q),
        STAGES=stages,
        num_warps=warps,
    )
    return dq.sum(0).to(q.dtype), dkv, dbias


def sum_by_bucket(
    dbias: Tensor,
    gaps: Tensor,
    num_buckets: int,
    *,
    block_l: int = 1024,
) -> Tensor:
    """Returns the sums of [H, T] over the events of each bucket, [B, H]. gaps: int32 [T]."""
    heads, num_events = dbias.shape
    block_b, block_h = triton.next_power_of_2(num_buckets), triton.next_power_of_2(heads)
    programs = triton.cdiv(num_events, block_l)
    sums = torch.empty((programs, block_b, block_h), dtype=torch.float32, device=dbias.device)
    _by_bucket[(programs,)](
        dbias,
        gaps,
        sums,
        num_events,
        num_buckets,
        H=heads,
        HEADS=block_h,
        BLOCK_L=block_l,
        BLOCK_B=block_b,
    )
    return sums.sum(0)[:num_buckets, :heads]
