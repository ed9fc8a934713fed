"""Counted FLOPs of the models: matrix products of one forward pass of one request.

A multiply-add counts as two FLOPs.

Formula letters: L events, m targets, d width, h heads, r FFN ratio, M layers.
"""

from __future__ import annotations

import dataclasses

from longrec.config import ModelConfig
from longrec.nn.target_attention import cheaper_order


@dataclasses.dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one request through STCA.

    Args:
        encode: FFNs of the history, 6 r L d^2 a layer; shared by all targets.
        attend: part of the attention that is proportional to the events: 4 L d^2 + 4 L d m (plain)
            or 4 L d h m (reordered) a layer.
        query: everything else (query FFNs, projections, fusion, z); proportional to the targets.
    """

    encode: int
    attend: int
    query: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.encode + self.attend + self.query


def stca_flops(
    config: ModelConfig,
    num_events: int,
    num_targets: int,
) -> Flops:
    """Return the FLOPs of targets that share one history.

    Args:
        config: of the model.
        num_events, num_targets: L and m.

    Source: arXiv 2511.06077, order of computation; counted by torch.utils.flop_counter in tests.
    """
    layer_events = config.num_layers * num_events
    per_event = _attend_per_event(config, num_targets)
    return Flops(
        encode=layer_events * _ffn(config),
        attend=round(layer_events * per_event),
        query=num_targets * _query_per_target(config, num_targets),
    )


def forward_flops(
    config: ModelConfig,
    num_events: float,
    num_targets: float,
) -> float:
    """Return the FLOPs of one request through a model of any `config.kind`.

    They hold the fusion of the event tokens and the model that reads them, but no head and no
    embeddings. Causal attention counts as half of the full matrix.

    Args:
        config: of the model.
        num_events, num_targets: L and m. Means give means, except for the quadratic kinds, which
            need more than that at mean L.
    """
    fusion = 0.0
    if config.fusion:
        fusion = num_events * (_ffn(config) + 4 * config.ffn_ratio * config.width**2)
    if config.kind == "stca":
        return fusion + _stca_total(config, num_events, num_targets)
    if config.kind in ("transformer", "hstu"):
        return fusion + _causal(config, num_events, num_targets)
    output = num_targets * (4 * config.width**2 + _ffn(config))
    return fusion + (_pooling(config, num_events, num_targets) + output)


def _ffn(config: ModelConfig) -> int:
    """Return the FLOPs of a SwiGLU FFN for one row."""
    return 6 * config.ffn_ratio * config.width**2


def _is_plain(config: ModelConfig, num_targets: float) -> bool:
    if config.attention != "auto":
        return config.attention == "plain"
    return cheaper_order(num_targets, config.width, config.num_heads) == "plain"


def _attend_per_event(config: ModelConfig, num_targets: float) -> float:
    """Return the FLOPs of one layer's attention for one event."""
    if _is_plain(config, num_targets):
        return 4 * config.width**2 + 4 * config.width * num_targets
    return 4 * config.width * config.num_heads * num_targets


def _projections_per_target(config: ModelConfig, num_targets: float) -> int:
    """Return the FLOPs of one layer's projections of one target."""
    num_products = 4 if _is_plain(config, num_targets) else 8
    return num_products * config.width**2


def _query_per_target(config: ModelConfig, num_targets: float) -> int:
    """Return the FLOPs of STCA for one target that do not depend on the events."""
    depth = config.num_layers
    ffn = _ffn(config)
    num_inputs = depth + 1  # of z; then those of each query from the second on
    for layer in range(1, depth):
        num_outputs = layer if config.query_fusion else 1
        num_inputs += num_outputs + 1
    fusion = 2 * num_inputs * config.width**2
    per_layer = ffn + _projections_per_target(config, num_targets)
    return depth * per_layer + ffn + fusion


def _stca_total(
    config: ModelConfig,
    num_events: float,
    num_targets: float,
) -> float:
    """Return the total of `stca_flops` between whole numbers of events."""
    targets = round(num_targets)
    without_events = stca_flops(config, 0, targets).total
    per_event = stca_flops(config, 1, targets).total - without_events
    return without_events + num_events * per_event


def _pooling(
    config: ModelConfig,
    num_events: float,
    num_targets: float,
) -> float:
    """Return the FLOPs of a baseline that pools the events into one interest per target."""
    width = config.width
    num_pairs = num_events * num_targets
    if config.kind == "mean":
        return num_events * width
    if config.kind in ("din", "din_sum"):
        unit_per_pair = 9 * width**2 + width
        sums = 2 * num_pairs * width
        return num_pairs * unit_per_pair + sums
    if config.kind == "target_attention":
        attention = num_events * _attend_per_event(config, num_targets)
        projections = num_targets * _projections_per_target(config, num_targets)
        return attention + projections
    # sim: keys, values and scores of all events, then attention to the retrieved ones
    retrieved = min(config.retrieved, num_events)
    per_event = 4 * width**2 + 2 * width * num_targets
    per_target = 4 * width**2 + 2 * width * retrieved
    return num_events * per_event + num_targets * per_target


def _causal(
    config: ModelConfig,
    num_events: float,
    num_targets: float,
) -> float:
    """Return the FLOPs of a causal sequence model, targets as its last tokens."""
    width = config.width
    per_row = 10 * width**2
    if config.kind == "transformer":
        per_row = 8 * width**2 + _ffn(config)
    rows = num_events + num_targets
    history = 2 * num_events**2 * width
    pairs = 4 * num_events * num_targets * width
    own = 4 * num_targets * width
    attention = config.num_layers * (history + pairs + own)
    return config.num_layers * rows * per_row + attention
