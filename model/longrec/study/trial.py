"""Trial: one training of a study, a whole configuration and a seed.

The id of a trial names its result, OUT/trials/<id>.json. Equal trials have equal ids, in any study.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from longrec import config_file
from longrec.config import RunConfig
from longrec.errors import DataError
from longrec.study.config import StudyConfig

Row: TypeAlias = dict[str, Any]
"""A JSON object: one result, or one line of a table."""
TRIALS_NAME = "trials"
OLD_TRIALS_NAME = "runs"
"""Folder of the results in versions that called a trial a run."""
HASHED_SECTIONS = ("model", "lengths", "train", "evaluate")
FORMER_KEYS = {"distribution": "law"}
"""Former name of each renamed key: ids hash it, so results of older versions are found."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study.

    Args:
        id: name of its result.
        variant: name of the variant.
        point: point of the grid, values by `section.key`.
        seed: seed of the training.
        train_events: see StudyConfig.
        config: the whole configuration.
    """

    id: str
    variant: str
    point: Mapping[str, Any]
    seed: int
    train_events: int
    config: RunConfig

    def to_dict(self) -> Row:
        """Return the JSON form."""
        return {
            "id": self.id,
            "variant": self.variant,
            "point": dict(self.point),
            "seed": self.seed,
            "train_events": self.train_events,
            "config": self.config.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Trial:
        """Return the trial of a JSON form; missing settings have their defaults."""
        return cls(
            id=value["id"],
            variant=value["variant"],
            point=value["point"],
            seed=int(value["seed"]),
            train_events=int(value["train_events"]),
            config=config_file.build(RunConfig, value["config"]),
        )


def plan(study: StudyConfig) -> list[Trial]:
    """Return all trials, those of the first seed first.

    A study that is stopped early then has whole comparisons.
    """
    combinations = list(study.combinations())
    trials = []
    for seed, (variant, point, config) in itertools.product(study.seeds, combinations):
        content = [_hashed_settings(config), seed, study.train_events]
        trial = Trial(
            id=_trial_id(_slug(variant, point), seed, content),
            variant=variant,
            point=point,
            seed=seed,
            train_events=study.train_events,
            config=config,
        )
        trials.append(trial)
    return trials


def to_items(trials: Sequence[Trial], max_items: int) -> list[str]:
    """Return texts with all trials, those of a text to be run one after the other.

    A pipeline passes them to its steps: a text keeps its type, and is small without the settings
    that have their defaults. The first trials come first in their texts.

    Args:
        trials: the trials of a study.
        max_items: largest number of texts; with no more trials each has a text of its own.
    """
    count = min(len(trials), max_items)
    items = [[_changed(trial) for trial in trials[start::count]] for start in range(count)]
    return [json.dumps(item, sort_keys=True) for item in items]


def from_item(text: str) -> list[Trial]:
    """Return the trials of a text of `to_items`."""
    return [Trial.from_dict(value) for value in json.loads(text)]


def result_path(out_dir: str | Path, trial: Trial) -> Path:
    """Return the file of a trial's result."""
    return trials_dir(out_dir) / f"{trial.id}.json"


def trials_dir(out_dir: str | Path) -> Path:
    """Return the folder of a study's results.

    Raises:
        DataError: the results are in the folder of an older version.
    """
    new = Path(out_dir) / TRIALS_NAME
    old = Path(out_dir) / OLD_TRIALS_NAME
    if old.is_dir() and not new.exists():
        raise DataError(
            "the results of this study are in the folder of an older version",
            found=old,
            expected=new,
            fix=f"Rename it: mv {old} {new}",
        )
    return new


def _changed(trial: Trial) -> Row:
    """Return the JSON form of a trial without the settings that have their defaults."""
    return {**trial.to_dict(), "config": config_file.changed_settings(trial.config)}


def _trial_id(
    trial_name: str,
    seed: int,
    content: Any,
) -> str:
    """Return the id of a trial: its name, its seed and a hash of its content."""
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{trial_name}-s{seed}-{digest[:8]}"


def _slug(variant: str, point: Mapping[str, Any]) -> str:
    """Return variant and grid point as text that is safe in a file name."""
    text = variant
    for key, value in point.items():
        name = key.rpartition(".")[2]
        text += f"-{name}{value}"
    safe = ""
    for character in text:
        is_safe = character.isalnum() or character in "-_."
        safe += character if is_safe else "_"
    return safe


def _hashed_settings(config: RunConfig) -> Row:
    """Return the settings that differ from their defaults.

    A key that a later version adds, at its default, leaves the ids of finished trials unchanged.
    """
    defaults = RunConfig().to_dict()
    settings: Row = {"seed": config.seed}
    plain = config.to_dict()
    for section in HASHED_SECTIONS:
        changed = {}
        for key, value in plain[section].items():
            if value != defaults[section][key]:
                changed[FORMER_KEYS.get(key, key)] = value
        settings[section] = changed
    return settings
