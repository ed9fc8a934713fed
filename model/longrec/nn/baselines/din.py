"""DIN: a small network weighs every event against the target; the interest is the weighted sum of
the event tokens.

    w_ij = MLP([x_j | x_t | x_j - x_t | x_j * x_t]) (+ gap bias),  hidden widths d and d/2, SiLU
    o_i = sum_j w_ij x_j  (`din_sum`, the paper's: no softmax, so that the intensity of an interest
    survives)
    o_i = sum_j softmax_j(w_ij) x_j  (`din`);  z = SwiGLUFFN([o | x_t] W_Z)

The network runs for each (event, target) pair: 8 d^2 + d^2 + d FLOPs of a pair, hence no sharing
between targets.
Source: arXiv 1706.06978, section 4.3 and equation 3; the paper's PReLU or Dice is SiLU here, as
everywhere else in this model.

Shape letters: T packed events, N packed targets, P pairs (target, event) of one request, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.config import ModelConfig
from longrec.nn.baselines.join import Join
from longrec.nn.layers import NUM_GAP_BUCKETS, linear
from longrec.nn.target_attention import Segments


class DIN(nn.Module):
    """z of every target; called like STCA. `config.kind` says whether weights pass a softmax."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.unit = nn.Sequential(
            linear(4 * width, width, bias=True),
            nn.SiLU(),
            linear(width, width // 2, bias=True),
            nn.SiLU(),
            linear(width // 2, 1, bias=True),
        )
        self.gap_bias = (
            nn.Parameter(torch.zeros(NUM_GAP_BUCKETS, 1)) if config.recency == "bias" else None
        )
        self.join, self.normalized = Join(config), config.kind == "din"

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
        of_pair = pairs(segments)
        logits = self.weights(targets, events, of_pair)
        if self.gap_bias is not None and gaps is not None:
            logits = logits + functional.embedding(gaps, self.gap_bias)[of_pair[1], 0]
        weights = softmax(logits, of_pair[0], targets.shape[0]) if self.normalized else logits
        interest = torch.zeros_like(targets, dtype=weights.dtype).index_add(
            0, of_pair[0], weights[:, None] * events[of_pair[1]]
        )
        z: Tensor = self.join(interest.to(targets.dtype), targets)
        return z

    def weights(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        of_pair: tuple[Tensor, Tensor],
    ) -> Float[Tensor, " P"]:
        """Returns the activation unit's weight of every pair, at least float32."""
        target, event = targets[of_pair[0]], events[of_pair[1]]
        logits: Tensor = self.unit(
            torch.cat([event, target, event - target, event * target], dim=1)
        ).squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pairs(segments: Segments) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Returns (target, event) of every pair of one request, by target, int64 [P] each."""
    num_events, num_targets = segments.event_offsets.diff(), segments.target_offsets.diff()
    per_target = num_events.repeat_interleave(num_targets, output_size=sum(segments.num_targets))
    first = segments.event_offsets[:-1].repeat_interleave(
        num_targets, output_size=sum(segments.num_targets)
    )
    places = torch.arange(len(per_target), device=per_target.device)
    target = places.repeat_interleave(per_target, output_size=segments.num_pairs)
    starts = per_target.cumsum(0) - per_target
    return target, torch.arange(segments.num_pairs, device=target.device) - starts[target] + first[
        target
    ]


def softmax(
    logits: Float[Tensor, " P"], target: Int[Tensor, " P"], num_targets: int
) -> Float[Tensor, " P"]:
    """Returns the softmax over the pairs of each target."""
    highest = (
        logits.detach()
        .new_full((num_targets,), -torch.inf)
        .scatter_reduce(0, target, logits.detach(), "amax")
    )
    raised = (logits - highest[target]).exp()
    return raised / torch.zeros_like(highest).index_add(0, target, raised)[target]
