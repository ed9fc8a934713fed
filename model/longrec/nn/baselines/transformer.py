"""Causal Transformer over the history with the targets as its last tokens; quadratic in length.

Per layer, pre-norm:  h <- h + Attention(LN(h)) W_O;  h <- h + SwiGLUFFN(LN(h));  at the end
z = LN(h_t).

An event attends to the events up to itself, a target to all events of its request and to itself.
No target attends to another, so a score depends on no other candidate. No position is added: the
causal mask carries the order, the event tokens carry the time.

Forward FLOPs of a request with L events, per layer: (8 + 6 r) L d^2 + 2 L^2 d, half of the full
attention matrix.

Source: arXiv 1706.03762 (attention), 2002.05202 (SwiGLU), 2205.14135 (the exact attention kernel
that PyTorch calls on CUDA).

Shape letters: T packed events, N packed targets, G requests of a group, L events and M targets of
its longest request, D width, H heads, K head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import (
    CausalSequenceModel,
    attend_to_histories,
    attend_to_own_events,
)
from longrec.nn.layers import SwiGLUFFN, linear
from longrec.nn.padding import PaddedRows
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.inputs import softmax

ATTENTION_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""cuDNN is left out: it builds a plan for every new length, and most groups have their own."""


def causal_transformer(config: ModelConfig) -> CausalSequenceModel:
    """Return a Transformer with as many layers and heads as STCA, and the same FFN ratio."""
    return CausalSequenceModel(config, TransformerLayer)


class TransformerLayer(nn.Module):
    """One layer for the events and targets of all requests."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.ffn_norm = nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.ffn = SwiGLUFFN(width, config.ffn_ratio)
        self.num_heads = config.num_heads

    def forward(
        self,
        events: Float[Tensor, "T D"],
        targets: Float[Tensor, "N D"],
        segments: Segments,
    ) -> tuple[Tensor, Tensor]:
        """Return the events and targets after this layer."""
        event_qkv = self._project(events)
        target_qkv = self._project(targets)
        attended_events = attend_to_own_events(event_qkv, causal_attention, segments)
        attended_targets = attend_to_histories(
            event_qkv,
            target_qkv,
            candidate_attention,
            segments,
        )
        return self._update(events, attended_events), self._update(targets, attended_targets)

    def _project(self, rows: Tensor) -> Tensor:
        """Return queries, keys and values by head, [*, 3, H, K]."""
        by_head: Tensor = self.qkv(self.norm(rows)).unflatten(1, (3, self.num_heads, -1))
        return by_head

    def _update(
        self,
        rows: Tensor,
        attended: Tensor,
    ) -> Tensor:
        """Return the rows after the residuals of attention and FFN."""
        rows = rows + self.out(attended.flatten(1))
        normed = self.ffn_norm(rows).to(attended.dtype)
        updated: Tensor = rows + self.ffn(normed)
        return updated


def causal_attention(qkv: Float[Tensor, "G L 3 H K"]) -> Float[Tensor, "G L H K"]:
    """Return softmax(q k^T / sqrt(d_h)) v of each history, each event over those up to itself."""
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each [G, H, L, K]
    with sdpa_kernel(ATTENTION_BACKENDS):
        attended: Tensor = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            is_causal=True,
        )
    return attended.transpose(1, 2)


def candidate_attention(
    histories: Float[Tensor, "G L 3 H K"],
    candidates: Float[Tensor, "G M 3 H K"],
    rows: PaddedRows,
) -> Float[Tensor, "G M H K"]:
    """Return the attention of each candidate over its history and itself."""
    _, keys, values = histories.unbind(2)
    queries, own_keys, own_values = candidates.unbind(2)
    logits = torch.einsum("gmhk,glhk->gmhl", queries, keys)
    history_logits = logits.masked_fill(~rows.is_real[:, None, None], -torch.inf)
    own_logits = (queries * own_keys).sum(-1, keepdim=True)
    logits = torch.cat([history_logits, own_logits], dim=-1)
    weights = softmax(logits * queries.shape[-1] ** -0.5).to(values.dtype)
    from_history = torch.einsum("gmhl,glhk->gmhk", weights[..., :-1], values)
    return from_history + weights[..., -1:] * own_values
