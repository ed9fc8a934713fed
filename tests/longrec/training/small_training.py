"""A ranker that trains on the small histories within seconds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.training.report import TrainReport
from longrec.training.train import train

SERVED_LENGTH = 64
SEED = 3
MODEL = ModelConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    id_dim=8,
    feature_dim=4,
    mixer_layers=1,
)
LENGTHS = LengthConfig(
    distribution="beta",
    minimum=0,
    mean=32,
    maximum=64,
)


def train_small(
    histories_dir: Path,
    out_dir: Path,
    config: TrainConfig,
    *,
    model: ModelConfig = MODEL,
    seed: int = SEED,
    **options: Any,
) -> TrainReport:
    """Train on the small histories.

    Args:
        histories_dir: the histories.
        out_dir: folder of the bundle.
        config: settings of the training.
        model: configuration of the ranker.
        seed: of the training.
        options: further arguments of longrec.training.train.train.
    """
    return train(
        histories_dir,
        out_dir,
        model,
        lengths=LENGTHS,
        train=config,
        seed=seed,
        **{"served_lengths": [SERVED_LENGTH], **options},
    )


def read_curve(bundle_dir: Path) -> list[dict[str, str]]:
    """Return the rows of a training curve."""
    with open(bundle_dir / "training_curve.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
