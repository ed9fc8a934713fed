# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Kernels of HSTU's causal pointwise attention over packed requests, forward and backward.

    out = SiLU(Q K^T / sqrt(d_h)) V / n, with n one more than the events of the history

An event sees the events up to itself, a target all events of its request and itself. Nothing of
size tokens x events is written.

Shape letters: S packed events and targets, H heads, K head width.
"""

from __future__ import annotations

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
from longrec.nn.kernels.tiles import INTERPRETED, sigmoid


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
    event_offsets,
    target_offsets,
    out,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write the output of BLOCK_M positions of one head."""
    first_event, origin, num_events, length = request_bounds(event_offsets, target_offsets)
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        positions = first + tl.arange(0, BLOCK_M)
        rows = row_numbers(positions, first_event, origin, num_events)
        is_real = positions < length
        queries = load_rows(q, rows, is_real, STRIDE, K)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        for start in tl.range(0, tl.minimum(first + BLOCK_M, num_events), BLOCK_L):
            events = start + tl.arange(0, BLOCK_L)
            keys = load_rows(k, first_event + events, events < num_events, STRIDE, K)
            values = load_rows(v, first_event + events, events < num_events, STRIDE, K)
            logits = tl.dot(queries, keys.T) * scale
            is_visible = positions[:, None] >= events[None, :]
            weights = tl.where(is_visible, logits * sigmoid(logits, FAST), 0.0)
            acc = tl.dot(weights.to(values.dtype), values, acc)
        if first + BLOCK_M > num_events:
            is_target = is_real & (positions >= num_events)
            own_keys = load_rows(k, rows, is_target, STRIDE, K)
            own_values = load_rows(v, rows, is_target, STRIDE, K)
            own_logits = row_dot(queries, own_keys) * scale
            own_weights = own_logits * sigmoid(own_logits, FAST)
            acc += own_weights[:, None] * own_values.to(tl.float32)
        store_rows(out, rows, is_real, acc / (num_events + 1), H * K, K)


@triton.jit
def _backward_queries(
    q,
    k,
    v,
    event_offsets,
    target_offsets,
    dout,
    dq,
    dk,
    dv,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
):
    """Write dq of BLOCK_M positions of one head, and dk and dv of the targets among them."""
    first_event, origin, num_events, length = request_bounds(event_offsets, target_offsets)
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        positions = first + tl.arange(0, BLOCK_M)
        rows = row_numbers(positions, first_event, origin, num_events)
        is_real = positions < length
        queries = load_rows(q, rows, is_real, STRIDE, K)
        doutput = load_rows(dout, rows, is_real, H * K, K)
        acc = tl.zeros((BLOCK_M, K), tl.float32)
        for start in tl.range(0, tl.minimum(first + BLOCK_M, num_events), BLOCK_L):
            events = start + tl.arange(0, BLOCK_L)
            keys = load_rows(k, first_event + events, events < num_events, STRIDE, K)
            values = load_rows(v, first_event + events, events < num_events, STRIDE, K)
            logits = tl.dot(queries, keys.T) * scale
            dweights = tl.dot(doutput, values.T)
            is_visible = positions[:, None] >= events[None, :]
            dlogits = tl.where(is_visible, dweights * _silu_derivative(logits, FAST), 0.0)
            acc = tl.dot(dlogits.to(keys.dtype), keys, acc)
        factor = scale / (num_events + 1)
        if first + BLOCK_M > num_events:
            is_target = is_real & (positions >= num_events)
            own_keys = load_rows(k, rows, is_target, STRIDE, K)
            own_values = load_rows(v, rows, is_target, STRIDE, K)
            own_logits = row_dot(queries, own_keys) * scale
            own_weights = own_logits * sigmoid(own_logits, FAST) / (num_events + 1)
            derivative = _silu_derivative(own_logits, FAST)
            own_dlogits = row_dot(doutput, own_values) * derivative
            acc += own_dlogits[:, None] * own_keys.to(tl.float32)
            own_dkeys = (own_dlogits * factor)[:, None] * queries.to(tl.float32)
            own_dvalues = own_weights[:, None] * doutput.to(tl.float32)
            store_rows(dk, rows, is_target, own_dkeys, STRIDE, K)
            store_rows(dv, rows, is_target, own_dvalues, STRIDE, K)
        store_rows(dq, rows, is_real, acc * factor, STRIDE, K)


@triton.jit
def _backward_events(
    q,
    k,
    v,
    event_offsets,
    target_offsets,
    dout,
    dk,
    dv,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FAST: tl.constexpr,
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
            queries = load_rows(q, rows, positions < length, STRIDE, K)
            doutput = load_rows(dout, rows, positions < length, H * K, K)
            logits = tl.dot(keys, queries.T) * scale
            is_visible = positions[None, :] >= events[:, None]
            weights = tl.where(is_visible, logits * sigmoid(logits, FAST), 0.0)
            dvalues = tl.dot(weights.to(doutput.dtype), doutput, dvalues)
            dweights = tl.dot(values, doutput.T)
            dlogits = tl.where(is_visible, dweights * _silu_derivative(logits, FAST), 0.0)
            dkeys = tl.dot(dlogits.to(queries.dtype), queries, dkeys)
        n = num_events + 1
        store_rows(dk, first_event + events, is_event, dkeys * scale / n, STRIDE, K)
        store_rows(dv, first_event + events, is_event, dvalues / n, STRIDE, K)


def forward(inputs: CausalInputs) -> Tensor:
    """Return A V, [S, H, K]."""
    out = inputs.q.new_empty(inputs.q.shape)
    _forward[inputs.query_grid()](
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.segments.event_offsets,
        inputs.segments.target_offsets,
        out,
        BLOCK_M=BLOCK_QUERIES,
        **_options(inputs),
    )
    return out


def backward(
    inputs: CausalInputs,
    dout: Tensor,
    gradients: CausalInputs,
) -> None:
    """Write the gradients of (q, k, v).

    Args:
        inputs: as in `forward`.
        dout: contiguous [S, H, K], gradient of its result.
        gradients: tensors to write, with the strides of `inputs`.
    """
    arguments = (
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.segments.event_offsets,
        inputs.segments.target_offsets,
        dout,
    )
    _backward_queries[inputs.query_grid()](
        *arguments,
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
        "FAST": not INTERPRETED,
        "num_warps": 4,
    }
