"""One layer of STCA: the encoding of the events, the query of every target, its attention.

Shape letters: T packed events, N packed targets, D width, H heads, G gap buckets.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.layers import PlainFFN, ResidualFFN, SwiGLUFFN
from longrec.nn.target_attention import AttentionInputs, Segments, attend, keys_values_weight
from longrec.nn.target_attention.inputs import Dropout, scaled_queries
from longrec.nn.target_attention.sources import AttentionSource
from longrec.nn.time_gaps import NUM_GAP_BUCKETS

QK_GAIN = 2.0
"""Gain of the orthogonal initial values of W_Q and W_K."""
UNIFORM_QK_GAIN = 0.05
"""Gain of W_Q in a head that starts uniform: its logits are close to 0."""
FFNS = {"swiglu": SwiGLUFFN, "plain": PlainFFN, "residual": ResidualFFN}


class STCALayer(nn.Module):
    """Encoding X_i = LN(SwiGLUFFN_i(X)), query q_i and attention output o_i of one layer.

    With `share_ffn` the query passes the FFN and norm of the history (the literal reading). Without
    it the query has an FFN and norm of its own, which start as copies.

    Initial values, ours: W_K = W_Q = QK_GAIN times an orthogonal matrix. Before any training a
    query then looks for events that are encoded like its own target, and a few of them outweigh a
    long history. This shortens the plateau at the base rate when learning rates are high or
    histories long. It changes nothing when training is gentle (docs/log.md). The last
    `uniform_heads` heads start with W_Q close to 0: they see the mean of the whole history.

    Args:
        config: width, heads, FFN and recency.

    Source: arXiv 2511.06077, STCA.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.ffn = FFNS[config.ffn](width, config.ffn_ratio)
        self.norm = nn.LayerNorm(width)
        self.query_ffn = None if config.share_ffn else copy.deepcopy(self.ffn)
        self.query_norm = None if config.share_ffn else nn.LayerNorm(width)
        self.w_q = orthogonal(width, QK_GAIN)
        self.w_v = orthogonal(width, 1.0)
        self.w_o = orthogonal(width, 1.0)
        self.w_k = nn.Parameter(self.w_q.detach().clone())
        self._flatten_heads(config.uniform_heads, width // config.num_heads)
        self.gap_bias = gap_bias_table(config, config.num_heads)
        self.num_heads = config.num_heads
        self.order = config.attention
        self.attention_dropout: Dropout | None = None

    def _flatten_heads(self, num_heads: int, head_width: int) -> None:
        """Let the attention of the last heads start uniform."""
        first_column = self.w_q.shape[1] - num_heads * head_width
        with torch.no_grad():
            self.w_q[:, first_column:] *= UNIFORM_QK_GAIN / QK_GAIN

    def encode(self, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return X_i of the raw event tokens X; each row depends on its own event only."""
        encoded: Tensor = self.norm(self.ffn(events))
        return encoded

    def query(self, mixed: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return q_i of x_t or of the fused outputs of earlier layers."""
        if self.query_ffn is None or self.query_norm is None:
            return self.encode(mixed)
        query: Tensor = self.query_norm(self.query_ffn(mixed))
        return query

    def keys_values(self, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D2"]:
        """Return keys and values of the raw event tokens X, to be cached."""
        weight = keys_values_weight(self.w_k, self.w_v, self.num_heads)
        return self.encode(events) @ weight

    def attend(
        self,
        queries: Float[Tensor, "N D"],
        source: AttentionSource,
        segments: Segments,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "N D"]:
        """Return o_i; zeros for an empty history.

        Args:
            queries: q_i.
            source: X_i, or an object that holds the events of this layer in another form.
            segments: rows of each request; read only if the source is X_i.
            gaps: bucket of the time gap of each event, for `recency: bias`; read only if the source
                is X_i.
        """
        if not isinstance(source, Tensor):
            scaled = scaled_queries(queries, self.w_q, self.num_heads)
            output: Tensor = source.attend(scaled) @ self.w_o
            return output
        inputs = AttentionInputs(
            queries,
            source,
            self.w_q,
            self.w_k,
            self.w_v,
            self.num_heads,
            segments,
            gap_bias_of_events(self.gap_bias, gaps),
            self.attention_dropout if self.training else None,
        )
        return attend(inputs, self.order) @ self.w_o


def orthogonal(width: int, gain: float) -> nn.Parameter:
    """Return a parameter [D, D] with orthogonal initial values times a gain."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(width, width), gain=gain))


def gap_bias_table(config: ModelConfig, num_heads: int) -> nn.Parameter | None:
    """Return the bias of each gap bucket and head, initially 0; None without `recency: bias`.

    Args:
        config: of the model.
        num_heads: biases of a bucket; 1 for a model without heads.
    """
    if config.recency != "bias":
        return None
    return nn.Parameter(torch.zeros(NUM_GAP_BUCKETS, num_heads))


def gap_bias_of_events(
    table: Float[Tensor, "G H"] | None, gaps: Int[Tensor, " T"] | None
) -> Float[Tensor, "T H"] | None:
    """Return the bias of each event and head, or None without a table or gaps."""
    if table is None or gaps is None:
        return None
    return functional.embedding(gaps, table)
