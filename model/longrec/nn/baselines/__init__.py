"""Baselines: other models of the history, called like longrec.nn.stca.STCA.

Encoder, head, batches and optimizers are those of STCA. A baseline differs only in how it makes z
of the history.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from longrec.config import ModelConfig


def sequence_model(config: ModelConfig) -> nn.Module:
    """Return the model that makes z of targets and events, by `config.kind`."""
    from longrec.nn.baselines.din import DIN
    from longrec.nn.baselines.hstu import hstu
    from longrec.nn.baselines.mean_pooling import MeanPooling
    from longrec.nn.baselines.sim import RetrieveThenAttend
    from longrec.nn.baselines.target_attention import TargetAttention
    from longrec.nn.baselines.transformer import causal_transformer
    from longrec.nn.stca import STCA

    kinds: dict[str, Callable[[ModelConfig], nn.Module]] = {
        "stca": STCA,
        "mean": MeanPooling,
        "din": DIN,
        "din_sum": DIN,
        "target_attention": TargetAttention,
        "sim": RetrieveThenAttend,
        "transformer": causal_transformer,
        "hstu": hstu,
    }
    return kinds[config.kind](config)
