"""Plain order: K = X W_K and V = X W_V are formed once per event, then shared by the targets of the request.

FLOPs a request and layer, m targets and L events: 4 L d^2 + 4 L d m.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, weights


def attend(inputs: AttentionInputs) -> Tensor:
    """Returns the heads' outputs side by side, [N, D]; zeros for the targets of an empty history.

    Source: arXiv 2511.06077, STCA.
    """
    heads = inputs.num_heads
    queries_HND = (inputs.queries @ inputs.w_q).unflatten(1, (heads, -1)).transpose(0, 1)
    keys_HTD = (inputs.tokens @ inputs.w_k).unflatten(1, (heads, -1)).transpose(0, 1)
    values_HTD = (inputs.tokens @ inputs.w_v).unflatten(1, (heads, -1)).transpose(0, 1)
    outputs = []
    for start, end, first, last in inputs.spans():
        if start == end:
            outputs.append(inputs.queries.new_zeros((last - first, inputs.queries.shape[1])))
            continue
        logits = inputs.scale * queries_HND[:, first:last] @ keys_HTD[:, start:end].transpose(1, 2) + inputs.bias_of(start, end)
        outputs.append((weights(logits) @ values_HTD[:, start:end]).transpose(0, 1).flatten(1))
    return torch.cat(outputs)
