# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of HSTU's causal pointwise attention over packed histories, forward and backward.

    out = SiLU(Q K^T / sqrt(d_h)) V / n, with n one more than the events of the history

Nothing of size events x events is written.
Shape letters: R requests, T packed events, H heads, K head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.tiles import INTERPRETED, sigmoid

BLOCK_QUERIES = 128
BLOCK_EVENTS = 64
EVENT_KERNEL_QUERIES = 64
"""Queries of a tile in the kernel of dk and dv: fewer, since it holds two accumulators."""


@triton.jit
def _bounds(
    offsets,
    BLOCK: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
):
    """Return (first row of the block, events of the request, offset of its head in [T, H, K]).

    The first row is counted from the first event of the request.
    """
    request = tl.program_id(2)
    start = tl.load(offsets + request)
    end = tl.load(offsets + request + 1)
    first = tl.program_id(0) * BLOCK
    length = (end - start).to(tl.int32)
    base = start * (H * K) + tl.program_id(1) * K
    return first, length, base


@triton.jit
def _load_rows(
    pointer,
    rows,
    length,
    H: tl.constexpr,
    K: tl.constexpr,
):
    """Return rows [BLOCK, K] of one head; zeros beyond the history."""
    offsets = rows[:, None] * (H * K) + tl.arange(0, K)[None, :]
    return tl.load(pointer + offsets, mask=(rows < length)[:, None], other=0.0)


@triton.jit
def _store_rows(
    pointer,
    rows,
    length,
    values,
    H: tl.constexpr,
    K: tl.constexpr,
):
    """Write rows [BLOCK, K] of one head, as far as the history goes."""
    offsets = rows[:, None] * (H * K) + tl.arange(0, K)[None, :]
    tl.store(pointer + offsets, values, mask=(rows < length)[:, None])


@triton.jit
def _silu_derivative(logits, FAST: tl.constexpr):
    """Return the derivative of SiLU."""
    s = sigmoid(logits, FAST)
    return s * (1.0 + logits * (1.0 - s))


@triton.jit
def _forward(
    q,
    k,
    v,
    offsets,
    out,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write the output of BLOCK_M queries of one head."""
    first, length, base = _bounds(offsets, BLOCK_M, H, K)
    if first < length:
        rows = first + tl.arange(0, BLOCK_M)
        queries = _load_rows(q + base, rows, length, H, K)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        last = tl.minimum(first + BLOCK_M, length)
        for start in tl.range(0, last, BLOCK_L, num_stages=3):
            events = start + tl.arange(0, BLOCK_L)
            keys = _load_rows(k + base, events, length, H, K)
            values = _load_rows(v + base, events, length, H, K)
            logits = tl.dot(queries, keys.T) * scale
            is_visible = rows[:, None] >= events[None, :]
            weights = tl.where(is_visible, logits * sigmoid(logits, FAST), 0.0)
            acc = tl.dot(weights.to(values.dtype), values, acc)
        _store_rows(out + base, rows, length, acc / (length + 1), H, K)


@triton.jit
def _backward_queries(
    q,
    k,
    v,
    offsets,
    dout,
    dq,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write dq of BLOCK_M queries of one head."""
    first, length, base = _bounds(offsets, BLOCK_M, H, K)
    if first < length:
        rows = first + tl.arange(0, BLOCK_M)
        queries = _load_rows(q + base, rows, length, H, K)
        doutput = _load_rows(dout + base, rows, length, H, K)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        last = tl.minimum(first + BLOCK_M, length)
        for start in tl.range(0, last, BLOCK_L, num_stages=3):
            events = start + tl.arange(0, BLOCK_L)
            keys = _load_rows(k + base, events, length, H, K)
            values = _load_rows(v + base, events, length, H, K)
            logits = tl.dot(queries, keys.T) * scale
            dweights = tl.dot(doutput, values.T)
            is_visible = rows[:, None] >= events[None, :]
            dlogits = tl.where(is_visible, dweights * _silu_derivative(logits, FAST), 0.0)
            acc = tl.dot(dlogits.to(keys.dtype), keys, acc)
        _store_rows(dq + base, rows, length, acc * scale / (length + 1), H, K)


@triton.jit
def _backward_events(
    q,
    k,
    v,
    offsets,
    dout,
    dk,
    dv,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write dk and dv of BLOCK_L events of one head. Logits are held as [events, queries]."""
    first, length, base = _bounds(offsets, BLOCK_L, H, K)
    if first < length:
        events = first + tl.arange(0, BLOCK_L)
        keys = _load_rows(k + base, events, length, H, K)
        values = _load_rows(v + base, events, length, H, K)
        dkeys = tl.zeros((BLOCK_L, K), tl.float32)
        dvalues = tl.zeros((BLOCK_L, K), tl.float32)
        first_query = first // BLOCK_M * BLOCK_M
        for start in tl.range(first_query, length, BLOCK_M, num_stages=3):
            rows = start + tl.arange(0, BLOCK_M)
            queries = _load_rows(q + base, rows, length, H, K)
            doutput = _load_rows(dout + base, rows, length, H, K)
            logits = tl.dot(keys, queries.T) * scale
            is_visible = rows[None, :] >= events[:, None]
            weights = tl.where(is_visible, logits * sigmoid(logits, FAST), 0.0)
            dvalues = tl.dot(weights.to(doutput.dtype), doutput, dvalues)
            dweights = tl.dot(values, doutput.T)
            dlogits = tl.where(is_visible, dweights * _silu_derivative(logits, FAST), 0.0)
            dkeys = tl.dot(dlogits.to(queries.dtype), queries, dkeys)
        _store_rows(dk + base, events, length, dkeys * scale / (length + 1), H, K)
        _store_rows(dv + base, events, length, dvalues / (length + 1), H, K)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_events: int,
) -> Tensor:
    """Return A V, [T, H, K].

    Args:
        q, k, v: contiguous [T, H, K].
        offsets: int64 [R+1], of the events.
        max_events: events of the longest history.
    """
    out = torch.empty_like(q)
    heads, width = q.shape[1:]
    grid = (triton.cdiv(max_events, BLOCK_QUERIES), heads, offsets.numel() - 1)
    _forward[grid](
        q,
        k,
        v,
        offsets,
        out,
        width**-0.5,
        H=heads,
        K=width,
        BLOCK_M=BLOCK_QUERIES,
        BLOCK_L=BLOCK_EVENTS,
        FAST=not INTERPRETED,
        num_warps=4,
    )
    return out


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_events: int,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (q, k, v).

    Args:
        q, k, v, offsets, max_events: as in `forward`.
        dout: [T, H, K], gradient of its result.
    """
    dq = torch.empty_like(q)
    dk = torch.empty_like(k)
    dv = torch.empty_like(v)
    heads, width = q.shape[1:]
    num_requests = offsets.numel() - 1
    options = {
        "scale": width**-0.5,
        "H": heads,
        "K": width,
        "BLOCK_L": BLOCK_EVENTS,
        "FAST": not INTERPRETED,
        "num_warps": 4,
    }
    _backward_queries[(triton.cdiv(max_events, BLOCK_QUERIES), heads, num_requests)](
        q,
        k,
        v,
        offsets,
        dout,
        dq,
        BLOCK_M=BLOCK_QUERIES,
        **options,
    )
    _backward_events[(triton.cdiv(max_events, BLOCK_EVENTS), heads, num_requests)](
        q,
        k,
        v,
        offsets,
        dout,
        dk,
        dv,
        BLOCK_M=EVENT_KERNEL_QUERIES,
        **options,
    )
    return dq, dk, dv
