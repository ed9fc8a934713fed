"""A training with all settings that keep a state ends with the same bytes after an interruption."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from longrec.config import TrainConfig
from longrec.errors import Stopped
from longrec.training.curve import CurveRow
from tests.longrec.training.small_training import read_curve, train_small

CONFIG = TrainConfig(
    epochs=3,
    token_budget=300,
    max_requests_per_batch=16,
    learning_rate=5e-2,
    embedding_learning_rate=2.0,
    schedule="plateau",
    plateau_factor=0.5,
    redraw_ids=True,
    id_weight_decay=1e-5,
    user_embedding_learning_rate=1.0,
    feature_learning_rate=1e-2,
    id_dropout=0.2,
    attention_dropout=0.1,
    ema_decay=0.8,
    accumulate_steps=2,
    log_every=1,
    device="cpu",
    checkpoint_every=3,
    tensorboard=False,
    validate_every=8,
    patience=0,
)


@pytest.fixture(scope="module")
def whole(validated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    train_small(validated_dir, out, CONFIG)
    return out


def rates_of(out: Path) -> list[str]:
    return [row["learning_rate"] for row in read_curve(out)]


def test_the_rate_of_a_training_falls_when_validations_stall(whole: Path) -> None:
    peak = CONFIG.learning_rate
    rates = sorted({float(rate) for rate in rates_of(whole)})
    assert peak in rates
    assert peak * CONFIG.plateau_factor in rates


@pytest.mark.parametrize("at_step", [4, 17, 24])
def test_interrupted_it_ends_with_the_same_bytes(
    validated_dir: Path, whole: Path, tmp_path: Path, at_step: int
) -> None:
    def listen(row: CurveRow, _: int) -> None:
        if row.step == at_step:
            raise KeyboardInterrupt

    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        train_small(validated_dir, out, CONFIG, on_progress=listen)
    train_small(validated_dir, out, CONFIG)
    assert_equal(out, whole)


def test_stopped_before_a_validation_it_ends_with_the_same_bytes(
    validated_dir: Path, whole: Path, tmp_path: Path
) -> None:
    def listen(row: CurveRow, _: int) -> None:
        if row.step == CONFIG.validate_every - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "bundle"
    with pytest.raises(Stopped, match=f"found step {CONFIG.validate_every} of"):
        train_small(validated_dir, out, CONFIG, on_progress=listen)
    # A setting of speed alone may change.
    train_small(validated_dir, out, dataclasses.replace(CONFIG, checkpoint_every=5))
    assert_equal(out, whole)


def assert_equal(out: Path, whole: Path) -> None:
    """Check that two trainings have the same rates and bytes."""
    assert rates_of(out) == rates_of(whole)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
