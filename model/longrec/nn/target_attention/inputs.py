"""Inputs of every order of target-to-history attention.

Shape letters: R requests, T packed events, N packed targets, D width, H heads, K head width,
M layers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Dropout: TypeAlias = Callable[[Tensor], Tensor]
"""Function that zeroes a share of softmax weights and scales the rest up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segments:
    """Events and targets of each request (see the figure in longrec.data.batch).

    Args:
        event_offsets, target_offsets: int64 [R+1].
        num_events, num_targets: counts of each request, on the host, so that no layer waits for the
            device.
    """

    event_offsets: Int[Tensor, " R1"]
    target_offsets: Int[Tensor, " R1"]
    num_events: list[int]
    num_targets: list[int]

    @classmethod
    def from_offsets(
        cls,
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Segments:
        """Return the segments between the offsets.

        Without `counts` the host waits for the device once.

        Args:
            event_offsets, target_offsets: int64 [R+1].
            counts: events and targets of each request, if the host knows them.
        """
        if counts is not None:
            return cls(event_offsets, target_offsets, *counts)
        both = torch.stack([event_offsets.diff(), target_offsets.diff()])
        num_events, num_targets = both.tolist()
        return cls(event_offsets, target_offsets, num_events, num_targets)

    @classmethod
    def from_counts(
        cls,
        num_events: Sequence[int],
        num_targets: Sequence[int],
        device: torch.device,
    ) -> Segments:
        """Return the segments of these counts; they are copied to the device asynchronously."""
        event_ends = itertools.accumulate(num_events)
        target_ends = itertools.accumulate(num_targets)
        offsets = torch.tensor([[0, *event_ends], [0, *target_ends]])
        events, targets = offsets.to(device, non_blocking=True).unbind()
        return cls(
            events,
            targets,
            list(num_events),
            list(num_targets),
        )

    @property
    def num_pairs(self) -> int:
        """Number of (target, event) pairs within requests, sum of m L."""
        counts = zip(self.num_targets, self.num_events, strict=True)
        return sum(targets * events for targets, events in counts)


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
        dropout: of the softmax weights, in training; None for none.
    """

    queries: Float[Tensor, "N D"]
    tokens: Float[Tensor, "T D"]
    w_q: Float[Tensor, "D D"]
    w_k: Float[Tensor, "D D"]
    w_v: Float[Tensor, "D D"]
    num_heads: int
    segments: Segments
    bias: Float[Tensor, "T H"] | None = None
    dropout: Dropout | None = None

    def scaled_queries(self) -> Float[Tensor, "N H K"]:
        """Return q W_Q / sqrt(d_h) by head."""
        scaled = scaled_queries(self.queries, self.w_q, self.num_heads)
        by_head: Tensor = scaled.unflatten(1, (self.num_heads, -1))
        return by_head

    def biases(self) -> list[Tensor | None]:
        """Return the bias of each request's events, R of [H, L], or None for each."""
        if self.bias is None:
            return [None] * len(self.segments.num_events)
        return [part.t() for part in self.bias.split(self.segments.num_events)]


def scaled_queries(
    queries: Float[Tensor, "N D"],
    w_q: Float[Tensor, "D D"],
    num_heads: int,
) -> Float[Tensor, "N D"]:
    """Return q W_Q / sqrt(d_h), heads side by side."""
    head_width = queries.shape[1] // num_heads
    scaled: Tensor = queries @ w_q * head_width**-0.5
    return scaled


def keys_values_weight(
    w_k: Float[Tensor, "*M D D"],
    w_v: Float[Tensor, "*M D D"],
    num_heads: int,
) -> Float[Tensor, "*M D D2"]:
    """Return [W_K | W_V] with its columns in the order [H, 2, K].

    Keys and values of one head of an event are then adjacent: one line of GPU memory at K = 32 in
    16 bits.
    """
    keys = w_k.unflatten(-1, (num_heads, -1))
    values = w_v.unflatten(-1, (num_heads, -1))
    weight: Tensor = torch.stack([keys, values], dim=-2).flatten(-3)
    return weight


def softmax(
    logits: Float[Tensor, "... L"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "... L"]:
    """Return the softmax over events, computed in at least float32.

    An empty history has no weights, so its weighted sum is 0.

    Args:
        logits: of each event.
        dropout: of the weights, as `AttentionInputs` has it.
    """
    compute_dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.softmax(logits, dim=-1, dtype=compute_dtype).to(logits.dtype)
    return weights if dropout is None else dropout(weights)
