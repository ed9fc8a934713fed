"""Mean pooling: the interest of a request is the mean of its event tokens, the same for every
target; cost L d.

o = (1/L) sum_j x_j (zeros for an empty history);  z = SwiGLUFFN([o | x_t] W_Z).
Source: the averaged history of the YouTube candidate model (Covington et al. 2016, section 3.2).

Shape letters: T packed events, N packed targets, D width, R requests.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.baselines.join import Join
from longrec.nn.target_attention import Segments


class MeanPooling(nn.Module):
    """z of every target; called like STCA (gaps are not used)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.join = Join(config)

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        gaps: Int[Tensor, " T"] | None = None,
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Returns z; arguments as in STCA.forward."""
        segments = Segments.of(event_offsets, target_offsets, counts)
        means = mean(events, segments)
        own = means.repeat_interleave(target_offsets.diff(), dim=0, output_size=targets.shape[0])
        z: Tensor = self.join(own, targets)
        return z


def mean(events: Float[Tensor, "T D"], segments: Segments) -> Float[Tensor, "R D"]:
    """Returns the mean of each request's events, at least float32; zeros for an empty history."""
    kind, lengths = torch.promote_types(events.dtype, torch.float32), segments.event_offsets.diff()
    requests = torch.arange(len(lengths), device=events.device).repeat_interleave(
        lengths, output_size=events.shape[0]
    )
    sums = torch.zeros(len(lengths), events.shape[1], dtype=kind, device=events.device).index_add(
        0, requests, events.to(kind)
    )
    return sums / lengths.clamp(min=1)[:, None]
