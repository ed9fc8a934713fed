"""Causal Transformer over the history with the targets as its last tokens; quadratic in length.

Per layer, pre-norm:  h <- h + Attention(LN(h)) W_O;  h <- h + SwiGLUFFN(LN(h));  at the end
z = LN(h_t).

An event attends to the events up to itself, a target to all events of its request and to itself.
No target attends to another, so a score depends on no other candidate. No position is added: the
causal mask carries the order, the event tokens carry the time.

Forward FLOPs of a request with L events, per layer: (8 + 6 r) L d^2 + 2 L^2 d, half of the full
attention matrix.

On a GPU, one kernel call serves the requests of all lengths, without padding.

Source: arXiv 1706.03762 (attention), 2002.05202 (SwiGLU), 2205.14135 (the exact attention without
the matrix).

Shape letters: S packed events and targets, G requests of a group, L events and M targets of its
longest request, D width, H heads, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from longrec.config import ModelConfig
from longrec.nn.baselines.causal_sequence import (
    CausalSequenceModel,
    attend_in_groups,
    has_kernels,
)
from longrec.nn.fused.paths import apply_function
from longrec.nn.layers import SwiGLUFFN, linear
from longrec.nn.padding import PaddedRows
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.inputs import softmax

if TYPE_CHECKING:
    from longrec.nn.kernels.causal_tiles import CausalInputs

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

    def forward(self, tokens: Float[Tensor, "S D"], segments: Segments) -> Float[Tensor, "S D"]:
        """Return the events and targets after this layer."""
        attended = attention(self._project(tokens), segments)
        return self._update(tokens, attended)

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


def attention(qkv: Float[Tensor, "S 3 H K"], segments: Segments) -> Float[Tensor, "S H K"]:
    """Return the attention of each event over those up to itself, of each target over all."""
    if has_kernels(qkv):
        attended: Tensor = apply_function(SoftmaxAttention, qkv.contiguous(), segments)
        return attended
    return attend_in_groups(qkv, causal_attention, candidate_attention, segments)


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


class SoftmaxAttention(torch.autograd.Function):
    """The attention by the kernels of longrec.nn.kernels.causal_softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        segments: Segments,
    ) -> Tensor:
        from longrec.nn.kernels import causal_softmax

        out, log_sums = causal_softmax.forward(_kernel_inputs(qkv, segments))
        ctx.save_for_backward(qkv, out, log_sums)
        ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import causal_softmax

        qkv, out, log_sums = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        causal_softmax.backward(
            _kernel_inputs(qkv, ctx.segments),
            out,
            log_sums,
            gradients[0].contiguous(),
            _kernel_inputs(dqkv, ctx.segments),
        )
        return dqkv, None


def _kernel_inputs(qkv: Tensor, segments: Segments) -> CausalInputs:
    from longrec.nn.kernels.causal_tiles import CausalInputs

    queries, keys, values = qkv.unbind(1)
    return CausalInputs(queries, keys, values, segments)
