"""Id tables that each epoch draws anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.training import optimizers
from longrec.training.recipe.redrawn_ids import redraw_ids
from tests.longrec.nn import builders
from tests.longrec.training.small_training import train_small

CONFIG = TrainConfig(
    epochs=2,
    token_budget=600,
    learning_rate=1e-9,
    embedding_learning_rate=1e-9,
    weight_decay=0.0,
    device="cpu",
    tensorboard=False,
)
"""Nothing learns: a table differs from its initial values only where it was drawn anew."""


def test_only_id_tables_and_their_accumulators_change() -> None:
    ranker = builders.ranker(id_std=0.5)
    before = {name: tensor.clone() for name, tensor in ranker.state_dict().items()}
    built = optimizers.build(ranker, TrainConfig())
    assert built.tables is not None
    for table in built.table_weights:
        built.tables.state[table]["row_sums"].fill_(3.0)
    redraw_ids(ranker, built, seed=1, step=7)
    for name, tensor in ranker.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name != "items.ids.weight"), name
    drawn = ranker.state_dict()["items.ids.weight"]
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.15)
    assert all(not built.tables.state[table]["row_sums"].any() for table in built.table_weights)


def test_the_draws_differ_by_epoch_and_seed_and_repeat() -> None:
    tables = []
    for seed, step in ((1, 7), (1, 7), (1, 14), (2, 7)):
        ranker = builders.ranker()
        redraw_ids(ranker, optimizers.build(ranker, TrainConfig()), seed=seed, step=step)
        tables.append(ranker.state_dict()["items.ids.weight"])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[0], tables[3])


@pytest.mark.parametrize(("epochs", "is_redrawn"), [(1, False), (2, True)])
def test_a_training_redraws_between_its_epochs(
    histories_dir: Path, tmp_path: Path, epochs: int, is_redrawn: bool
) -> None:
    tables = []
    for name, redraw in (("kept", False), ("drawn", True)):
        config = dataclasses.replace(CONFIG, epochs=epochs, redraw_ids=redraw)
        train_small(histories_dir, tmp_path / name, config)
        weights = load_file(tmp_path / name / "model.safetensors")
        tables.append(weights["items.ids.weight"])
    assert torch.allclose(*tables, atol=1e-4) != is_redrawn


def test_learned_starts_are_not_drawn_anew() -> None:
    with pytest.raises(ConfigError, match=r"redraw_ids draws random.*id_init=lsa"):
        TrainConfig(redraw_ids=True, id_init="lsa")
