"""Reordered: u = (q W_Q) W_K^T, scores u X^T, o = (a X) W_V; keys and values are never formed.

The sums are those of the plain order. FLOPs with m targets and L events: 4 L d h m, and 4 m d^2
whatever L is.

Shape letters: T packed events, N packed targets, L events and M targets of one request, D width,
H heads, K head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention.inputs import AttentionInputs, Dropout, softmax


def attend(inputs: AttentionInputs) -> Float[Tensor, "N D"]:
    """Return the output of the plain order, heads side by side.

    Targets of an empty history get zeros.

    Source: arXiv 2511.06077, order of computation.
    """
    segments = inputs.segments
    lifted_NHD = lift_queries(inputs.scaled_queries(), inputs.w_k)
    # split, not slices: see longrec.nn.target_attention.reference.
    requests = zip(
        lifted_NHD.split(segments.num_targets),
        inputs.tokens.split(segments.num_events),
        inputs.biases(),
        strict=True,
    )
    mixed_NHD = torch.cat([_attend_one_request(*request, inputs.dropout) for request in requests])
    return project_values(mixed_NHD, inputs.w_v)


def lift_queries(
    queries_NHK: Float[Tensor, "N H K"], w_k: Float[Tensor, "D D"]
) -> Float[Tensor, "N H D"]:
    """Return u = q W_K^T of every head; its product with X is that of the query with the keys."""
    num_heads = queries_NHK.shape[1]
    keys_HKD = w_k.unflatten(1, (num_heads, -1)).permute(1, 2, 0)
    lifted_HND: Tensor = queries_NHK.transpose(0, 1) @ keys_HKD
    return lifted_HND.transpose(0, 1)


def project_values(
    mixed_NHD: Float[Tensor, "N H D"], w_v: Float[Tensor, "D D"]
) -> Float[Tensor, "N D"]:
    """Return (a X) W_V, heads side by side, from the weighted sum of events a X of every head."""
    num_heads = mixed_NHD.shape[1]
    values_HDK = w_v.unflatten(1, (num_heads, -1)).transpose(0, 1)
    outputs_HNK: Tensor = mixed_NHD.transpose(0, 1) @ values_HDK
    return outputs_HNK.transpose(0, 1).flatten(1)


def _attend_one_request(
    lifted_MHD: Tensor,
    tokens_LD: Tensor,
    bias_HL: Tensor | None,
    dropout: Dropout | None,
) -> Tensor:
    by_head = lifted_MHD.shape[:2]
    logits = lifted_MHD.flatten(0, 1) @ tokens_LD.t()
    logits_MHL = logits.unflatten(0, by_head)
    if bias_HL is not None:
        logits_MHL = logits_MHL + bias_HL
    weights = softmax(logits_MHL, dropout).flatten(0, 1)
    mixed_MHD: Tensor = (weights @ tokens_LD).unflatten(0, by_head)
    return mixed_MHD
