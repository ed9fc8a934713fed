"""HSTU: gated pointwise attention over the history with the targets as its last tokens.

Per layer:  U, V, Q, K = split(SiLU(LN(h) W_1));  A = SiLU(Q K^T / sqrt(d_h)) / n;
h <- h + (LN(A V) * U) W_2;  at the end z = LN(h_t).

n is the number of tokens that a target sees, its history and itself. An event attends to the
events up to itself, a target to all events of its request and to itself, never to another target.
The relative attention bias of the paper is left out: the event tokens carry the time.

Forward FLOPs of a request with L events, per layer: 10 L d^2 + 2 L^2 d, half of the full attention
matrix.

On a GPU, one kernel call serves the requests of all lengths, without padding.

Source: arXiv 2402.17152, equations 1 to 3.

Shape letters: S packed events and targets, G requests of a group, L events and M targets of its
longest request (not layers), D width, H heads, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import (
    CausalSequenceModel,
    attend_in_groups,
    has_kernels,
)
from longrec.nn.fused.paths import apply_function
from longrec.nn.layers import linear
from longrec.nn.padding import PaddedRows
from longrec.nn.target_attention import Segments

if TYPE_CHECKING:
    from longrec.nn.kernels.causal_tiles import CausalInputs


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

    def forward(self, tokens: Float[Tensor, "S D"], segments: Segments) -> Float[Tensor, "S D"]:
        """Return the events and targets after this layer."""
        uvqk = self._project(tokens)
        return self._update(tokens, uvqk, attention(uvqk, segments))

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


def attention(uvqk: Float[Tensor, "S 4 H K"], segments: Segments) -> Float[Tensor, "S H K"]:
    """Return A V of every event over those up to itself, of every target over all and itself."""
    if has_kernels(uvqk):
        attended: Tensor = apply_function(PointwiseAttention, uvqk.contiguous(), segments)
        return attended
    summed = attend_in_groups(uvqk, causal_attention, candidate_attention, segments)
    return summed / _num_seen(segments, uvqk)


def causal_attention(
    uvqk: Float[Tensor, "G L 4 H K"],
) -> Float[Tensor, "G L H K"]:
    """Return n A V of every event of padded histories."""
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
    """Return n A V of each candidate over its history and itself."""
    _, values, _, keys = histories.unbind(2)
    _, own_values, queries, own_keys = candidates.unbind(2)
    scale = queries.shape[-1] ** -0.5
    logits = torch.einsum("gmhk,glhk->gmhl", queries, keys)
    own_logits = (queries * own_keys).sum(-1, keepdim=True)
    weights = functional.silu(logits * scale) * rows.is_real[:, None, None]
    own_weights = functional.silu(own_logits * scale)
    from_history = torch.einsum("gmhl,glhk->gmhk", weights, values)
    return from_history + own_weights * own_values


def _num_seen(segments: Segments, like: Tensor) -> Float[Tensor, "S 1 1"]:
    """Return n of the request of each token: its history and a target itself."""
    num_events = segments.event_offsets.diff()
    counts = torch.cat([num_events, segments.target_offsets.diff()])
    n = (num_events + 1).repeat(2).repeat_interleave(counts, output_size=like.shape[0])
    return n.to(like.dtype)[:, None, None]


class PointwiseAttention(torch.autograd.Function):
    """A V by the kernels of longrec.nn.kernels.hstu."""

    @staticmethod
    def forward(
        ctx: Any,
        uvqk: Tensor,
        segments: Segments,
    ) -> Tensor:
        from longrec.nn.kernels import hstu as kernels

        ctx.save_for_backward(uvqk)
        ctx.segments = segments
        return kernels.forward(_kernel_inputs(uvqk, segments))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import hstu as kernels

        (uvqk,) = ctx.saved_tensors
        duvqk = torch.empty_like(uvqk)
        duvqk[:, 0] = 0  # the gate is no part of the attention
        kernels.backward(
            _kernel_inputs(uvqk, ctx.segments),
            gradients[0].contiguous(),
            _kernel_inputs(duvqk, ctx.segments),
        )
        return duvqk, None


def _kernel_inputs(uvqk: Tensor, segments: Segments) -> CausalInputs:
    from longrec.nn.kernels.causal_tiles import CausalInputs

    _, values, queries, keys = uvqk.unbind(1)
    return CausalInputs(queries, keys, values, segments)
