# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of HSTU's causal pointwise attention over packed histories: SiLU(Q K^T / sqrt(d_h)) V /
n, forward and backward.

Nothing of size events x events is written. Shape letters: T packed events, H heads, K head width, R
requests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.gated import INTERPRETED, sigmoid

BLOCK = 128


@triton.jit
def _rows(
    offsets,
    BLOCK_M: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
):
    """Returns (first row of the block, events of the request, offset of its first event and head in
    [T, H, K]).
    """
    request = tl.program_id(2)
    start, end = tl.load(offsets + request), tl.load(offsets + request + 1)
    return (
        tl.program_id(0) * BLOCK_M,
        (end - start).to(tl.int32),
        start * (H * K) + tl.program_id(1) * K,
    )


@triton.jit
def _block(
    pointer,
    rows,
    length,
    H: tl.constexpr,
    K: tl.constexpr,
):
    return tl.load(
        pointer + rows[:, None] * (H * K) + tl.arange(0, K)[None, :],
        mask=(rows < length)[:, None],
        other=0.0,
    )


@triton.jit
def _put(
    pointer,
    rows,
    length,
    values,
    H: tl.constexpr,
    K: tl.constexpr,
):
    tl.store(
        pointer + rows[:, None] * (H * K) + tl.arange(0, K)[None, :],
        values,
        mask=(rows < length)[:, None],
    )


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
    first, length, base = _rows(offsets, BLOCK_M, H, K)
    if first < length:
        rows = first + tl.arange(0, BLOCK_M)
        queries = _block(q + base, rows, length, H, K)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        for at in tl.range(0, tl.minimum(first + BLOCK_M, length), BLOCK_L, num_stages=3):
            events = at + tl.arange(0, BLOCK_L)
            keys, values = (
                _block(k + base, events, length, H, K),
                _block(v + base, events, length, H, K),
            )
            logits = tl.dot(queries, keys.T) * scale
            weights = tl.where(
                rows[:, None] >= events[None, :], logits * sigmoid(logits, FAST), 0.0
            )
            acc = tl.dot(weights.to(values.dtype), values, acc)
        _put(out + base, rows, length, acc / (length + 1), H, K)


@triton.jit
def _slope(logits, FAST: tl.constexpr):
    """Derivative of SiLU."""
    s = sigmoid(logits, FAST)
    return s * (1.0 + logits * (1.0 - s))


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
    first, length, base = _rows(offsets, BLOCK_M, H, K)
    if first < length:
        rows = first + tl.arange(0, BLOCK_M)
        queries, upstream = (
            _block(q + base, rows, length, H, K),
            _block(dout + base, rows, length, H, K),
        )
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        for at in tl.range(0, tl.minimum(first + BLOCK_M, length), BLOCK_L, num_stages=3):
            events = at + tl.arange(0, BLOCK_L)
            keys, values = (
                _block(k + base, events, length, H, K),
                _block(v + base, events, length, H, K),
            )
            logits = tl.dot(queries, keys.T) * scale
            dlogits = tl.where(
                rows[:, None] >= events[None, :],
                tl.dot(upstream, values.T) * _slope(logits, FAST),
                0.0,
            )
            acc = tl.dot(dlogits.to(keys.dtype), keys, acc)
        _put(dq + base, rows, length, acc * scale / (length + 1), H, K)


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
    first, length, base = _rows(offsets, BLOCK_L, H, K)
    if first < length:
        events = first + tl.arange(0, BLOCK_L)
        keys, values = (
            _block(k + base, events, length, H, K),
            _block(v + base, events, length, H, K),
        )
        dkeys, dvalues = tl.zeros((BLOCK_L, K), tl.float32), tl.zeros((BLOCK_L, K), tl.float32)
        for at in tl.range(first // BLOCK_M * BLOCK_M, length, BLOCK_M, num_stages=3):
            rows = at + tl.arange(0, BLOCK_M)
            queries, upstream = (
                _block(q + base, rows, length, H, K),
                _block(dout + base, rows, length, H, K),
            )
            logits = tl.dot(keys, queries.T) * scale
            later = rows[None, :] >= events[:, None]
            dvalues = tl.dot(
                tl.where(later, logits * sigmoid(logits, FAST), 0.0).to(upstream.dtype),
                upstream,
                dvalues,
            )
            dlogits = tl.where(later, tl.dot(values, upstream.T) * _slope(logits, FAST), 0.0)
            dkeys = tl.dot(dlogits.to(queries.dtype), queries, dkeys)
        _put(dk + base, events, length, dkeys * scale / (length + 1), H, K)
        _put(dv + base, events, length, dvalues / (length + 1), H, K)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    longest: int,
) -> Tensor:
    """Returns A V, [T, H, K]. q, k, v: contiguous [T, H, K]. offsets: int64 [R+1]. longest: events
    of the longest history.
    """
    out = torch.empty_like(q)
    heads, width = q.shape[1:]
    _forward[(triton.cdiv(longest, BLOCK), heads, offsets.numel() - 1)](
        q,
        k,
        v,
        offsets,
        out,
        width**-0.5,
        H=heads,
        K=width,
        BLOCK_M=BLOCK,
        BLOCK_L=64,
        FAST=not INTERPRETED,
        num_warps=4,
    )
    return out


def backward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of (q, k, v)."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    heads, width = q.shape[1:]
    grid = (triton.cdiv(longest, BLOCK), heads, offsets.numel() - 1)
    fixed = {"scale": width**-0.5, "H": heads, "K": width, "FAST": not INTERPRETED, "num_warps": 4}
    _backward_queries[grid](
        q,
        k,
        v,
        offsets,
        dout,
        dq,
        **fixed,
        BLOCK_M=BLOCK,
        BLOCK_L=64,
    )
    grid = (triton.cdiv(longest, 64), heads, offsets.numel() - 1)
    _backward_events[grid](
        q,
        k,
        v,
        offsets,
        dout,
        dk,
        dv,
        **fixed,
        BLOCK_M=64,
        BLOCK_L=64,
    )
    return dq, dk, dv
