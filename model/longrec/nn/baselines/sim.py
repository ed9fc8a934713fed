"""Retrieve, then attend (SIM, TWIN): each target attends to its most relevant events only.

    score_j = (1/h) sum_heads (x_t W_Q (X W_K)^T / sqrt(d_h))_j    first stage
    top = the `retrieved` events of highest score
    o = MHA(x_t, X[top]) W_O, with the gap bias                    second stage
    z = SwiGLUFFN([o | x_t] W_Z)

Both stages measure relevance by the same logits, as in TWIN; the first one without the gap bias.
Events outside of `top` get no gradient. The first stage of a production system reads an index. Here
it is exact.

Source: arXiv 2006.05639 (SIM), arXiv 2302.02352 (TWIN, equations 1 to 5).

Shape letters: N packed targets, D width, G requests of a group, L events and M targets of its
longest request, H heads, K head width, S retrieved events.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from longrec.config import ModelConfig
from longrec.nn.baselines.target_attention import TargetAttention
from longrec.nn.padding import PaddedRows, scatter_groups, similar_requests
from longrec.nn.target_attention import AttentionInputs
from longrec.nn.target_attention.inputs import Dropout, softmax


class RetrieveThenAttend(TargetAttention):
    """z of every target; called like STCA."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_retrieved = config.retrieved

    def attend(self, inputs: AttentionInputs) -> Float[Tensor, "N D"]:
        """Return the attention of every target over its retrieved events, before W_O."""
        heads = inputs.num_heads
        keys = (inputs.tokens @ inputs.w_k).unflatten(1, (heads, -1))
        values = (inputs.tokens @ inputs.w_v).unflatten(1, (heads, -1))
        queries = inputs.scaled_queries()
        num_events = np.array(inputs.segments.num_events)
        num_targets = np.array(inputs.segments.num_targets)
        cells = num_events * num_targets * queries.shape[1] * queries.shape[2]
        has_pairs = (num_events > 0) & (num_targets > 0)
        parts = []
        groups = []
        for requests in similar_requests(num_events, has_pairs, cells):
            targets = PaddedRows.of(num_targets, requests, queries.device)
            events = PaddedRows.of(num_events, requests, queries.device)
            attended = _attend_group(
                targets.gather(queries),
                events.gather(keys),
                events.gather(values),
                _group_bias(inputs.bias, events),
                self.num_retrieved,
                inputs.dropout,
            )
            parts.append(targets.unpad(attended))
            groups.append(targets)
        return scatter_groups(parts, groups, queries).flatten(1)


def _group_bias(bias: Tensor | None, events: PaddedRows) -> Tensor:
    """Return what is added to the logits of each event of a group, [G, 1, H, L]."""
    padding = torch.where(events.is_real, 0.0, -torch.inf)[:, None, None]
    if bias is None:
        return padding
    return events.gather(bias).transpose(1, 2)[:, None] + padding


def _attend_group(
    queries_GMHK: Tensor,
    keys_GLHK: Tensor,
    values_GLHK: Tensor,
    bias_G1HL: Tensor,
    num_retrieved: int,
    dropout: Dropout | None,
) -> Tensor:
    logits_GMHL = torch.einsum("gmhk,glhk->gmhl", queries_GMHK, keys_GLHK)
    is_padding = bias_G1HL.isneginf().all(2)
    scores_GML = logits_GMHL.detach().mean(2).masked_fill(is_padding, -torch.inf)
    num_events = keys_GLHK.shape[1]
    top_GMS = scores_GML.topk(min(num_retrieved, num_events), dim=2).indices
    num_heads = logits_GMHL.shape[2]
    top_GMHS = top_GMS[:, :, None].expand(-1, -1, num_heads, -1)
    logits_GMHS = (logits_GMHL + bias_G1HL).gather(3, top_GMHS)
    weights_GMHS = softmax(logits_GMHS, dropout).to(values_GLHK.dtype)
    # As a sum over all events, with zeros for those that are not retrieved: a copy of the retrieved
    # values of every target would be larger.
    weights_GMHL = torch.zeros_like(logits_GMHL).scatter(3, top_GMHS, weights_GMHS)
    return torch.einsum("gmhl,glhk->gmhk", weights_GMHL, values_GLHK)
