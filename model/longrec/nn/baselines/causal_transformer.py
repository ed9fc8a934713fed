"""Causal Transformer over the history, with targets as its last tokens: the usual sequence model,
quadratic in the history.

Per layer, pre-norm:  h <- h + Attention(LN(h)) W_O;  h <- h + SwiGLUFFN(LN(h));  at the end z =
LN(h_t).
An event attends to the events up to itself, a target to all events of its request and to itself,
never to another target, so
that a score depends on no other candidate. No position is added: order reaches the model through
the causal mask and time
through the event tokens.

Forward FLOPs of a request with L events, per layer: (8 + 6 r) L d^2 + 2 L^2 d, half of the full
attention matrix.
Source: arXiv 1706.03762 (attention), 2002.05202 (SwiGLU), 2205.14135 (the exact attention kernel
that PyTorch calls on CUDA).

Shape letters: T packed events, N packed targets, D width, H heads, K head width, R requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from longrec.config import ModelConfig
from longrec.nn.layers import SwiGLUFFN, linear
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.inputs import softmax

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's: it builds a plan for every new length, and here each request has its own."""


class Block(nn.Module):
    """One layer for the events and targets of all requests."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.ffn = (
            linear(width, 3 * width),
            linear(width, width),
            SwiGLUFFN(width, config.ffn_ratio),
        )
        self.num_heads = config.num_heads

    def forward(
        self, events: Float[Tensor, "T D"], targets: Float[Tensor, "N D"], segments: Segments
    ) -> tuple[Tensor, Tensor]:
        """Returns the events and targets after this layer."""
        of_events, of_targets = (
            self.qkv(self.norm(rows)).unflatten(1, (3, self.num_heads, -1))
            for rows in (events, targets)
        )
        pairs = zip(
            of_events.split(segments.num_events),
            of_targets.split(segments.num_targets),
            strict=True,
        )
        attended = [(causal(history), last(history, candidates)) for history, candidates in pairs]
        both = []
        for rows, parts in zip((events, targets), zip(*attended, strict=True), strict=True):
            rows = rows + self.out(torch.cat(parts).flatten(1))
            both.append(rows + self.ffn(self.ffn_norm(rows).to(parts[0].dtype)))
        return both[0], both[1]


def causal_transformer(config: ModelConfig) -> Stack:
    """Returns z of every target, with as many layers and heads as STCA and the same FFN ratio."""
    return Stack(config, Block)


class Stack(nn.Module):
    """z of every target by layers that events and targets pass together; called like STCA (gaps are
    not used).
    """

    def __init__(self, config: ModelConfig, layer: Callable[[ModelConfig], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        gaps: Int[Tensor, " T"] | None = None,
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Returns z; arguments as in STCA.forward."""
        segments = Segments.of(event_offsets, target_offsets, counts)
        for block in self.blocks:
            events, targets = cast("Block", block)(events, targets, segments)
        z: Tensor = self.norm(targets)
        return z


def causal(qkv: Float[Tensor, "L 3 H K"]) -> Float[Tensor, "L H K"]:
    """Returns softmax(q k^T / sqrt(d_h)) v of one history, each event over those up to itself."""
    queries, keys, values = (part.transpose(0, 1)[None] for part in qkv.unbind(1))
    with sdpa_kernel(KERNELS):
        attended: Tensor = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True
        )
    return attended[0].transpose(0, 1)


def last(
    history: Float[Tensor, "L 3 H K"], candidates: Float[Tensor, "M 3 H K"]
) -> Float[Tensor, "M H K"]:
    """Returns the attention of each candidate over the history and itself."""
    (_, keys, values), (queries, own_keys, own_values) = history.unbind(1), candidates.unbind(1)
    logits = torch.cat(
        [torch.einsum("mhk,lhk->mhl", queries, keys), (queries * own_keys).sum(-1, keepdim=True)],
        dim=-1,
    )
    weights = softmax(logits * queries.shape[-1] ** -0.5).to(values.dtype)
    return torch.einsum("mhl,lhk->mhk", weights[..., :-1], values) + weights[..., -1:] * own_values
