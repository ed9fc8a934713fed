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

Shape letters: T packed events, N packed targets, L events and M targets of one request, D width,
H heads, K head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import CausalSequenceModel
from longrec.nn.layers import SwiGLUFFN, linear
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.inputs import softmax

ATTENTION_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""cuDNN is left out: it builds a plan for every new length, and most requests have their own."""


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
        event_qkv = self._project(events).split(segments.num_events)
        target_qkv = self._project(targets).split(segments.num_targets)
        attended_events = []
        attended_targets = []
        for history, candidates in zip(event_qkv, target_qkv, strict=True):
            attended_events.append(causal_attention(history))
            attended_targets.append(candidate_attention(history, candidates))
        return self._update(events, attended_events), self._update(targets, attended_targets)

    def _project(self, rows: Tensor) -> Tensor:
        """Return queries, keys and values by head, [*, 3, H, K]."""
        by_head: Tensor = self.qkv(self.norm(rows)).unflatten(1, (3, self.num_heads, -1))
        return by_head

    def _update(
        self,
        rows: Tensor,
        attended: list[Tensor],
    ) -> Tensor:
        """Return the rows after the residuals of attention and FFN."""
        rows = rows + self.out(torch.cat(attended).flatten(1))
        normed = self.ffn_norm(rows).to(attended[0].dtype)
        updated: Tensor = rows + self.ffn(normed)
        return updated


def causal_attention(qkv: Float[Tensor, "L 3 H K"]) -> Float[Tensor, "L H K"]:
    """Return softmax(q k^T / sqrt(d_h)) v of one history, each event over those up to itself."""
    queries, keys, values = qkv.permute(1, 2, 0, 3)[:, None]  # each [1, H, L, K]
    with sdpa_kernel(ATTENTION_BACKENDS):
        attended: Tensor = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            is_causal=True,
        )
    return attended[0].transpose(0, 1)


def candidate_attention(
    history: Float[Tensor, "L 3 H K"], candidates: Float[Tensor, "M 3 H K"]
) -> Float[Tensor, "M H K"]:
    """Return the attention of each candidate over the history and itself."""
    _, keys, values = history.unbind(1)
    queries, own_keys, own_values = candidates.unbind(1)
    history_logits = torch.einsum("mhk,lhk->mhl", queries, keys)
    own_logits = (queries * own_keys).sum(-1, keepdim=True)
    logits = torch.cat([history_logits, own_logits], dim=-1)
    weights = softmax(logits * queries.shape[-1] ** -0.5).to(values.dtype)
    from_history = torch.einsum("mhl,lhk->mhk", weights[..., :-1], values)
    return from_history + weights[..., -1:] * own_values
