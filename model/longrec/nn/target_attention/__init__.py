"""Target-to-history attention: every target attends to the history of its own request only.

The orders of computation give equal results, and `attend` takes the cheaper one. There is no
padding, and no tensor of all (target, event) pairs times the width.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from longrec.nn.target_attention import fused, padded, reference, reordered
from longrec.nn.target_attention.inputs import AttentionInputs, Segments, keys_values_weight

Order = Literal["auto", "plain", "reordered"]


def cheaper_order(
    num_targets: float,
    width: int,
    num_heads: int,
) -> Literal["plain", "reordered"]:
    """Return the order with fewer FLOPs for m targets on one history.

    Reordered is cheaper below m* = d/(h-1). The length does not matter, since both counts are
    proportional to it: 4 L d^2 + 4 L d m against 4 L d h m.
    """
    return "reordered" if num_targets * (num_heads - 1) < width else "plain"


def attend(inputs: AttentionInputs, order: Order = "auto") -> Float[Tensor, "N D"]:
    """Return the attention output of every target before W_O; zeros for an empty history.

    Args:
        inputs: of one layer.
        order: order of computation; `auto` takes the cheaper one for the mean number of targets of
            an event's request.

    Source: arXiv 2511.06077; per head softmax(q W_Q (X W_K)^T / sqrt(d_h)) X W_V.
    """
    # The kernels have no dropout: `Trainer` refuses it where they would run.
    if inputs.dropout is None and fused.usable(inputs.tokens, inputs.num_heads):
        source = fused.attention_source(inputs, order)
        return source.attend(inputs.scaled_queries().flatten(1))
    if order == "auto":
        num_events = max(1, inputs.tokens.shape[0])
        mean_targets = inputs.segments.num_pairs / num_events
        order = cheaper_order(mean_targets, inputs.queries.shape[1], inputs.num_heads)
    if order == "plain":
        return reference.attend(inputs)
    return padded.attend(inputs) if padded.usable(inputs) else reordered.attend(inputs)


__all__ = [
    "AttentionInputs",
    "Order",
    "Segments",
    "attend",
    "cheaper_order",
    "fused",
    "keys_values_weight",
    "reference",
    "reordered",
]
