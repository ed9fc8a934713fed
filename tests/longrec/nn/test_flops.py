"""Counted FLOPs of a forward pass follow the formula."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from longrec.config import ModelConfig
from longrec.nn.flops import forward_flops
from tests.longrec.nn import builders

KINDS = (
    "stca",
    "mean",
    "din",
    "target_attention",
    "sim",
    "transformer",
    "hstu",
)
WIDTH = 64
NUM_LAYERS = 2
NUM_TARGETS = 5
SHORT = 64
LONG = 128
NUM_MORE_EVENTS = LONG - SHORT


@pytest.mark.parametrize("kind", KINDS)
def test_counted_flops_follow_the_formula(kind: str) -> None:
    options = {
        "kind": kind,
        "width": WIDTH,
        "num_heads": 4,
        "num_layers": NUM_LAYERS,
        "recency": "none",
        "retrieved": 8,
        "attention": "plain",
    }
    model = builders.ranker(**options)
    counted = {}
    for length in (SHORT, LONG):
        batch = builders.batch([length], [NUM_TARGETS])
        with FlopCounterMode(display=False) as counter:
            model(batch)
        counted[length] = counter.get_total_flops()
    config = ModelConfig(**options)  # type: ignore[arg-type]
    long_flops = forward_flops(config, LONG, NUM_TARGETS)
    short_flops = forward_flops(config, SHORT, NUM_TARGETS)
    # the formula leaves out the projections of item and action embeddings
    projections = NUM_MORE_EVENTS * 2 * WIDTH * (2 * 6 + 4 + 2 * 4)
    # a CPU computes the masked half of HSTU's weights, and does not count the Transformer's
    half_of_weights = NUM_LAYERS * 2 * (LONG**2 - SHORT**2) * WIDTH
    masked = {"hstu": half_of_weights, "transformer": -half_of_weights}
    # sums that are no matrix products
    pooled = {
        "din": 2 * NUM_MORE_EVENTS * NUM_TARGETS * WIDTH,
        "mean": NUM_MORE_EVENTS * WIDTH,
    }
    expected = long_flops - short_flops + projections + masked.get(kind, 0) - pooled.get(kind, 0)
    assert counted[LONG] - counted[SHORT] == pytest.approx(expected, rel=0.01)
