"""Target-to-history attention: every target of a request attends to that request's history and to
nothing else.

The orders of computation give equal results; `attend` takes the cheaper one. There is no padding
and no tensor of all
(target, event) pairs times the width.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention import fused, reference, reordered
from longrec.nn.target_attention.inputs import AttentionInputs, Segments, keys_values_weight

Order = Literal["auto", "plain", "reordered"]


def choose(num_targets: float, width: int, num_heads: int) -> Literal["plain", "reordered"]:
    """Returns the order with fewer FLOPs for m targets on one history: reordered below m* =
    d/(h-1).

    The length does not matter: both counts are proportional to it (4 L d^2 + 4 L d m against 4 L d
    h m).
    """
    return "reordered" if num_targets * (num_heads - 1) < width else "plain"


def attend(inputs: AttentionInputs, order: Order = "auto") -> Float[Tensor, "N D"]:
    """Returns the attention output of every target, heads side by side, before W_O; zeros for an
    empty history.

    Args:
        inputs: of one layer.
        order: `auto` weighs the targets of each request by its events, which is where the cost is.

    Source: arXiv 2511.06077; per head softmax(q W_Q (X W_K)^T / sqrt(d_h)) X W_V.
    """
    if fused.usable(inputs.tokens, inputs.num_heads):
        return fused.memory(inputs, order).attend(inputs.scaled_queries().flatten(1))
    if order == "auto":
        mean_targets = inputs.segments.num_pairs / max(1, inputs.tokens.shape[0])
        order = choose(mean_targets, inputs.queries.shape[1], inputs.num_heads)
    return reference.attend(inputs) if order == "plain" else reordered.attend(inputs)


__all__ = [
    "AttentionInputs",
    "Order",
    "Segments",
    "attend",
    "choose",
    "fused",
    "keys_values_weight",
    "reference",
    "reordered",
]
