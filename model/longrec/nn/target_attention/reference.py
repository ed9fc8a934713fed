"""Plain order: K = X W_K and V = X W_V are formed once per event and shared by the targets of a
request.

FLOPs of a request with m targets and L events: 4 L d^2 + 4 L d m.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, softmax


def attend(inputs: AttentionInputs) -> Float[Tensor, "N D"]:
    """Returns softmax(q W_Q (X W_K)^T / sqrt(d_h)) X W_V, heads side by side; zeros for the targets
    of an empty history.

    Source: arXiv 2511.06077, attention of STCA.
    """
    segments, heads = inputs.segments, inputs.num_heads
    queries_HNK = inputs.scaled_queries().transpose(0, 1)
    keys_HTK, values_HTK = (
        (inputs.tokens @ w).unflatten(1, (heads, -1)).transpose(0, 1)
        for w in (inputs.w_k, inputs.w_v)
    )
    # split, not slices: its backward joins the parts once, where each slice's would fill a gradient
    # of all T events
    parts = zip(
        queries_HNK.split(segments.num_targets, 1),
        keys_HTK.split(segments.num_events, 1),
        values_HTK.split(segments.num_events, 1),
        inputs.biases(),
        strict=True,
    )
    outputs_HNK = torch.cat([_one_request(*part) for part in parts], dim=1)
    return outputs_HNK.transpose(0, 1).flatten(1)


def _one_request(
    queries_HMK: Tensor, keys_HLK: Tensor, values_HLK: Tensor, bias_HL: Tensor | None
) -> Tensor:
    logits_HML = queries_HMK @ keys_HLK.transpose(1, 2)
    if bias_HL is not None:
        logits_HML = logits_HML + bias_HL.unsqueeze(1)
    return softmax(logits_HML) @ values_HLK
