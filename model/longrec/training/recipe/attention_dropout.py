"""Dropout of attention weights: turned on for a training, and refused where nothing would do it."""

from __future__ import annotations

import torch

from longrec.errors import ConfigError
from longrec.nn.baselines.target_attention import TargetAttention
from longrec.nn.dropout import StepDropout
from longrec.nn.fused import paths as fused_paths
from longrec.nn.ranker import Ranker
from longrec.nn.stca_layer import STCALayer


def start_attention_dropout(ranker: Ranker, dropout: StepDropout, device: torch.device) -> None:
    """Let the layers of a ranker drop attention weights in training.

    Args:
        ranker: on the device.
        dropout: of the training.
        device: of the training.

    Raises:
        ConfigError: no layer can, or kernels without dropout would run.
    """
    if device.type == "cuda" and fused_paths.available():
        raise ConfigError(
            "train.attention_dropout has no GPU kernel",
            found=f"{dropout.attention} on the device {device.type}",
            fix="Set train.attention_dropout=0, or train.device=cpu.",
        )
    layers = _layers(ranker)
    if not layers:
        raise ConfigError(
            "this model has no dropout of attention",
            found=f"model.kind={ranker.config.kind}",
            expected="stca, target_attention or sim",
            fix="Set train.attention_dropout=0.",
        )
    for layer in layers:
        layer.attention_dropout = dropout.drop_attention


def stop_attention_dropout(ranker: Ranker) -> None:
    """Let the layers of a ranker keep all attention weights."""
    for layer in _layers(ranker):
        layer.attention_dropout = None


def _layers(ranker: Ranker) -> list[STCALayer | TargetAttention]:
    """Return the layers whose attention weights may be dropped."""
    kinds = (STCALayer, TargetAttention)
    return [module for module in ranker.modules() if isinstance(module, kinds)]
