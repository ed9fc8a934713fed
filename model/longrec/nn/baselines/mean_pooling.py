"""Mean pooling: the interest of a request is the mean of its event tokens, for every target.

o = (1/L) sum_j x_j (zeros for an empty history);  z = SwiGLUFFN([o | x_t] W_Z). FLOPs of the mean:
L d.

Source: the averaged history of the YouTube candidate model (Covington et al. 2016, section 3.2).

Shape letters: T packed events, N packed targets, D width, R requests, L events of one request.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.baselines.output_projection import OutputProjection
from longrec.nn.target_attention import Segments


class MeanPooling(nn.Module):
    """z of every target; called like STCA, with gaps unused."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.join = OutputProjection(config)

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z; arguments as in STCA.forward."""
        interest = mean_of_events(events, segments)
        counts = segments.target_offsets.diff()
        interest_by_target = interest.repeat_interleave(
            counts,
            dim=0,
            output_size=targets.shape[0],
        )
        z: Tensor = self.join(interest_by_target, targets)
        return z


def mean_of_events(events: Float[Tensor, "T D"], segments: Segments) -> Float[Tensor, "R D"]:
    """Return the mean of each request's events, at least float32; zeros for an empty history."""
    num_events, width = events.shape
    dtype = torch.promote_types(events.dtype, torch.float32)
    lengths = segments.event_offsets.diff()
    requests = torch.arange(len(lengths), device=events.device)
    request_of_event = requests.repeat_interleave(lengths, output_size=num_events)
    zeros = torch.zeros(
        (len(lengths), width),
        dtype=dtype,
        device=events.device,
    )
    sums = zeros.index_add(0, request_of_event, events.to(dtype))
    return sums / lengths.clamp(min=1)[:, None]
