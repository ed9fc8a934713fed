"""Single-layer target attention: each target attends once to the raw event tokens.

o = MHA(x_t, X): per head softmax(x_t W_Q (X W_K)^T / sqrt(d_h) + gap bias) X W_V, heads side by
side, times W_O;  z = SwiGLUFFN([o | x_t] W_Z). STCA adds the FFN of the events, and depth.

Source: arXiv 2108.04468 (MHTA of ETA) and the single-layer baseline of arXiv 2511.06077; arXiv
1706.03762 for the attention.

Shape letters: T packed events, N packed targets, D width.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.baselines.output_projection import OutputProjection
from longrec.nn.stca_layer import QK_GAIN, gap_bias_of_events, gap_bias_table, orthogonal
from longrec.nn.target_attention import AttentionInputs, Segments, attend
from longrec.nn.target_attention.inputs import Dropout


class TargetAttention(nn.Module):
    """z of every target; called like STCA.

    W_K starts equal to W_Q, as in STCA, so this model differs from STCA in the stack only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w_q = orthogonal(config.width, QK_GAIN)
        self.w_v = orthogonal(config.width, 1.0)
        self.w_o = orthogonal(config.width, 1.0)
        self.w_k = nn.Parameter(self.w_q.detach().clone())
        self.norm = nn.LayerNorm(config.width)
        self.gap_bias = gap_bias_table(config, config.num_heads)
        self.join = OutputProjection(config)
        self.num_heads = config.num_heads
        self.order = config.attention
        self.attention_dropout: Dropout | None = None

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z; arguments as in STCA.forward."""
        inputs = AttentionInputs(
            self.norm(targets),  # one norm for both: both are item tokens
            self.norm(events),
            self.w_q,
            self.w_k,
            self.w_v,
            self.num_heads,
            segments,
            gap_bias_of_events(self.gap_bias, gaps),
            self.attention_dropout if self.training else None,
        )
        interest = self.attend(inputs) @ self.w_o
        z: Tensor = self.join(interest, targets)
        return z

    def attend(self, inputs: AttentionInputs) -> Float[Tensor, "N D"]:
        """Return the attention output of every target, heads side by side, before W_O."""
        return attend(inputs, self.order)
