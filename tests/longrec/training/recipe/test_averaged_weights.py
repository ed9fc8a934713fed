"""The moving average of the weights is torch's, and what validations and the bundle use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.training.recipe.averaged_weights import AveragedWeights
from longrec.training.trainer import Trainer
from tests.longrec.nn import builders
from tests.longrec.training.small_training import train_small

DECAY = 0.7
CONFIG = TrainConfig(
    max_steps=4,
    token_budget=300,
    learning_rate=5e-2,
    embedding_learning_rate=0.5,
    ema_decay=DECAY,
    device="cpu",
    tensorboard=False,
)


def make_trainer(config: TrainConfig = CONFIG) -> Trainer:
    trainer = Trainer(
        builders.ranker().float(),
        config,
        num_steps=4,
        precision="float32",
        failed_batch=Path("unused"),
    )
    trainer.start()
    return trainer


def take_step(trainer: Trainer, seed: int) -> None:
    batch = builders.batch([3, 5], [2, 1], seed=seed)
    trainer.step([(batch, batch)])


def test_the_averages_are_those_of_torch() -> None:
    trainer = make_trainer()
    expected = AveragedModel(trainer.ranker, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for seed in range(4):
        take_step(trainer, seed)
        expected.update_parameters(trainer.ranker)
    assert trainer.averages is not None
    averages = trainer.averages.tensors()
    parameters = dict(expected.module.named_parameters())
    assert averages.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(averages[name], parameter), name
    assert not torch.equal(averages["head.weight"], trainer.ranker.head.weight)


def test_the_training_goes_on_from_the_weights_themselves() -> None:
    averaged = make_trainer()
    plain = make_trainer(dataclasses.replace(CONFIG, ema_decay=0.0))
    for seed in range(3):
        take_step(averaged, seed)
        take_step(plain, seed)
        with averaged.evaluated_weights():
            is_equal = torch.equal(averaged.ranker.head.weight, plain.ranker.head.weight)
            # The average of the first step is its weights.
            assert is_equal == (seed == 0)
    for name, parameter in averaged.ranker.named_parameters():
        assert torch.equal(parameter, plain.ranker.state_dict()[name]), name
    assert plain.averages is None


def test_an_error_within_the_block_brings_the_weights_back() -> None:
    trainer = make_trainer()
    for seed in range(2):
        take_step(trainer, seed)
    before = trainer.ranker.head.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), trainer.evaluated_weights():
        raise KeyboardInterrupt
    assert torch.equal(trainer.ranker.head.weight, before)


def test_parameters_that_were_replaced_restart() -> None:
    module = torch.nn.Linear(2, 2)
    averages = AveragedWeights(module, DECAY)
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.bias.fill_(5.0)
    averages.restart([module.weight])
    assert (averages.tensors()["weight"] == 5.0).all()
    assert not (averages.tensors()["bias"] == 5.0).any()


@pytest.mark.parametrize("has_validation", [False, True])
def test_the_bundle_holds_the_averages(
    histories_dir: Path,
    validated_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_validation: bool,
) -> None:
    states = []
    step = Trainer.step

    def step_and_keep(trainer: Trainer, pairs: Any) -> Any:
        rows = step(trainer, pairs)
        states.append(
            {name: tensor.clone() for name, tensor in trainer.ranker.state_dict().items()}
        )
        return rows

    monkeypatch.setattr(Trainer, "step", step_and_keep)
    train_small(validated_dir if has_validation else histories_dir, tmp_path / "bundle", CONFIG)
    packaged = load_file(tmp_path / "bundle" / "model.safetensors")
    assert len(states) == CONFIG.max_steps
    for name in ("head.weight", "items.ids.weight", "items.others.weight"):
        expected = states[0][name]
        for state in states[1:]:
            expected = DECAY * expected + (1 - DECAY) * state[name]
        torch.testing.assert_close(packaged[name], expected)
        assert not torch.allclose(packaged[name], states[-1][name])


def test_sharded_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ema_decay 0.9.*data_parallel"):
        TrainConfig(ema_decay=0.9, embedding_sharding="row_wise")
