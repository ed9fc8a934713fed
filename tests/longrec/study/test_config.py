"""The configuration of a study: mistakes are found before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.config import RunConfig
from longrec.errors import ConfigError
from longrec.study.config import load, override, parse, to_text
from longrec.study.trial import plan
from tests.longrec.study.small_study import STUDY, load_study, write_study

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.kind: mean", "model.kynd: mean", "model.kynd"),
        ("seeds: [0, 1]", "sedes: [0, 1]", "sedes"),
        ("seeds: [0, 1]", "grid: {widht: [8]}", "widht"),
        ("seeds: [0, 1]", "reference: din", "din"),
        ("model.recency: token", "model.recency: bias", "recency=token"),
        ("seeds: [0, 1]", "seeds: 3", "is not a study"),
        ("seeds: [0, 1]", "recovery: {base: 3}", "is not a study"),
        ("seeds: [0, 1]", "seeds: [0, 1", "is not YAML"),
    ],
)
def test_a_mistake_in_a_study_is_found_before_anything_runs(
    tmp_path: Path,
    old: str,
    new: str,
    message: str,
) -> None:
    path = write_study(tmp_path, STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_an_override_of_a_study_must_be_one(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with pytest.raises(ConfigError, match="key=value"):
        load(path, ["train.epochs"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("study-*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_loads(path: Path) -> None:
    assert plan(load(path))


def test_a_study_survives_as_text(tmp_path: Path) -> None:
    study = load_study(tmp_path)
    assert plan(parse(to_text(study))) == plan(study)


def test_a_key_without_a_section_can_be_overridden() -> None:
    changed = override(RunConfig(), {"seed": 3, "model.width": 128})
    assert changed.seed == 3
    with pytest.raises(ConfigError, match=r"modle\.width"):
        override(RunConfig(), {"modle.width": 8})
