# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of causal softmax attention over packed requests, forward and backward.

    out = softmax(Q K^T / sqrt(d_h)) V

An event sees the events up to itself, a target all events of its request and itself. PyTorch's
attention over sequences of different lengths has no such mask: its causal mask would let a target
see the targets before it. Nothing of size tokens x events is written.

Source: arXiv 2205.14135 and 2307.08691 (running maximum and sum, recomputed weights).

Shape letters: S packed events and targets, H heads, K head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longrec.nn.kernels.causal_tiles import (
    BLOCK_EVENTS,
    BLOCK_QUERIES,
    EVENT_KERNEL_QUERIES,
    CausalInputs,
    load_rows,
    request_bounds,
    row_dot,
    row_numbers,
    store_rows,
)


@triton.jit
def _forward(
    q,
    k,
    v,
    event_offsets,
    target_offsets,
    out,
    log_sums,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Write the output of BLOCK_M positions of one head, and the log of their sums."""
    first_event, origin, num_events, length = request_bounds(event_offsets, target_offsets)
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        positions = first + tl.arange(0, BLOCK_M)
        rows = row_numbers(positions, first_event, origin, num_events)
        is_real = positions < length
        queries = load_rows(q, rows, is_real, STRIDE, K)
        # A target starts from itself. An event starts from nothing, but sees the first event.
        is_event = positions < num_events
        is_target = is_real & (positions >= num_events)
        own_logits = row_dot(queries, load_rows(k, rows, is_target, STRIDE, K)) * scale
        maximum = tl.where(is_event, float("-inf"), own_logits)
        sums = tl.where(is_event, 0.0, 1.0)
        acc = load_rows(v, rows, is_target, STRIDE, K).to(tl.float32)
        for start in tl.range(0, tl.minimum(first + BLOCK_M, num_events), BLOCK_L):
            events = start + tl.arange(0, BLOCK_L)
            keys = load_rows(k, first_event + events, events < num_events, STRIDE, K)
            values = load_rows(v, first_event + events, events < num_events, STRIDE, K)
            logits = tl.dot(queries, keys.T) * scale
            is_visible = positions[:, None] >= events[None, :]
            is_visible = is_visible & (events < num_events)[None, :]
            logits = tl.where(is_visible, logits, float("-inf"))
            larger = tl.maximum(maximum, tl.max(logits, axis=1))
            weights = tl.exp(logits - larger[:, None])
            decay = tl.exp(maximum - larger)
            sums = sums * decay + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None])
            maximum = larger
        store_rows(out, rows, is_real, acc / sums[:, None], H * K, K)
        tl.store(log_sums + rows * H + tl.program_id(1), maximum + tl.log(sums), mask=is_real)


@triton.jit
def _backward_queries(
    q,
    k,
    v,
    event_offsets,
    target_offsets,
    dout,
    log_sums,
    deltas,
    out,
    dq,
    dk,
    dv,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Write dq of BLOCK_M positions of one head, and dk and dv of the targets among them.

    `deltas` gets out * dout of each position, which `_backward_events` reads.
    """
    first_event, origin, num_events, length = request_bounds(event_offsets, target_offsets)
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        positions = first + tl.arange(0, BLOCK_M)
        rows = row_numbers(positions, first_event, origin, num_events)
        is_real = positions < length
        queries = load_rows(q, rows, is_real, STRIDE, K)
        doutput = load_rows(dout, rows, is_real, H * K, K)
        delta = row_dot(doutput, load_rows(out, rows, is_real, H * K, K))
        tl.store(deltas + rows * H + tl.program_id(1), delta, mask=is_real)
        log_sum = tl.load(log_sums + rows * H + tl.program_id(1), mask=is_real, other=0.0)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        for start in tl.range(0, tl.minimum(first + BLOCK_M, num_events), BLOCK_L):
            events = start + tl.arange(0, BLOCK_L)
            keys = load_rows(k, first_event + events, events < num_events, STRIDE, K)
            values = load_rows(v, first_event + events, events < num_events, STRIDE, K)
            logits = tl.dot(queries, keys.T) * scale
            # Keys beyond the history are zeros, so their gradient adds nothing.
            is_visible = positions[:, None] >= events[None, :]
            weights = tl.where(is_visible, tl.exp(logits - log_sum[:, None]), 0.0)
            weights = tl.where((events < num_events)[None, :], weights, 0.0)
            dlogits = weights * (tl.dot(doutput, values.T) - delta[:, None])
            acc = tl.dot(dlogits.to(keys.dtype), keys, acc)
        if first + BLOCK_M > num_events:
            is_target = is_real & (positions >= num_events)
            own_keys = load_rows(k, rows, is_target, STRIDE, K)
            own_values = load_rows(v, rows, is_target, STRIDE, K)
            own_logits = row_dot(queries, own_keys) * scale
            own_weights = tl.where(is_target, tl.exp(own_logits - log_sum), 0.0)
            own_dlogits = own_weights * (row_dot(doutput, own_values) - delta)
            acc += own_dlogits[:, None] * own_keys.to(tl.float32)
            own_dkeys = (own_dlogits * scale)[:, None] * queries.to(tl.float32)
            own_dvalues = own_weights[:, None] * doutput.to(tl.float32)
            store_rows(dk, rows, is_target, own_dkeys, STRIDE, K)
            store_rows(dv, rows, is_target, own_dvalues, STRIDE, K)
        store_rows(dq, rows, is_real, acc * scale, STRIDE, K)


@triton.jit
def _backward_events(
    q,
    k,
    v,
    event_offsets,
    target_offsets,
    dout,
    log_sums,
    deltas,
    dk,
    dv,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Write dk and dv of BLOCK_L events of one head. Logits are held as [events, positions]."""
    first_event, origin, num_events, length = request_bounds(event_offsets, target_offsets)
    first = tl.program_id(0) * BLOCK_L
    if first < num_events:
        events = first + tl.arange(0, BLOCK_L)
        is_event = events < num_events
        keys = load_rows(k, first_event + events, is_event, STRIDE, K)
        values = load_rows(v, first_event + events, is_event, STRIDE, K)
        dkeys = tl.zeros((BLOCK_L, K), tl.float32)
        dvalues = tl.zeros((BLOCK_L, K), tl.float32)
        for start in tl.range(first // BLOCK_M * BLOCK_M, length, BLOCK_M):
            positions = start + tl.arange(0, BLOCK_M)
            rows = row_numbers(positions, first_event, origin, num_events)
            is_real = positions < length
            queries = load_rows(q, rows, is_real, STRIDE, K)
            doutput = load_rows(dout, rows, is_real, H * K, K)
            numbers = rows * H + tl.program_id(1)
            # The weights of rows beyond the request vanish.
            log_sum = tl.load(log_sums + numbers, mask=is_real, other=float("inf"))
            delta = tl.load(deltas + numbers, mask=is_real, other=0.0)
            logits = tl.dot(keys, queries.T) * scale
            is_visible = positions[None, :] >= events[:, None]
            weights = tl.where(is_visible, tl.exp(logits - log_sum[None, :]), 0.0)
            dvalues = tl.dot(weights.to(doutput.dtype), doutput, dvalues)
            dlogits = weights * (tl.dot(values, doutput.T) - delta[None, :])
            dkeys = tl.dot(dlogits.to(queries.dtype), queries, dkeys)
        store_rows(dk, first_event + events, is_event, dkeys * scale, STRIDE, K)
        store_rows(dv, first_event + events, is_event, dvalues, STRIDE, K)


def forward(inputs: CausalInputs) -> tuple[Tensor, Tensor]:
    """Return (output [S, H, K], log of the sums of exponentials, float32 [S, H])."""
    out = inputs.q.new_empty(inputs.q.shape)
    log_sums = inputs.q.new_empty(inputs.q.shape[:2], dtype=torch.float32)
    _forward[inputs.query_grid()](
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.segments.event_offsets,
        inputs.segments.target_offsets,
        out,
        log_sums,
        BLOCK_M=BLOCK_QUERIES,
        **_options(inputs),
    )
    return out, log_sums


def backward(
    inputs: CausalInputs,
    out: Tensor,
    log_sums: Tensor,
    dout: Tensor,
    gradients: CausalInputs,
) -> None:
    """Write the gradients of (q, k, v).

    Args:
        inputs: as in `forward`.
        out, log_sums: its results.
        dout: contiguous [S, H, K], gradient of `out`.
        gradients: tensors to write, with the strides of `inputs`.
    """
    arguments = (
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.segments.event_offsets,
        inputs.segments.target_offsets,
        dout,
        log_sums,
        torch.empty_like(log_sums),
    )
    _backward_queries[inputs.query_grid()](
        *arguments,
        out,
        gradients.q,
        gradients.k,
        gradients.v,
        BLOCK_M=BLOCK_QUERIES,
        **_options(inputs),
    )
    _backward_events[inputs.event_grid()](
        *arguments,
        gradients.k,
        gradients.v,
        BLOCK_M=EVENT_KERNEL_QUERIES,
        **_options(inputs),
    )


def _options(inputs: CausalInputs) -> dict[str, object]:
    """Return the arguments that all kernels share."""
    return {
        "scale": inputs.q.shape[2] ** -0.5,
        **inputs.sizes(),
        "BLOCK_L": BLOCK_EVENTS,
        "num_warps": 4,
    }
