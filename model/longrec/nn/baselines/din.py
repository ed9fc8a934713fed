"""DIN: a small network weighs every event against the target, and the events are summed.

    w_ij = MLP([x_j | x_t | x_j - x_t | x_j * x_t]) (+ gap bias),  hidden widths d and d/2, SiLU
    o_i = sum_j w_ij x_j              `din_sum`, as in the paper
    o_i = sum_j softmax_j(w_ij) x_j   `din`
    z = SwiGLUFFN([o | x_t] W_Z)

Without a softmax the intensity of an interest enters z. The network runs for each (event, target)
pair, so targets share nothing. A pair takes 8 d^2 + d^2 + d FLOPs in its three layers.

Source: arXiv 1706.06978, section 4.3 and equation 3. The paper's PReLU or Dice is SiLU here, as
everywhere else in this model.

Shape letters: T packed events, N packed targets, P (target, event) pairs of one request, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.nn.baselines.output_projection import OutputProjection
from longrec.nn.layers import linear
from longrec.nn.stca_layer import gap_bias_of_events, gap_bias_table
from longrec.nn.target_attention import Segments


class DIN(nn.Module):
    """z of every target; called like STCA. The kind `din` normalizes the weights by a softmax."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.unit = nn.Sequential(  # the paper's activation unit
            linear(4 * width, width, bias=True),
            nn.SiLU(),
            linear(width, width // 2, bias=True),
            nn.SiLU(),
            linear(width // 2, 1, bias=True),
        )
        self.gap_bias = gap_bias_table(config, 1)
        self.join = OutputProjection(config)
        self.is_normalized = config.kind == "din"

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z; arguments as in STCA.forward."""
        target_index, event_index = pairs(segments)
        weights = self.activation_weights(targets[target_index], events[event_index])
        bias = gap_bias_of_events(self.gap_bias, gaps)
        if bias is not None:
            weights = weights + bias[event_index, 0]
        if self.is_normalized:
            weights = softmax_by_target(weights, target_index, targets.shape[0])
        zeros = torch.zeros_like(targets, dtype=weights.dtype)
        weighted = weights[:, None] * events[event_index]
        interest = zeros.index_add(0, target_index, weighted)
        z: Tensor = self.join(interest.to(targets.dtype), targets)
        return z

    def activation_weights(
        self,
        targets: Float[Tensor, "P D"],
        events: Float[Tensor, "P D"],
    ) -> Float[Tensor, " P"]:
        """Return the activation unit's weight of every pair, at least float32."""
        inputs = [events, targets, events - targets, events * targets]
        logits: Tensor = self.unit(torch.cat(inputs, dim=1)).squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pairs(segments: Segments) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Return the target and the event of every pair within a request, by target, int64 [P] each.

    For one request with 2 targets and 3 events: targets 0 0 0 1 1 1, events 0 1 2 0 1 2.
    """
    num_targets = sum(segments.num_targets)
    target_counts = segments.target_offsets.diff()
    events_of_target = segments.event_offsets.diff().repeat_interleave(
        target_counts,
        output_size=num_targets,
    )
    first_event = segments.event_offsets[:-1].repeat_interleave(
        target_counts,
        output_size=num_targets,
    )
    device = events_of_target.device
    target = torch.arange(num_targets, device=device).repeat_interleave(
        events_of_target,
        output_size=segments.num_pairs,
    )
    first_pair = events_of_target.cumsum(0) - events_of_target
    pair = torch.arange(segments.num_pairs, device=device)
    event = pair - first_pair[target] + first_event[target]
    return target, event


def softmax_by_target(
    logits: Float[Tensor, " P"],
    target: Int[Tensor, " P"],
    num_targets: int,
) -> Float[Tensor, " P"]:
    """Return the softmax over the pairs of each target."""
    detached = logits.detach()
    # A target without events stays at -inf, which no pair reads.
    lowest = detached.new_full((num_targets,), -torch.inf)
    maximum = lowest.scatter_reduce(0, target, detached, "amax")
    exponentials = (logits - maximum[target]).exp()
    sums = torch.zeros_like(maximum).index_add(0, target, exponentials)
    return exponentials / sums[target]
