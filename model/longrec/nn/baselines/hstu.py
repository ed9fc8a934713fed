"""HSTU: gated pointwise attention over the history, with targets as its last tokens; quadratic in
the history.

Per layer:  U, V, Q, K = split(SiLU(LN(h) W_1));  A = SiLU(Q K^T / sqrt(d_h)) / n;  h <- h + (LN(A
V) * U) W_2;  at the end z = LN(h_t).
n is the number of tokens that a target sees (its history and itself). An event attends to the
events up to itself, a target to
all events of its request and to itself, never to another target. The relative attention bias of the
paper is left out: time
reaches the model through the event tokens.

Forward FLOPs of a request with L events, per layer: 10 L d^2 + 2 L^2 d, half of the full attention
matrix.
Source: arXiv 2402.17152, equations 1 to 3.

Shape letters: T packed events, N packed targets, D width, H heads, K head width, R requests.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn import fused_ffn
from longrec.nn.baselines.causal_transformer import Stack
from longrec.nn.layers import linear
from longrec.nn.target_attention import Segments


class Block(nn.Module):
    """One layer for the events and targets of all requests."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm, self.attended_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.uvqk, self.out = linear(width, 4 * width), linear(width, width)
        self.num_heads = config.num_heads

    def forward(
        self, events: Float[Tensor, "T D"], targets: Float[Tensor, "N D"], segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """Returns the events and targets after this layer."""
        of_events, of_targets = (
            functional.silu(self.uvqk(self.norm(rows))).unflatten(1, (4, self.num_heads, -1))
            for rows in (events, targets)
        )
        pairs = zip(
            of_events.split(segments.num_events),
            of_targets.split(segments.num_targets),
            strict=True,
        )
        attended_targets = torch.cat([last(history, candidates) for history, candidates in pairs])
        both = []
        for rows, parts, attended in (
            (events, of_events, causal(of_events, segments)),
            (targets, of_targets, attended_targets),
        ):
            gated = self.attended_norm(attended.flatten(1)) * parts[:, 0].flatten(1)
            both.append(rows + self.out(gated.to(parts.dtype)))
        return both[0], both[1]


def hstu(config: ModelConfig) -> Stack:
    """Returns z of every target; `config.num_layers` layers, `config.num_heads` heads."""
    return Stack(config, Block)


def causal(uvqk: Float[Tensor, "T 4 H K"], segments: Segments) -> Float[Tensor, "T H K"]:
    """Returns A V of every event over those of its request up to itself."""
    _, values, queries, keys = uvqk.unbind(1)
    if (
        uvqk.is_cuda
        and uvqk.element_size() == 2
        and uvqk.shape[3] in (16, 32, 64, 128)
        and fused_ffn.available()
    ):
        output: Tensor = fused_ffn.apply(
            _Causal, *(part.contiguous() for part in (queries, keys, values)), segments
        )
        return output
    parts = zip(*(part.split(segments.num_events) for part in (queries, keys, values)), strict=True)
    return torch.cat([_one_history(*part) for part in parts])


def last(
    history: Float[Tensor, "L 4 H K"], candidates: Float[Tensor, "M 4 H K"]
) -> Float[Tensor, "M H K"]:
    """Returns A V of each candidate over the history and itself."""
    (_, values, _, keys), (_, own_values, queries, own_keys) = (
        history.unbind(1),
        candidates.unbind(1),
    )
    scale, n = queries.shape[-1] ** -0.5, history.shape[0] + 1
    weights = functional.silu(torch.einsum("mhk,lhk->mhl", queries, keys) * scale)
    own = functional.silu((queries * own_keys).sum(-1, keepdim=True) * scale)
    return (torch.einsum("mhl,lhk->mhk", weights, values) + own * own_values) / n


def _one_history(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    length, scale = queries.shape[0], queries.shape[-1] ** -0.5
    weights = functional.silu(torch.einsum("qhk,lhk->hql", queries, keys) * scale).tril()
    return torch.einsum("hql,lhk->qhk", weights, values) / (length + 1)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, segments: Segments
    ) -> Tensor:
        from longrec.nn.kernels import hstu as kernels

        ctx.longest = max(segments.num_events)
        ctx.save_for_backward(queries, keys, values, segments.event_offsets)
        return kernels.forward(queries, keys, values, segments.event_offsets, ctx.longest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import hstu as kernels

        queries, keys, values, offsets = ctx.saved_tensors
        return *kernels.backward(
            queries, keys, values, offsets, ctx.longest, gradients[0].contiguous()
        ), None
