"""What every order of target-to-history attention reads. Shape letters: R requests, T packed
events, N packed targets, D width, H heads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Segments:
    """Which events and targets belong to which request (see longrec.data.batch for the picture).

    Args:
        event_offsets, target_offsets: int64 [R+1].
        num_events, num_targets: the same as counts per request, on the host: read once a batch, not
            once a layer.
    """

    event_offsets: Int[Tensor, " R1"]
    target_offsets: Int[Tensor, " R1"]
    num_events: list[int]
    num_targets: list[int]

    @classmethod
    def of(
        cls,
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Segments:
        """Returns the segments between the offsets; waits for the device once, unless the host
        knows the counts already.
        """
        if counts is not None:
            return cls(event_offsets, target_offsets, *counts)
        num_events, num_targets = torch.stack(
            [event_offsets.diff(), target_offsets.diff()]
        ).tolist()
        return cls(event_offsets, target_offsets, num_events, num_targets)

    @classmethod
    def counted(
        cls, num_events: Sequence[int], num_targets: Sequence[int], device: torch.device
    ) -> Segments:
        """Returns the segments of these counts, all offsets in one copy to the device, which is not
        waited for.
        """
        offsets = torch.tensor(
            [[0, *itertools.accumulate(counts)] for counts in (num_events, num_targets)]
        )
        events, targets = offsets.to(device, non_blocking=True).unbind()
        return cls(events, targets, list(num_events), list(num_targets))

    @property
    def num_pairs(self) -> int:
        """Number of (target, event) pairs within requests, sum of m L."""
        return sum(
            targets * events
            for targets, events in zip(self.num_targets, self.num_events, strict=True)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries, history tokens and projections of one layer, packed by request.

    Args:
        queries: [N, D], q_i, one row a target.
        tokens: [T, D], X_i, encoded events.
        w_q, w_k, w_v: [D, D], applied as x @ w; head j owns columns j*d_h to (j+1)*d_h.
        num_heads: H; divides D.
        segments: rows of each request.
        bias: [T, H], added to the logits of each head (recency), or None.
    """

    queries: Float[Tensor, "N D"]
    tokens: Float[Tensor, "T D"]
    w_q: Float[Tensor, "D D"]
    w_k: Float[Tensor, "D D"]
    w_v: Float[Tensor, "D D"]
    num_heads: int
    segments: Segments
    bias: Float[Tensor, "T H"] | None = None

    def scaled_queries(self) -> Float[Tensor, "N H K"]:
        """Returns q W_Q / sqrt(d_h) by head."""
        head_width = self.queries.shape[1] // self.num_heads
        by_head: Tensor = (self.queries @ self.w_q * head_width**-0.5).unflatten(
            1, (self.num_heads, head_width)
        )
        return by_head

    def biases(self) -> list[Tensor | None]:
        """Returns the bias of each request's events as [H, L], or None for each."""
        if self.bias is None:
            return [None] * len(self.segments.num_events)
        return [part.t() for part in self.bias.split(self.segments.num_events)]


def keys_values_weight(
    w_k: Float[Tensor, "*M D D"], w_v: Float[Tensor, "*M D D"], num_heads: int
) -> Float[Tensor, "*M D D2"]:
    """Returns W, so that rows @ W are keys and values side by side in each head, [H, 2, K]: what
    one head of one event needs lies
    together in memory, which on a GPU is a line of it at K = 32 in 16 bits."""
    weight: Tensor = torch.stack(
        [w.unflatten(-1, (num_heads, -1)) for w in (w_k, w_v)], dim=-2
    ).flatten(-3)
    return weight


def softmax(logits: Float[Tensor, "... L"]) -> Float[Tensor, "... L"]:
    """Returns the softmax over events, computed in at least float32; no events, no weights (an
    empty sum is 0).
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    return torch.softmax(logits, dim=-1, dtype=kind).to(logits.dtype)
