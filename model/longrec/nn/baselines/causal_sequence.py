"""Stack of layers that events and targets pass together, for models that are quadratic in length.

Shape letters: T packed events, N packed targets, S of both, D width, H heads, K head width, P
projections of a token, G requests of a group, L events of its longest request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.fused.paths import available
from longrec.nn.padding import PaddedRows, scatter_groups, similar_requests
from longrec.nn.target_attention import Segments

SequenceLayer: TypeAlias = Callable[[Tensor, Segments], Tensor]
"""(tokens, segments) to the tokens of the next layer. The events precede the targets."""
HistoryAttention: TypeAlias = Callable[[Tensor], Tensor]
"""[G, L, P, H, K] of padded histories to [G, L, H, K], causal."""
GroupAttention: TypeAlias = Callable[[Tensor, Tensor, PaddedRows], Tensor]
"""(events, targets, rows of the events) of a group of requests to the attention of its targets."""
KERNEL_HEAD_WIDTHS = (16, 32, 64, 128)
"""Head widths that the kernels of causal attention take."""


class CausalSequenceModel(nn.Module):
    """z of every target; called like STCA, with gaps unused.

    Each target acts as the last token of its request: it sees the history, but no other target.

    Args:
        config: number of layers, width.
        layer: makes one SequenceLayer.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: Callable[[ModelConfig], nn.Module],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z; arguments as in STCA.forward."""
        tokens = torch.cat([events, targets])
        for block in self.blocks:
            tokens = cast("SequenceLayer", block)(tokens, segments)
        z: Tensor = self.norm(tokens[events.shape[0] :])
        return z


def has_kernels(projections: Float[Tensor, "S P H K"]) -> bool:
    """Return whether the kernels of causal attention take these projections."""
    is_supported = projections.element_size() == 2 and projections.shape[3] in KERNEL_HEAD_WIDTHS
    return projections.is_cuda and is_supported and available()


def attend_in_groups(
    projections: Float[Tensor, "S P H K"],
    attend_events: HistoryAttention,
    attend_targets: GroupAttention,
    segments: Segments,
) -> Float[Tensor, "S H K"]:
    """Return the attention of all events and targets, by groups of requests of similar lengths.

    Args:
        projections: P projections of each token by head, the events first.
        attend_events: attention of padded histories.
        attend_targets: attention of padded targets.
        segments: rows of each request.
    """
    num_events = sum(segments.num_events)
    events = projections[:num_events]
    targets = projections[num_events:]
    attended_events = attend_to_own_events(events, attend_events, segments)
    attended_targets = attend_to_histories(events, targets, attend_targets, segments)
    return torch.cat([attended_events, attended_targets])


def attend_to_own_events(
    events: Float[Tensor, "T P H K"],
    attend: HistoryAttention,
    segments: Segments,
) -> Float[Tensor, "T H K"]:
    """Return the attention of every event over the events of its request up to itself.

    Padding follows the events of a request, so a causal mask hides it.

    Args:
        events: P projections of each event by head.
        attend: attention of padded histories.
        segments: rows of each request.
    """
    counts = np.array(segments.num_events)
    cells = counts**2 * events.shape[2]
    parts = []
    groups = []
    for requests in similar_requests(counts, counts > 0, cells):
        rows = PaddedRows.of(counts, requests, events.device)
        parts.append(rows.unpad(attend(rows.gather(events))))
        groups.append(rows)
    return scatter_groups(parts, groups, events[:, 0])


def attend_to_histories(
    events: Float[Tensor, "T P H K"],
    targets: Float[Tensor, "N P H K"],
    attend: GroupAttention,
    segments: Segments,
) -> Float[Tensor, "N H K"]:
    """Return the attention of every target over the history of its request and itself.

    Args:
        events, targets: P projections of each row by head.
        attend: the attention of a group of requests.
        segments: rows of each request.
    """
    num_events = np.array(segments.num_events)
    num_targets = np.array(segments.num_targets)
    cells = (num_events + 1) * num_targets * events.shape[2]
    parts = []
    groups = []
    for requests in similar_requests(num_events, num_targets > 0, cells):
        target_rows = PaddedRows.of(num_targets, requests, events.device)
        event_rows = PaddedRows.of(num_events, requests, events.device)
        histories = event_rows.gather(events)
        attended = attend(histories, target_rows.gather(targets), event_rows)
        parts.append(target_rows.unpad(attended))
        groups.append(target_rows)
    return scatter_groups(parts, groups, targets[:, 0])
