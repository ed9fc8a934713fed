"""STCA: stacked target-to-history cross attention. The target is the only query; cost is linear in the history.

The encoding of the history is free of targets: `encode_layer` reads events alone. Shape letters: R requests, T packed events,
N packed targets, D width, H heads, M layers.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longrec.config import ModelConfig
from longrec.nn.layers import NUM_GAP_BUCKETS, SwiGLUFFN
from longrec.nn.target_attention import AttentionInputs, attend


class Layer(nn.Module):
    """One layer: X_i = LN(SwiGLUFFN_i(X)); attention of q_i over X_i; o_i of width D.

    Source: arXiv 2511.06077, STCA. With share_ffn the query's FFN and norm are those of the history (the literal reading).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.ffn, self.norm = SwiGLUFFN(width, config.ffn_ratio), nn.LayerNorm(width)
        self.query_ffn = None if config.share_ffn else SwiGLUFFN(width, config.ffn_ratio)
        self.query_norm = None if config.share_ffn else nn.LayerNorm(width)
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Parameter(torch.empty(width, width)) for _ in range(4))
        for weight in (self.w_q, self.w_v, self.w_o):
            nn.init.orthogonal_(weight)
        self.w_k.data.copy_(self.w_q.data)  # a query starts out looking for events like its own target
        self.gap_bias = nn.Parameter(torch.zeros(NUM_GAP_BUCKETS, config.num_heads)) if config.recency == "bias" else None
        self.num_heads, self.order = config.num_heads, config.attention

    def encode(self, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Returns X_i of the raw event tokens X; each row depends on its own event only."""
        encoded: Tensor = self.norm(self.ffn(events))
        return encoded

    def query(self, mixed: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns q_i of the fused query input."""
        ffn, norm = (self.ffn, self.norm) if self.query_ffn is None or self.query_norm is None else (self.query_ffn, self.query_norm)
        encoded: Tensor = norm(ffn(mixed))
        return encoded

    def attend(self, queries: Float[Tensor, "N D"], encoded: Float[Tensor, "T D"], event_offsets: Int[Tensor, " R1"],
               target_offsets: Int[Tensor, " R1"], gaps: Int[Tensor, " T"] | None) -> Float[Tensor, "N D"]:
        """Returns o_i; zeros for an empty history."""
        bias = None if self.gap_bias is None or gaps is None else self.gap_bias[gaps].to(encoded.dtype)
        w_q, w_k, w_v, w_o = (weight.to(encoded.dtype) for weight in (self.w_q, self.w_k, self.w_v, self.w_o))
        inputs = AttentionInputs(queries.to(encoded.dtype), encoded, w_q, w_k, w_v, self.num_heads, event_offsets, target_offsets, bias)
        return attend(inputs, self.order) @ w_o


class STCA(nn.Module):
    """z of every target: M layers, each from the raw event tokens, queries fused from all former outputs.

    q_1 = LN(SwiGLUFFN_1(x_t)); q_{i+1} = LN(SwiGLUFFN_{i+1}([o_1 | ... | o_i | x_t] W_C)); z = SwiGLUFFN([o_1 | ... | o_M | x_t] W_Z).

    Args:
        config: sizes and flags.
        chunk: events encoded at a time; 0 for all at once. recompute: whether encodings are computed anew in the backward pass.

    Source: arXiv 2511.06077, STCA; bias-free, no residual, no dropout.
    """

    def __init__(self, config: ModelConfig, *, chunk: int = 0, recompute: bool = False) -> None:
        super().__init__()
        width, depth = config.width, config.num_layers
        self.layers = nn.ModuleList(Layer(config) for _ in range(depth))
        parts = [i + 1 if config.query_fusion else 2 for i in range(1, depth)]
        self.fuse = nn.ModuleList(nn.Linear(number * width, width, bias=False) for number in parts)
        self.join = nn.Linear((depth + 1) * width, width, bias=False)
        for linear in (*self.fuse, self.join):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.out = SwiGLUFFN(width, config.ffn_ratio)
        self.out_norm = nn.LayerNorm(width) if config.output_norm else None
        self.query_fusion, self.chunk, self.recompute = config.query_fusion, chunk, recompute

    def encode(self, events: Float[Tensor, "T D"]) -> list[Tensor]:
        """Returns X_1 ... X_M, each [T, D]: the target-free half, computed once a request and cacheable."""
        return [self.encode_layer(i, events) for i in range(len(self.layers))]

    def encode_layer(self, index: int, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Returns X_i of the layer `index` (from 0)."""
        layer = self._layer(index)
        if self.chunk and events.shape[0] > self.chunk:
            return torch.cat([self._encode(layer, part) for part in events.split(self.chunk)])
        return self._encode(layer, events)

    def forward(self, targets: Float[Tensor, "N D"], events: Float[Tensor, "T D"], event_offsets: Int[Tensor, " R1"],
                target_offsets: Int[Tensor, " R1"], gaps: Int[Tensor, " T"] | None = None) -> Float[Tensor, "N D"]:
        """Returns z of every target.

        Args:
            targets: x_t. events: X, raw event tokens, oldest first within a request.
            event_offsets, target_offsets: int64 [R+1].
            gaps: bucket of the time gap of each event, for `recency: bias`.
        """
        return self.score(targets, self.encode(events), event_offsets, target_offsets, gaps)

    def score(self, targets: Float[Tensor, "N D"], encoded: list[Tensor], event_offsets: Int[Tensor, " R1"],
              target_offsets: Int[Tensor, " R1"], gaps: Int[Tensor, " T"] | None = None) -> Float[Tensor, "N D"]:
        """Returns z of every target over encoded histories: the half that depends on targets."""
        outputs: list[Tensor] = []
        for index in range(len(self.layers)):
            layer = self._layer(index)
            query = layer.query(self._fused(index, outputs, targets))
            outputs.append(layer.attend(query, encoded[index], event_offsets, target_offsets, gaps))
        z: Tensor = self.out(self.join(torch.cat([*outputs, targets.to(outputs[0].dtype)], dim=1)))
        normed: Tensor = z if self.out_norm is None else self.out_norm(z)
        return normed

    def _fused(self, index: int, outputs: list[Tensor], targets: Tensor) -> Tensor:
        if index == 0:
            return targets
        seen = outputs if self.query_fusion else outputs[-1:]
        fused: Tensor = self.fuse[index - 1](torch.cat([*seen, targets.to(seen[0].dtype)], dim=1))
        return fused

    def _layer(self, index: int) -> Layer:
        return cast("Layer", self.layers[index])

    def _encode(self, layer: Layer, events: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer.encode, events, use_reentrant=False)
            return recomputed
        return layer.encode(events)


def flops(config: ModelConfig, num_events: int, num_targets: int) -> int:
    """Returns the matrix FLOPs of the history-dependent part of one forward pass of one request (two per multiply-add).

    Per layer: FFN 6 r L d^2; attention plain 4 L d^2 + 4 L d m, reordered 4 L d h m (spec section 2).
    """
    from longrec.nn.target_attention import choose

    length, width, heads = num_events, config.width, config.num_heads
    order = config.attention if config.attention != "auto" else choose(num_targets, width, heads)
    plain = 4 * length * width**2 + 4 * length * width * num_targets
    attention = plain if order == "plain" else 4 * length * width * heads * num_targets
    return config.num_layers * (6 * config.ffn_ratio * length * width**2 + attention)
