"""The configuration is read strictly: a wrong key, type or bound is an error that says what to
do.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import (
    DataConfig,
    EvaluateConfig,
    LengthConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from longrec.config_file import build, load_config
from longrec.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_unknown_key_names_the_path_and_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'train\.learning_rat'.*Did you mean 'learning_rate'"):
        load_config(_write(tmp_path, "train: {learning_rat: 0.1}"))


def test_unknown_section_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown configuration key 'modell'.*Did you mean 'model'"
    ):
        load_config(_write(tmp_path, "modell: {width: 64}"))


@pytest.mark.parametrize(
    "text",
    [
        "model: {width: wide}",
        "model: {width: 6.5}",
        "model: {fusion: 1}",
        "model: {width: true}",
        "train: 3",
        "evaluate: {lengths: 500}",
        "train: {betas: [0.9]}",
        "model: {recency: clock}",
        "name: 3",
    ],
)
def test_wrong_types_and_choices_are_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(_write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "model: {width: 0}",
        "model: {width: 66, num_heads: 4}",
        "model: {width: 70, num_heads: 5}",
        "data: {eval_fraction: 1.0}",
        "data: {max_history: -1}",
        "lengths: {minimum: 10, mean: 5, maximum: 20}",
        "evaluate: {lengths: []}",
    ],
)
def test_values_out_of_bounds_are_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(_write(tmp_path, text))


def test_overrides_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, "seed: 1\ntrain: {epochs: 1}\n")
    config = load_config(
        path,
        [
            "train.epochs=3",
            "seed=7",
            "evaluate.lengths=[10, 20]",
            "model.recency=token",
            "train.learning_rate=2e-3",
        ],
    )
    assert (config.train.epochs, config.seed, config.evaluate.lengths, config.model.recency) == (
        3,
        7,
        (10, 20),
        "token",
    )
    assert config.train.learning_rate == pytest.approx(2e-3)


@pytest.mark.parametrize(
    "override", ["train.epochs", "seed.x=1", "train.epochs={", "seed=-1", "seed=9007199254740992"]
)
def test_a_malformed_override_is_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(_write(tmp_path, "seed: 1"), [override])


def test_missing_and_broken_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration at"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is not YAML") as refused:
        load_config(_write(tmp_path, "a: [1"))
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match=r"cannot be read.*UTF-8"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="found list; expected a mapping"):
        load_config(_write(tmp_path, "[a]"), ["seed=1"])


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "")) == RunConfig()


@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 16).map(lambda n: 4 * n),
    lengths=st.lists(st.integers(0, 10_000), min_size=1),
    rate=st.floats(1e-6, 1.0),
    budget=st.integers(1, 10**7),
    mean=st.integers(0, 10_000),
)
def test_the_json_form_with_every_number_as_a_double_builds_the_same_configuration(
    seed: int, width: int, lengths: list[int], rate: float, budget: int, mean: int
) -> None:
    """KFP carries every number of a dict as a double."""
    config = RunConfig(
        seed=seed,
        model=ModelConfig(width=width),
        evaluate=EvaluateConfig(lengths=tuple(lengths)),
        data=DataConfig(),
        train=TrainConfig(learning_rate=rate, token_budget=budget),
        lengths=LengthConfig(mean=mean),
    )
    built = build(RunConfig, _doubles(config.to_dict()))
    assert built == config
    assert [type(value) for value in dataclasses.astuple(built.model)] == [
        type(value) for value in dataclasses.astuple(config.model)
    ]


RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("study-"))
"""Studies are loaded by tests/longrec/study/test_study.py."""


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_configuration_in_the_repository_loads(path: Path) -> None:
    assert load_config(path).evaluate.lengths


def _doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _doubles(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_doubles(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
