"""What a trial takes from its configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from longrec.data.histories import Histories
from longrec.study.run_trial import _encoder_of, _train
from longrec.study.trial import Trial, plan
from longrec.training import encoded_cache
from longrec.training.progress import ignore_row
from tests.longrec.study.small_study import load_study


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return plan(load_study(tmp_path_factory.mktemp("study")))[0]


def test_ids_of_a_trial_start_as_its_configuration_says(
    trial: Trial, histories_dir: Path, tmp_path: Path
) -> None:
    encoder, encoded = encoded_cache.encode(Histories.open(histories_dir), tmp_path / "encoded")
    tables = []
    for start in ("random", "lsa"):
        train = dataclasses.replace(
            trial.config.train, id_init=start, max_steps=1, embedding_learning_rate=1e-9
        )
        config = dataclasses.replace(trial.config, train=train, seed=trial.seed)
        trainer = _train(encoder, encoded, config, tmp_path, ignore_row)
        assert trainer.ranker.items.ids is not None
        tables.append(trainer.ranker.items.ids.weight.detach())
    assert not torch.allclose(*tables, atol=1e-2)


def test_a_trial_gives_embeddings_to_frequent_ids_alone(
    trial: Trial, histories_dir: Path, tmp_path: Path
) -> None:
    histories = Histories.open(histories_dir)
    data = (histories, *encoded_cache.encode(histories, tmp_path / "encoded"))
    num_rows = []
    for count in (0, 10_000):
        train = dataclasses.replace(trial.config.train, id_min_count=count)
        num_rows.append(_encoder_of(data, train).sizes["item"][0])
    assert num_rows[0] > num_rows[1] > 1
