"""The trainer: how many steps its learning rate decays over."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.config import TrainConfig
from longrec.training.trainer import MIN_TIMED_STEPS, Trainer
from tests.longrec.nn import builders

NUM_STEPS = 1_000


def peak_shares(max_seconds: float, *, step: int, seconds: float) -> float:
    """Return the share of the peak learning rate of the step after `step`."""
    config = TrainConfig(max_seconds=max_seconds, learning_rate=1.0, device="cpu")
    trainer = Trainer(
        builders.ranker().float(),
        config,
        num_steps=NUM_STEPS,
        precision="float32",
        failed_batch=Path("unused"),
    )
    trainer.start()
    trainer.state.step = step
    trainer.state.seconds = seconds
    batch = builders.batch([3, 5], [2, 1])
    trainer.step(batch, batch)
    return float(trainer.optimizers.dense.param_groups[0]["lr"])


def test_the_rate_has_decayed_when_the_time_is_up() -> None:
    assert peak_shares(10, step=99, seconds=10) == pytest.approx(0.1)


def test_half_the_time_is_half_the_decay() -> None:
    half_way = peak_shares(10, step=500, seconds=5)
    assert half_way == pytest.approx(peak_shares(0, step=500, seconds=5), rel=0.01)
    assert peak_shares(10, step=50, seconds=5) == pytest.approx(half_way, rel=0.05)


def test_the_first_steps_predict_nothing() -> None:
    first = MIN_TIMED_STEPS - 1
    assert peak_shares(1, step=first, seconds=1) == peak_shares(0, step=first, seconds=1)
