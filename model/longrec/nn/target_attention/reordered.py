"""Reordered: u = (q W_Q) W_K^T, scores u X^T, o = (a X) W_V; the same sums, but keys and values are
never formed.

FLOPs of a request with m targets and L events: 4 L d h m (and 4 m d^2, free of L).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, softmax


def attend(inputs: AttentionInputs) -> Float[Tensor, "N D"]:
    """Returns what the plain order returns, heads side by side; zeros for the targets of an empty
    history.

    Source: arXiv 2511.06077, order of computation.
    """
    segments, heads = inputs.segments, inputs.num_heads
    keys_HKD = inputs.w_k.unflatten(1, (heads, -1)).permute(1, 2, 0)
    values_HDK = inputs.w_v.unflatten(1, (heads, -1)).transpose(0, 1)
    lifted_NHD = (inputs.scaled_queries().transpose(0, 1) @ keys_HKD).transpose(0, 1)
    # split, not slices: see the plain order
    parts = zip(
        lifted_NHD.split(segments.num_targets),
        inputs.tokens.split(segments.num_events),
        inputs.biases(),
        strict=True,
    )
    mixed_NHD = torch.cat([_one_request(*part) for part in parts])
    outputs_NHK: Tensor = (mixed_NHD.transpose(0, 1) @ values_HDK).transpose(0, 1)
    return outputs_NHK.flatten(1)


def _one_request(lifted_MHD: Tensor, tokens_LD: Tensor, bias_HL: Tensor | None) -> Tensor:
    by_head = lifted_MHD.shape[:2]
    logits_MHL = (lifted_MHD.flatten(0, 1) @ tokens_LD.t()).unflatten(0, by_head)
    if bias_HL is not None:
        logits_MHL = logits_MHL + bias_HL
    mixed_MHD: Tensor = (softmax(logits_MHL).flatten(0, 1) @ tokens_LD).unflatten(0, by_head)
    return mixed_MHD
