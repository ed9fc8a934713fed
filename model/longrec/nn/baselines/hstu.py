"""HSTU: gated pointwise attention over the history with the targets as its last tokens.

Per layer:  U, V, Q, K = split(SiLU(LN(h) W_1));  A = SiLU(Q K^T / sqrt(d_h)) / n;
h <- h + (LN(A V) * U) W_2;  at the end z = LN(h_t).

n is the number of tokens that a target sees, its history and itself. An event attends to the
events up to itself, a target to all events of its request and to itself, never to another target.
The relative attention bias of the paper is left out: the event tokens carry the time.

Forward FLOPs of a request with L events, per layer: 10 L d^2 + 2 L^2 d, half of the full attention
matrix.

Source: arXiv 2402.17152, equations 1 to 3.

Shape letters: T packed events, N packed targets, G requests of a group, L events and M targets of
its longest request (not layers), D width, H heads, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import (
    CausalSequenceModel,
    attend_to_histories,
    attend_to_own_events,
)
from longrec.nn.fused.paths import apply_function, available
from longrec.nn.layers import linear
from longrec.nn.padding import PaddedRows
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
        attended_targets = attend_to_histories(
            event_uvqk,
            target_uvqk,
            candidate_attention,
            segments,
        )
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
    attended = attend_to_own_events(uvqk, causal_attention_reference, segments)
    return attended / _num_seen(segments, uvqk)


def causal_attention_reference(
    uvqk: Float[Tensor, "G L 4 H K"],
) -> Float[Tensor, "G L H K"]:
    """Return n A V of every event of padded histories: the reference of the kernels."""
    _, values, queries, keys = uvqk.unbind(2)
    scale = queries.shape[-1] ** -0.5
    logits = torch.einsum("gqhk,glhk->ghql", queries, keys)
    weights = functional.silu(logits * scale).tril()
    return torch.einsum("ghql,glhk->gqhk", weights, values)


def candidate_attention(
    histories: Float[Tensor, "G L 4 H K"],
    candidates: Float[Tensor, "G M 4 H K"],
    rows: PaddedRows,
) -> Float[Tensor, "G M H K"]:
    """Return A V of each candidate over its history and itself."""
    _, values, _, keys = histories.unbind(2)
    _, own_values, queries, own_keys = candidates.unbind(2)
    scale = queries.shape[-1] ** -0.5
    logits = torch.einsum("gmhk,glhk->gmhl", queries, keys)
    own_logits = (queries * own_keys).sum(-1, keepdim=True)
    weights = functional.silu(logits * scale) * rows.is_real[:, None, None]
    own_weights = functional.silu(own_logits * scale)
    from_history = torch.einsum("gmhl,glhk->gmhk", weights, values)
    n = rows.is_real.sum(1) + 1  # the history and the target itself
    attended: Tensor = (from_history + own_weights * own_values) / n[:, None, None, None]
    return attended


def _num_seen(segments: Segments, like: Tensor) -> Float[Tensor, "T 1 1"]:
    """Return n of the request of each event."""
    counts = segments.event_offsets.diff()
    n = (counts + 1).repeat_interleave(counts, output_size=like.shape[0])
    return n.to(like.dtype)[:, None, None]


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
