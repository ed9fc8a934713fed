"""Dropout of attention in a training: on in its steps, off after it, refused where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.nn.dropout import StepDropout
from longrec.scoring.bundle import Bundle
from longrec.training.recipe.attention_dropout import start_attention_dropout
from tests.longrec.nn import builders
from tests.longrec.training.small_training import MODEL, read_curve, train_small

CPU = torch.device("cpu")
CONFIG = TrainConfig(max_steps=2, log_every=1, device="cpu", tensorboard=False)
DROPOUT = StepDropout(0, 0, 0, 0.1, seed=1, rank=0, device=CPU)


def test_a_training_drops_attention_and_its_bundle_does_not(
    histories_dir: Path, tmp_path: Path
) -> None:
    losses = []
    for share in (0.0, 0.5):
        config = dataclasses.replace(CONFIG, attention_dropout=share)
        out = tmp_path / str(share)
        train_small(histories_dir, out, config)
        losses.append([row["loss"] for row in read_curve(out)])
    assert losses[0][0] != losses[1][0]
    ranker = Bundle.load(tmp_path / "0.5").ranker
    assert all(layer.attention_dropout is None for layer in ranker.stca.layers)


def test_a_model_without_it_is_refused(histories_dir: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, attention_dropout=0.1)
    model = dataclasses.replace(MODEL, kind="mean", recency="token")
    with pytest.raises(ConfigError, match=r"found model.kind=mean; expected stca"):
        train_small(histories_dir, tmp_path / "bundle", config, model=model)


def test_a_device_whose_kernels_have_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.nn.fused.paths.available", lambda: True)
    ranker = builders.ranker()
    with pytest.raises(ConfigError, match=r"no GPU kernel; found 0.1 on the device cuda"):
        start_attention_dropout(ranker, DROPOUT, torch.device("cuda"))
    start_attention_dropout(ranker, DROPOUT, CPU)


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.attention_dropout is a share"):
        TrainConfig(attention_dropout=1.0)
