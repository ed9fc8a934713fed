"""Plain order, the reference: K = X W_K and V = X W_V are formed once per event.

All targets of a request share them. FLOPs with m targets and L events: 4 L d^2 + 4 L d m.

Shape letters: T packed events, N packed targets, L events and M targets of one request, D width,
H heads, K head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, Dropout, softmax


def attend(inputs: AttentionInputs) -> Float[Tensor, "N D"]:
    """Return softmax(q W_Q (X W_K)^T / sqrt(d_h)) X W_V, heads side by side.

    Targets of an empty history get zeros.

    Source: arXiv 2511.06077, attention of STCA.
    """
    segments = inputs.segments
    queries_HNK = inputs.scaled_queries().transpose(0, 1)
    keys_HTK = _by_head(inputs.tokens @ inputs.w_k, inputs.num_heads)
    values_HTK = _by_head(inputs.tokens @ inputs.w_v, inputs.num_heads)
    # split, not slices: the backward pass of split joins all gradients once. Each slice would
    # allocate a gradient of all T events.
    requests = zip(
        queries_HNK.split(segments.num_targets, 1),
        keys_HTK.split(segments.num_events, 1),
        values_HTK.split(segments.num_events, 1),
        inputs.biases(),
        strict=True,
    )
    outputs = [_attend_one_request(*request, inputs.dropout) for request in requests]
    outputs_HNK = torch.cat(outputs, dim=1)
    return outputs_HNK.transpose(0, 1).flatten(1)


def _by_head(rows_TD: Tensor, num_heads: int) -> Tensor:
    by_head: Tensor = rows_TD.unflatten(1, (num_heads, -1)).transpose(0, 1)
    return by_head


def _attend_one_request(
    queries_HMK: Tensor,
    keys_HLK: Tensor,
    values_HLK: Tensor,
    bias_HL: Tensor | None,
    dropout: Dropout | None,
) -> Tensor:
    logits_HML = queries_HMK @ keys_HLK.transpose(1, 2)
    if bias_HL is not None:
        logits_HML = logits_HML + bias_HL.unsqueeze(1)
    return softmax(logits_HML, dropout) @ values_HLK
