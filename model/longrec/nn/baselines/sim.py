"""Retrieve, then attend (SIM, TWIN): each target attends to its most relevant events only.

    score_j = (1/h) sum_heads (x_t W_Q (X W_K)^T / sqrt(d_h))_j    first stage
    top = the `retrieved` events of highest score
    o = MHA(x_t, X[top]) W_O, with the gap bias                    second stage
    z = SwiGLUFFN([o | x_t] W_Z)

Both stages measure relevance by the same logits, as in TWIN; the first one without the gap bias.
Events outside of `top` get no gradient. The first stage of a production system reads an index. Here
it is exact.

Source: arXiv 2006.05639 (SIM), arXiv 2302.02352 (TWIN, equations 1 to 5).

Shape letters: N packed targets, D width, L events and M targets of one request, H heads, K head
width, S retrieved events.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.config import ModelConfig
from longrec.nn.baselines.target_attention import TargetAttention
from longrec.nn.target_attention import AttentionInputs
from longrec.nn.target_attention.inputs import Dropout, softmax


class RetrieveThenAttend(TargetAttention):
    """z of every target; called like STCA."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_retrieved = config.retrieved

    def attend(self, inputs: AttentionInputs) -> Float[Tensor, "N D"]:
        """Return the attention of every target over its retrieved events, before W_O."""
        segments = inputs.segments
        heads = inputs.num_heads
        keys = (inputs.tokens @ inputs.w_k).unflatten(1, (heads, -1))
        values = (inputs.tokens @ inputs.w_v).unflatten(1, (heads, -1))
        requests = zip(
            inputs.scaled_queries().split(segments.num_targets),
            keys.split(segments.num_events),
            values.split(segments.num_events),
            inputs.biases(),
            strict=True,
        )
        outputs = [
            _attend_one_request(*request, self.num_retrieved, inputs.dropout)
            for request in requests
        ]
        return torch.cat(outputs).flatten(1)


def _attend_one_request(
    queries_MHK: Tensor,
    keys_LHK: Tensor,
    values_LHK: Tensor,
    bias_HL: Tensor | None,
    num_retrieved: int,
    dropout: Dropout | None,
) -> Tensor:
    logits_MHL = torch.einsum("mhk,lhk->mhl", queries_MHK, keys_LHK)
    scores_ML = logits_MHL.detach().mean(1)
    top_MS = scores_ML.topk(min(num_retrieved, keys_LHK.shape[0]), dim=1).indices
    if bias_HL is not None:
        logits_MHL = logits_MHL + bias_HL
    top_MHS = top_MS[:, None].expand(-1, logits_MHL.shape[1], -1)
    weights_MHS = softmax(logits_MHL.gather(2, top_MHS), dropout)
    return torch.einsum("mhs,mshk->mhk", weights_MHS, values_LHK[top_MS])
