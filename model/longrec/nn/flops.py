"""Counted FLOPs of the stack: matrix products of one forward pass of one request, two FLOPs a multiply-add."""

from __future__ import annotations

import dataclasses

from longrec.config import ModelConfig
from longrec.nn.target_attention import choose


@dataclasses.dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one request.

    Args:
        encode: history FFNs, 6 r L d^2 a layer; free of targets, shared by all of them.
        attend: what attention spends in proportion to the events: 4 L d^2 + 4 L d m (plain) or 4 L d h m (reordered) a layer.
        query: everything else: query FFNs, projections, fusion, z; proportional to the targets, free of the events.
    """

    encode: int
    attend: int
    query: int

    @property
    def total(self) -> int:
        return self.encode + self.attend + self.query


def stca_flops(config: ModelConfig, num_events: int, num_targets: int) -> Flops:
    """Returns the FLOPs of `num_targets` (m) targets that share a history of `num_events` (L).

    Source: arXiv 2511.06077, order of computation; counted by torch.utils.flop_counter in tests.
    """
    width, heads, depth, ffn = config.width, config.num_heads, config.num_layers, 6 * config.ffn_ratio * config.width**2
    plain = (choose(num_targets, width, heads) if config.attention == "auto" else config.attention) == "plain"
    per_event = 4 * width**2 + 4 * width * num_targets if plain else 4 * width * heads * num_targets
    projections = 4 * width**2 if plain else 8 * width**2
    fused = sum((number if config.query_fusion else 1) + 1 for number in range(1, depth)) + depth + 1
    return Flops(encode=depth * num_events * ffn, attend=depth * num_events * per_event,
                 query=num_targets * (depth * (ffn + projections) + ffn + 2 * fused * width**2))
