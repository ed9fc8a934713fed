"""HSTU: gated pointwise attention over the history with the targets as its last tokens.

Per layer:  U, V, Q, K = split(SiLU(LN(h) W_1));  A = SiLU(Q K^T / sqrt(d_h)) / n;
h <- h + (LN(A V) * U) W_2;  at the end z = LN(h_t).

n is the number of tokens that a target sees, its history and itself. An event attends to the
events up to itself, a target to all events of its request and to itself, never to another target.
The relative attention bias of the paper is left out: the event tokens carry the time.

Forward FLOPs of a request with L events, per layer: 10 L d^2 + 2 L^2 d, half of the full attention
matrix.

Source: arXiv 2402.17152, equations 1 to 3.

Shape letters: T packed events, N packed targets, L events and M targets of one request (not
layers), D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import CausalSequenceModel
from longrec.nn.fused.paths import apply_function, available
from longrec.nn.layers import linear
from longrec.nn.target_attention import Segments

KERNEL_HEAD_WIDTHS = (16, 32, 64, 128)
"""Head widths that the kernels take."""


def hstu(config: ModelConfig) -> CausalSequenceModel:
    """Return an HSTU with as many layers and heads as STCA."""
    return CausalSequenceModel(config, HSTULayer)


class HSTULayer(nn.Module):
    """One layer for the events and targets of all requests."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attended_norm = nn.LayerNorm(width)
        self.uvqk = linear(width, 4 * width)
        self.out = linear(width, width)
        self.num_heads = config.num_heads

    def forward(
        self,
        events: Float[Tensor, "T D"],
        targets: Float[Tensor, "N D"],
        segments: Segments,
    ) -> tuple[Tensor, Tensor]:
        """Return the events and targets after this layer."""
        event_uvqk = self._project(events)
        target_uvqk = self._project(targets)
        requests = zip(
            event_uvqk.split(segments.num_events),
            target_uvqk.split(segments.num_targets),
            strict=True,
        )
        attended_targets = torch.cat([candidate_attention(*request) for request in requests])
        attended_events = causal_attention(event_uvqk, segments)
        return (
            self._update(events, event_uvqk, attended_events),
            self._update(targets, target_uvqk, attended_targets),
        )

    def _project(self, rows: Tensor) -> Tensor:
        """Return the rows' uvqk: U, V, Q and K in this order, by head, [*, 4, H, K]."""
        projected = functional.silu(self.uvqk(self.norm(rows)))
        by_head: Tensor = projected.unflatten(1, (4, self.num_heads, -1))
        return by_head

    def _update(
        self,
        rows: Tensor,
        uvqk: Tensor,
        attended: Tensor,
    ) -> Tensor:
        """Return the rows after the residual of the gated attention."""
        gate = uvqk[:, 0].flatten(1)
        gated = self.attended_norm(attended.flatten(1)) * gate
        updated: Tensor = rows + self.out(gated.to(uvqk.dtype))
        return updated


def causal_attention(uvqk: Float[Tensor, "T 4 H K"], segments: Segments) -> Float[Tensor, "T H K"]:
    """Return A V of every event over those of its request up to itself."""
    _, values, queries, keys = uvqk.unbind(1)
    is_supported = uvqk.element_size() == 2 and uvqk.shape[3] in KERNEL_HEAD_WIDTHS
    if uvqk.is_cuda and is_supported and available():
        output: Tensor = apply_function(
            _CausalAttention,
            queries.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            segments,
        )
        return output
    return causal_attention_reference(queries, keys, values, segments.num_events)


def causal_attention_reference(
    queries: Float[Tensor, "T H K"],
    keys: Float[Tensor, "T H K"],
    values: Float[Tensor, "T H K"],
    num_events: Sequence[int],
) -> Float[Tensor, "T H K"]:
    """Return A V of every event, one history after another: the reference of the kernels."""
    histories = zip(
        queries.split(num_events),
        keys.split(num_events),
        values.split(num_events),
        strict=True,
    )
    return torch.cat([_attend_one_history(*history) for history in histories])


def candidate_attention(
    history: Float[Tensor, "L 4 H K"], candidates: Float[Tensor, "M 4 H K"]
) -> Float[Tensor, "M H K"]:
    """Return A V of each candidate over the history and itself."""
    _, values, _, keys = history.unbind(1)
    _, own_values, queries, own_keys = candidates.unbind(1)
    scale = queries.shape[-1] ** -0.5
    n = history.shape[0] + 1  # the history and the target itself
    logits = torch.einsum("mhk,lhk->mhl", queries, keys)
    own_logits = (queries * own_keys).sum(-1, keepdim=True)
    weights = functional.silu(logits * scale)
    own_weights = functional.silu(own_logits * scale)
    from_history = torch.einsum("mhl,lhk->mhk", weights, values)
    return (from_history + own_weights * own_values) / n


def _attend_one_history(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    length = queries.shape[0]
    scale = queries.shape[-1] ** -0.5
    logits = torch.einsum("qhk,lhk->hql", queries, keys)
    weights = functional.silu(logits * scale).tril()
    return torch.einsum("hql,lhk->qhk", weights, values) / (length + 1)


class _CausalAttention(torch.autograd.Function):
    """A V by the kernels of longrec.nn.kernels.hstu."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        segments: Segments,
    ) -> Tensor:
        from longrec.nn.kernels import hstu as kernels

        ctx.max_events = max(segments.num_events)
        ctx.save_for_backward(queries, keys, values, segments.event_offsets)
        return kernels.forward(
            queries,
            keys,
            values,
            segments.event_offsets,
            ctx.max_events,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import hstu as kernels

        queries, keys, values, offsets = ctx.saved_tensors
        input_gradients = kernels.backward(
            queries,
            keys,
            values,
            offsets,
            ctx.max_events,
            gradients[0].contiguous(),
        )
        return *input_gradients, None
