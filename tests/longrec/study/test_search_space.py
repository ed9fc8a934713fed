"""The values that a search may take."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from longrec.config import ModelConfig, RunConfig
from longrec.errors import ConfigError
from longrec.study.search_space import SearchSpace
from tests.conftest import ROOT

KINDS = get_args(get_type_hints(ModelConfig)["kind"])


def _write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_a_default_space_fits_its_kind(kind: str) -> None:
    config = RunConfig(model=ModelConfig(kind=kind, recency="token"))
    SearchSpace.default(config).check(config)


def test_kinds_share_most_of_their_spaces() -> None:
    """Each model and baseline is searched with equal effort."""
    shared = {
        "train.learning_rate",
        "train.embedding_learning_rate",
        "train.token_dropout",
        "train.head_dropout",
        "train.id_dropout",
        "train.epochs",
    }
    for kind in KINDS:
        config = RunConfig(model=ModelConfig(kind=kind, recency="token"))
        assert shared <= SearchSpace.default(config).entries.keys()


def test_a_file_holds_choices_and_ranges(tmp_path: Path) -> None:
    space = SearchSpace.load(
        _write(
            tmp_path,
            "train.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
            "train.epochs: {low: 1, high: 3}\n"
            "model.num_layers: [1, 2]\n",
        )
    )
    space.check(RunConfig())
    assert space.entries["train.learning_rate"]["low"] == 1e-4


def test_the_example_is_a_space() -> None:
    SearchSpace.load(ROOT / "configs" / "tune-space.yaml").check(RunConfig())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a search space"),
        ("[1, 2]", "not a search space"),
        ("train.epochs: 3", "search space of train.epochs"),
        ("train.epochs: []", "search space of train.epochs"),
        ("train.epochs: [[1], [2]]", "search space of train.epochs"),
        ("train.epochs: {low: 3, high: 1}", "search space of train.epochs"),
        ("train.epochs: {low: 1}", "search space of train.epochs"),
        ("train.epochs: {low: a, high: b}", "search space of train.epochs"),
        ("train.epochs: {low: 1, high: 3, most: 2}", "search space of train.epochs"),
        ("train.learning_rate: {low: 0, high: 0.1, log: true}", "search space of train.learn"),
        ("train.epochs: {low: 1, high: 9, log: true, step: 2}", "search space of train.epochs"),
        ("train.epochs: {low: .nan, high: .inf}", "search space of train.epochs"),
    ],
)
def test_an_entry_that_cannot_be_searched_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace.load(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epocs: [1, 2]", "epocs"),
        ("train.epochs: [1, 0]", "train.epochs must be positive"),
        ("train.token_dropout: {low: 0.0, high: 1.5}", "token_dropout"),
    ],
)
def test_a_value_that_a_training_would_refuse_is_found_before_it_starts(
    tmp_path: Path, text: str, message: str
) -> None:
    space = SearchSpace.load(_write(tmp_path, text))
    with pytest.raises(ConfigError, match=message):
        space.check(RunConfig())
