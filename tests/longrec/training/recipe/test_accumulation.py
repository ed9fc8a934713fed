"""Several batches of one step give the gradients of one batch with all their requests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.errors import ConfigError, LongrecError
from longrec.training import encoded_cache, loop
from longrec.training.curve import CurveRow
from longrec.training.trainer import BatchPair, Trainer
from tests.longrec.training.small_training import LENGTHS, MODEL, SEED, train_small

CONFIG = TrainConfig(
    epochs=2,
    token_budget=600,
    learning_rate=5e-3,
    log_every=1,
    device="cpu",
    tensorboard=False,
    accumulate_steps=3,
)
SPLITS = ([0, 8], [0, 5, 6, 8])
"""Bounds of the batches of a step of eight requests."""
Data = tuple[encoded_cache.Encoder, EncodedHistories]


@pytest.fixture(scope="module")
def data(validated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("encoded") / "files"
    return encoded_cache.encode(Histories.open(validated_dir), folder)


def make_trainer(data: Data, config: TrainConfig) -> Trainer:
    """Return the trainer of a ranker with an auxiliary loss, in float64."""
    encoder, _ = data
    model = dataclasses.replace(MODEL, aux_loss_weight=0.3)
    trainer = Trainer(
        loop.make_ranker(model, encoder, SEED).double(),
        config,
        num_steps=10,
        precision="float32",
        failed_batch=Path("unused"),
        seed=SEED,
    )
    trainer.start()
    return trainer


def batches_of(data: Data, bounds: list[int]) -> list[RequestBatch]:
    """Return the same training requests, cut into batches."""
    _, encoded = data
    requests = encoded.requests("train")[40:48]
    batches = []
    for start, end in itertools.pairwise(bounds):
        own = requests[start:end]
        batches.append(encoded.batch(own, encoded.event_starts[own], encoded.event_ends[own]))
    return batches


@pytest.mark.parametrize("loss", ["request", "target"])
@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_a_step_of_three_batches_equals_that_of_one(data: Data, loss: str, hidden: float) -> None:
    # The bound of the gradient norm is below the norm.
    options: dict[str, Any] = {"loss": loss, "id_dropout": hidden, "clip_norm": 1e-3}
    trainers = []
    for bounds in SPLITS:
        trainer = make_trainer(data, TrainConfig(device="cpu", log_every=1, **options))
        batches = batches_of(data, bounds)
        for _ in range(2):
            trainer.step([(batch, batch) for batch in batches])
        trainers.append(trainer)
    one, three = trainers
    for row, other in zip(one.state.curve, three.state.curve, strict=True):
        assert other.loss == pytest.approx(row.loss, rel=1e-6)
        assert other.gradient_norm == pytest.approx(row.gradient_norm, rel=1e-6)
        assert row.gradient_norm > 1e-3
        assert (other.events, other.targets) == (row.events, row.targets)
    for name, parameter in one.ranker.named_parameters():
        torch.testing.assert_close(
            three.ranker.get_parameter(name), parameter, atol=1e-8, rtol=1e-6
        )


def test_epochs_end_with_a_whole_step(
    data: Data, validated_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoded = data
    streams = loop.training_streams(encoded, LengthSampler(LENGTHS, SEED), CONFIG, seed=SEED)
    expected = []
    for stream in streams:
        num_full, rest = divmod(len(stream), CONFIG.accumulate_steps)
        expected += [CONFIG.accumulate_steps] * num_full + [rest] * (rest > 0)
    assert set(expected) > {CONFIG.accumulate_steps}
    sizes = []
    step = Trainer.step

    def step_and_count(trainer: Trainer, pairs: Sequence[BatchPair]) -> list[CurveRow]:
        sizes.append(len(pairs))
        return step(trainer, pairs)

    monkeypatch.setattr(Trainer, "step", step_and_count)
    report = train_small(validated_dir, tmp_path / "bundle", CONFIG)
    assert sizes == expected
    assert report.num_steps == len(expected)
    assert report.num_events == sum(stream.num_events for stream in streams)


def test_the_batch_with_the_bad_loss_is_the_saved_one(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(data, CONFIG)
    trainer.failed_batch = tmp_path / "failed.safetensors"
    batches = batches_of(data, SPLITS[1])
    labels = torch.full_like(batches[1].labels, torch.nan)
    batches[1] = dataclasses.replace(batches[1], labels=labels)
    saved: list[RequestBatch] = []
    monkeypatch.setattr(
        "longrec.training.trainer._save_batch", lambda batch, path: saved.append(batch)
    )
    with pytest.raises(LongrecError, match="the training loss is nan"):
        trainer.step([(batch, batch) for batch in batches])
    assert saved == [batches[1]]


def test_sharded_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accumulate_steps 2.*data_parallel"):
        TrainConfig(accumulate_steps=2, embedding_sharding="row_wise")
    with pytest.raises(ConfigError, match="accumulate_steps must be positive"):
        TrainConfig(accumulate_steps=0)
