"""The trainer: the steps that its learning rate decays over, and the batches that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.histories import Histories
from longrec.nn.item_rates import item_values
from longrec.training import encoded_cache, loop
from longrec.training.curve import CurveRow
from longrec.training.trainer import MIN_TIMED_STEPS, BatchPair, Trainer
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
    trainer.step([(batch, batch)])
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


def test_training_reads_item_rates_from_before_its_requests_and_keeps_those_of_the_end(
    histories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, encoded = encoded_cache.encode(Histories.open(histories_dir), tmp_path / "encoded")
    model = ModelConfig(width=16, num_heads=2, id_dim=8, item_rates=True)
    ranker = loop.make_ranker(model, encoder, 1)
    batches = []
    step = Trainer.step

    def step_and_keep(trainer: Trainer, pairs: Sequence[BatchPair]) -> list[CurveRow]:
        batches.extend(batch for _, batch in pairs)
        return step(trainer, pairs)

    monkeypatch.setattr(Trainer, "step", step_and_keep)
    train = TrainConfig(max_steps=3, device="cpu", tensorboard=False)
    loop.fit(ranker, encoded, LengthConfig("full"), train, seed=1, out_dir=tmp_path)
    assert len(batches) == train.max_steps
    before = loop.set_item_rates(ranker, encoded).target_rates
    assert before is not None
    known = {row.tobytes() for row in before}
    for batch in batches:
        assert {row.tobytes() for row in batch.target_rates.numpy()} <= known
    positions, _ = encoded.targets_of(encoded.requests("train"))
    items = torch.from_numpy(encoded.target_items[positions])
    at_end = ranker.item_rates.of_values[
        item_values(items, ranker.item_table) + ranker.item_rates.starts
    ]
    assert at_end.abs().sum() > 0
    assert not np.allclose(before[positions], at_end.numpy())
