"""Counted FLOPs of the stack: matrix products of one forward pass of one request, two FLOPs a
multiply-add.
"""

from __future__ import annotations

import dataclasses

from longrec.config import ModelConfig
from longrec.nn.target_attention import choose


@dataclasses.dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one request.

    Args:
        encode: history FFNs, 6 r L d^2 a layer; free of targets, shared by all of them.
        attend: what attention spends in proportion to the events: 4 L d^2 + 4 L d m (plain) or 4 L
            d h m (reordered) a layer.
        query: everything else: query FFNs, projections, fusion, z; proportional to the targets,
            free of the events.
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
    width, heads, depth, ffn = (
        config.width,
        config.num_heads,
        config.num_layers,
        6 * config.ffn_ratio * config.width**2,
    )
    plain = (
        choose(num_targets, width, heads) if config.attention == "auto" else config.attention
    ) == "plain"
    per_event = 4 * width**2 + 4 * width * num_targets if plain else 4 * width * heads * num_targets
    projections = 4 * width**2 if plain else 8 * width**2
    fused = (
        sum((number if config.query_fusion else 1) + 1 for number in range(1, depth)) + depth + 1
    )
    return Flops(
        encode=depth * num_events * ffn,
        attend=depth * num_events * per_event,
        query=num_targets * (depth * (ffn + projections) + ffn + 2 * fused * width**2),
    )


def forward_flops(config: ModelConfig, num_events: float, num_targets: float) -> float:
    """Returns the FLOPs of one request through any `config.kind`: fusion of the event tokens and
    what reads them, head and embeddings not.

    Causal attention counts as half of the full matrix.

    Args:
        config: of the model.
        num_events, num_targets: L and m; means give means, but for the quadratic kinds, which need
            more than that at mean L.
    """
    width, ffn, rows = (
        config.width,
        6 * config.ffn_ratio * config.width**2,
        num_events + num_targets,
    )
    fusion = num_events * (ffn + 4 * config.ffn_ratio * width**2) if config.fusion else 0.0
    join = num_targets * (4 * width**2 + ffn)
    plain = (
        choose(num_targets, width, config.num_heads)
        if config.attention == "auto"
        else config.attention
    ) == "plain"
    attended = (
        4 * width**2 + 4 * width * num_targets
        if plain
        else 4 * width * config.num_heads * num_targets
    )
    projected = num_targets * width**2 * (4 if plain else 8)
    quadratic = config.num_layers * (
        2 * num_events**2 * width + 4 * num_events * num_targets * width + 4 * num_targets * width
    )
    unit = num_events * num_targets * (9 * width**2 + width) + 2 * num_events * num_targets * width
    retrieving = num_events * (4 * width**2 + 2 * width * num_targets) + num_targets * (
        4 * width**2 + 2 * width * min(config.retrieved, num_events)
    )
    reading = {
        "mean": num_events * width + join,
        "din": unit + join,
        "din_sum": unit + join,
        "target_attention": num_events * attended + projected + join,
        "sim": retrieving + join,
        "transformer": config.num_layers * rows * (8 * width**2 + ffn) + quadratic,
        "hstu": config.num_layers * rows * 10 * width**2 + quadratic,
    }
    return fusion + (
        _stca(config, num_events, num_targets) if config.kind == "stca" else reading[config.kind]
    )


def _stca(config: ModelConfig, num_events: float, num_targets: float) -> float:
    """The total of `stca_flops` between whole numbers of events and targets."""
    none, one = stca_flops(config, 0, round(num_targets)), stca_flops(config, 1, round(num_targets))
    return none.total + num_events * (one.total - none.total)
