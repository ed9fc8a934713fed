"""The configuration is read strictly: each mistake is an error that names key and fix."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
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
from longrec.config_file import RENAMED_KEYS, build, json_schema, load_config, read_config
from longrec.errors import ConfigError
from longrec.study import config as study_config
from pipelines.platform_config import PlatformConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SCHEMA_FILE = ROOT / "docs" / "reference" / "config.schema.json"


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
    assert config.train.epochs == 3
    assert config.seed == 7
    assert config.evaluate.lengths == (10, 20)
    assert config.model.recency == "token"
    assert config.train.learning_rate == pytest.approx(2e-3)


def test_an_override_fills_an_empty_section(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "train:\n"), ["train.epochs=2"]).train.epochs == 2


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
    lengths=st.lists(st.integers(0, 10_000), min_size=1).filter(any),
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


RUNS = sorted(
    path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(("study-", "tune-"))
)
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


def test_a_file_may_hold_a_platform_section_that_the_library_does_not_read(tmp_path: Path) -> None:
    path = _write(tmp_path, "seed: 3\nplatform: {no_such_key: 1, steps: {train: {gpu: 1}}}")
    content = read_config(path, ["platform.image=team/python:4"])
    assert content.run == RunConfig(seed=3)
    assert content.platform == {
        "no_such_key": 1,
        "steps": {"train": {"gpu": 1}},
        "image": "team/python:4",
    }
    assert "platform" not in content.run.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {width: wide}",
            "model.width has the wrong type; found 'wide'; expected a valid integer",
        ),
        (
            "model: {recency: clock}",
            "model.recency is not one of its choices; found 'clock'; "
            "expected 'token', 'bias' or 'none'",
        ),
        ("train: 3", "train has the wrong type; found 3; expected a mapping"),
        (
            "evaluate: {lengths: 500}",
            "evaluate.lengths has the wrong type; found 500; expected a list",
        ),
        (
            "evaluate: {lengths: [500, a]}",
            "evaluate.lengths[1] has the wrong type; found 'a'; expected a valid integer",
        ),
        ("train: {learning_rate: '0.1'}", "train.learning_rate has the wrong type; found '0.1'"),
        ("data: {shards: 0}", "data.shards must be positive; found 0"),
    ],
)
def test_an_error_names_the_path_what_was_found_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, text))
    assert str(caught.value).startswith(message)


def test_numbers_and_texts_are_read_as_people_write_them(tmp_path: Path) -> None:
    config = load_config(
        _write(tmp_path, "name: 2026-01-01\nseed: 1e3\ntrain: {learning_rate: 1e-3, clip_norm: 2}")
    )
    assert config.name == "2026-01-01"
    assert config.seed == 1000
    assert config.train.learning_rate == 1e-3
    assert isinstance(config.seed, int)
    assert isinstance(config.train.clip_norm, float)


def test_a_value_that_is_no_json_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"train holds a value that is no YAML or JSON.*PosixPath"
    ):
        build(TrainConfig, {"epochs": Path("x")}, where="train")


RENAMED = [
    ("lengths: {law: fixed}", "lengths.law", "lengths.distribution"),
    ("platform: {home: /srv}", "platform.home", "platform.workdir"),
    ("platform: {home_volume: v}", "platform.home_volume", "platform.workdir_volume"),
]


@pytest.mark.parametrize(("text", "old", "new"), RENAMED, ids=[entry[1] for entry in RENAMED])
def test_a_renamed_key_still_works_with_a_warning(
    tmp_path: Path, text: str, old: str, new: str
) -> None:
    section, name = new.split(".")
    with pytest.warns(FutureWarning, match=f"'{old}' was renamed to '{new}'"):
        content = read_config(_write(tmp_path, text))
    value = content.platform if section == "platform" else content.run.to_dict()[section]
    assert value[name] in ("fixed", "/srv", "v")


def test_a_renamed_key_works_in_an_override_and_in_the_section_of_a_step(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="'lengths.law' was renamed"):
        assert load_config(None, ["lengths.law=fixed"]).lengths.distribution == "fixed"
    with pytest.warns(FutureWarning, match="'lengths.law' was renamed"):
        assert build(LengthConfig, {"law": "fixed"}, where="lengths").distribution == "fixed"
    with pytest.warns(FutureWarning, match="'lengths.law' was renamed"):
        path = _write(tmp_path, "lengths: {law: fixed}")
        overridden = load_config(path, ["lengths.distribution=uniform"])
    assert overridden.lengths.distribution == "uniform"


def test_a_renamed_key_works_in_a_study(tmp_path: Path) -> None:
    text = "base: {}\nset: {lengths.law: full}\nvariants: {a: {}, b: {lengths.law: fixed}}\n"
    (tmp_path / "study.yaml").write_text(text)
    with pytest.warns(FutureWarning, match="'lengths.law' was renamed"):
        settings = study_config.load(tmp_path / "study.yaml")
    configs = {name: config for name, _, config in settings.combinations()}
    assert configs["a"].lengths.distribution == "full"
    assert configs["b"].lengths.distribution == "fixed"


def test_both_names_of_a_key_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found both keys. Remove 'lengths\.law'"):
        load_config(_write(tmp_path, "lengths: {law: fixed, distribution: beta}"))


def test_every_renamed_key_leads_to_a_key_in_the_same_section() -> None:
    platform = {field.name for field in dataclasses.fields(PlatformConfig)}
    for old, new in RENAMED_KEYS.items():
        section, name = new.split(".")
        assert old.partition(".")[0] == section
        known = platform if section == "platform" else RunConfig().to_dict()[section]
        assert name in known


def test_training_loads_no_pydantic() -> None:
    code = (
        "import sys, longrec.nn.ranker, longrec.training.train\n"
        "print([name for name in ('pydantic', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_schema_in_the_documentation_is_up_to_date() -> None:
    committed = json.loads(SCHEMA_FILE.read_text())
    assert committed == json.loads(json.dumps(json_schema(platform=PlatformConfig))), (
        "run: make schema"
    )


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_configuration_names_the_schema_and_only_its_keys(path: Path) -> None:
    first_line = path.read_text().partition("\n")[0]
    reference = first_line.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / reference).resolve() == SCHEMA_FILE
    schema = json.loads(SCHEMA_FILE.read_text())
    for section, value in yaml.safe_load(path.read_text()).items():
        entry = schema["properties"][section]
        if isinstance(value, dict):
            definition = schema["$defs"][entry["$ref"].rpartition("/")[2]]
            assert set(value) <= set(definition["properties"])


def test_the_schema_describes_every_key() -> None:
    schema = json_schema(platform=PlatformConfig)
    for definition in schema["$defs"].values():
        for name, entry in definition["properties"].items():
            assert "description" in entry or "$ref" in entry, name
        assert definition["additionalProperties"] is False


def test_the_preset_of_the_paper_leaves_out_what_is_ours() -> None:
    config = build(RunConfig, {"model": {"preset": "paper"}})
    assert config.model.recency == "token"
    assert not config.model.crosses
    assert build(RunConfig, config.to_dict()) == config


def test_given_keys_win_over_the_preset() -> None:
    value = {"preset": "paper", "recency": "none", "width": 32}
    assert build(RunConfig, {"model": value}).model.recency == "none"
    assert build(ModelConfig, value).recency == "none"


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset"):
        build(RunConfig, {"model": {"preset": "papers"}})


@pytest.mark.parametrize("number", [-1, 3])
def test_uniform_heads_are_some_of_the_heads(number: int) -> None:
    with pytest.raises(ConfigError, match="uniform_heads"):
        build(RunConfig, {"model": {"num_heads": 2, "uniform_heads": number}})
