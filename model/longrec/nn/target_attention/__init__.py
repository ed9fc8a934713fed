"""Target-to-history attention: every target of a request attends to that request's history, never beyond it.

The orders of computation give equal results; `attend` picks one. Shape letters: R requests, T packed events, N packed targets,
D width, H heads.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from longrec.nn.target_attention import reference, reordered
from longrec.nn.target_attention.inputs import AttentionInputs

Order = Literal["auto", "plain", "reordered"]


def choose(num_targets: int, width: int, num_heads: int) -> Literal["plain", "reordered"]:
    """Returns the order with fewer FLOPs for m targets a request: reordered below m* = d/(h-1) (spec section 2), else plain."""
    return "reordered" if num_targets * (num_heads - 1) < width else "plain"


def attend(inputs: AttentionInputs, order: Order = "auto") -> Tensor:
    """Returns softmax attention of targets over their request's events, heads joined, before W_O: float [N, D].

    Source: arXiv 2511.06077, STCA; per head softmax(q W_Q (X W_K)^T / sqrt(d_h)) X W_V; zeros for an empty history.
    """
    if order == "auto":
        mean_targets = inputs.queries.shape[0] // max(inputs.target_offsets.numel() - 1, 1)
        order = choose(mean_targets, inputs.queries.shape[1], inputs.num_heads)
    return reference.attend(inputs) if order == "plain" else reordered.attend(inputs)


__all__ = ["AttentionInputs", "Order", "attend", "choose", "reference", "reordered"]
