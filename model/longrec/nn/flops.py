"""Counted FLOPs of the models: matrix products of one forward pass of one request.

A multiply-add counts as two FLOPs.

Formula letters: L events, m targets, d width, h heads, r FFN ratio, M layers.
"""

from __future__ import annotations

import dataclasses

from longrec.config import ModelConfig
from longrec.nn.target_attention import cheaper_order

TRAINING_FLOPS_FACTOR = 3.0
"""FLOPs of a training step over those of its forward pass: a backward pass takes twice as many."""


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

    The fusion of the event tokens and the model that reads them are counted, head and embeddings
    are not. Causal attention counts as half of the full matrix.

    Args:
        config: of the model.
        num_events, num_targets: L and m, or their means. The mean L gives too small a number for
            the kinds that are quadratic in L (transformer, hstu).
    """
    fusion = 0.0
    if config.fusion:
        fusion = num_events * (_ffn(config) + 4 * config.ffn_ratio * config.width**2)
    if config.kind == "stca":
        return fusion + _stca_total(config, num_events, num_targets)
    if config.kind in ("transformer", "hstu"):
        return fusion + _causal(config, num_events, num_targets)
    output = num_targets * (4 * config.width**2 + _ffn(config))
    baseline = _pooling(config, num_events, num_targets) + output
    return fusion + baseline


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
    # W_Q and W_O; the reordered attention also multiplies rows of targets by W_K and W_V.
    num_products = 2 if _is_plain(config, num_targets) else 4
    return num_products * 2 * config.width**2


def _query_per_target(config: ModelConfig, num_targets: float) -> int:
    """Return the FLOPs of STCA for one target that do not depend on the events."""
    depth = config.num_layers
    ffn = _ffn(config)
    # Rows of width d that enter a fusion: first those of W_Z, then those of each layer's W_C.
    num_inputs = depth + 1
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
    """Return the total of `stca_flops` for a fractional number of events: it is linear in L."""
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
        # The layers of the activation unit: 4 d to d, d to d/2, d/2 to 1.
        unit_per_pair = 8 * width**2 + width**2 + width
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
    per_row = 10 * width**2  # U, V, Q, K and the output of hstu
    if config.kind == "transformer":
        per_row = 8 * width**2 + _ffn(config)  # Q, K, V, output and FFN
    rows = num_events + num_targets
    events_to_events = 2 * num_events**2 * width  # half of the matrix
    targets_to_events = 4 * num_events * num_targets * width
    targets_to_themselves = 4 * num_targets * width
    per_layer = events_to_events + targets_to_events + targets_to_themselves
    attention = config.num_layers * per_layer
    return config.num_layers * rows * per_row + attention
