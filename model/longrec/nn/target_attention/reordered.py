"""Reordered order: u = (q W_Q) W_K^T, scores u X^T, o = (a X) W_V; keys and values are never formed.

The same sums in another order. FLOPs a request and layer, m targets and L events: 4 L d h m; the lesser below m* = d/(h-1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, weights


def attend(inputs: AttentionInputs) -> Tensor:
    """Returns the heads' outputs side by side, [N, D]; zeros for the targets of an empty history.

    Source: arXiv 2511.06077, STCA, order of computation.
    """
    heads = inputs.num_heads
    queries_HND = (inputs.queries @ inputs.w_q).unflatten(1, (heads, -1)).transpose(0, 1)
    keys_HDW = inputs.w_k.unflatten(1, (heads, -1)).permute(1, 2, 0)
    values_HWD = inputs.w_v.unflatten(1, (heads, -1)).transpose(0, 1)
    lifted_HNW = queries_HND @ keys_HDW
    outputs = []
    for start, end, first, last in inputs.spans():
        if start == end:
            outputs.append(inputs.queries.new_zeros((last - first, inputs.queries.shape[1])))
            continue
        tokens = inputs.tokens[start:end]
        mixed = _mix(lifted_HNW[:, first:last], tokens, inputs.scale, inputs.bias_of(start, end))
        outputs.append((mixed @ values_HWD).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def _mix(lifted_HMW: Tensor, tokens_LW: Tensor, scale: float, bias_HL: Tensor) -> Tensor:
    heads, targets, width = lifted_HMW.shape
    flat = lifted_HMW.reshape(heads * targets, width)
    logits = scale * (flat @ tokens_LW.t()).unflatten(0, (heads, targets)) + bias_HL
    mixed: Tensor = (weights(logits).flatten(0, 1) @ tokens_LW).unflatten(0, (heads, targets))
    return mixed
