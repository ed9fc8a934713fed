"""Single-layer target attention: each target attends once to the raw event tokens; no FFN of the
history, no second look.

o = MHA(x_t, X): per head softmax(x_t W_Q (X W_K)^T / sqrt(d_h) + gap bias) X W_V, heads side by
side, times W_O;
z = SwiGLUFFN([o | x_t] W_Z). What STCA adds to it is the FFN of the events and depth.

Source: arXiv 2108.04468 (MHTA of ETA) and the single-layer baseline of arXiv 2511.06077; arXiv
1706.03762 for the attention.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.baselines.join import Join
from longrec.nn.layers import NUM_GAP_BUCKETS
from longrec.nn.stca import QK_GAIN
from longrec.nn.target_attention import AttentionInputs, Segments, attend


class TargetAttention(nn.Module):
    """z of every target; called like STCA. W_K starts equal to W_Q, as in STCA, so that the two
    differ in the stack only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w_q, self.w_v, self.w_o = (
            nn.Parameter(nn.init.orthogonal_(torch.empty(config.width, config.width), gain=gain))
            for gain in (QK_GAIN, 1.0, 1.0)
        )
        self.w_k = nn.Parameter(self.w_q.detach().clone())
        self.norm = nn.LayerNorm(config.width)
        self.gap_bias = (
            nn.Parameter(torch.zeros(NUM_GAP_BUCKETS, config.num_heads))
            if config.recency == "bias"
            else None
        )
        self.join, self.num_heads, self.order = Join(config), config.num_heads, config.attention

    def inputs(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None,
    ) -> AttentionInputs:
        """Returns what the attention reads: LN of targets and events under one norm, since both are
        item tokens.
        """
        bias = (
            None
            if self.gap_bias is None or gaps is None
            else functional.embedding(gaps, self.gap_bias)
        )
        return AttentionInputs(
            self.norm(targets),
            self.norm(events),
            self.w_q,
            self.w_k,
            self.w_v,
            self.num_heads,
            segments,
            bias,
        )

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
        inputs = self.inputs(
            targets, events, Segments.of(event_offsets, target_offsets, counts), gaps
        )
        z: Tensor = self.join(self.attend(inputs) @ self.w_o, targets)
        return z

    def attend(self, inputs: AttentionInputs) -> Float[Tensor, "N D"]:
        """Returns the attention output of every target, heads side by side, before W_O."""
        return attend(inputs, self.order)
