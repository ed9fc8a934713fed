"""The search space of `longrec tune`: which settings are searched, and over which values.

A space maps configuration keys to a list of choices, or to a range in Optuna's words:

    train.learning_rate: {low: 0.0003, high: 0.01, log: true}
    train.epochs: {low: 1, high: 6}
    model.crosses: [true, false]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec import config_file
from longrec.config import RunConfig
from longrec.errors import ConfigError
from longrec.study.config import override

if TYPE_CHECKING:
    import optuna

RANGE_KEYS = frozenset({"low", "high", "log", "step"})
COMMON_SPACE: Mapping[str, Any] = {
    "train.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "train.embedding_learning_rate": {"low": 1e-3, "high": 5e-2, "log": True},
    "train.token_dropout": [0.0, 0.1, 0.3, 0.5],
    "train.head_dropout": [0.0, 0.2, 0.4],
    "train.id_dropout": [0.0, 0.3, 0.5, 0.7],
    "train.epochs": {"low": 1, "high": 6},
    "model.aux_loss_weight": [0.0, 0.1, 0.3],
    "model.crosses": [True, False],
    "model.id_std": [0.05, 0.1, 0.5],
}
"""Settings that every kind of model has."""
SPACES: Mapping[str, Mapping[str, Any]] = {
    "stca": {
        "model.num_layers": [1, 2],
        "model.uniform_heads": [0, 1],
        "model.output_residual": [True, False],
    },
    "transformer": {"model.num_layers": [1, 2]},
    "hstu": {"model.num_layers": [1, 2]},
    "sim": {"model.retrieved": [16, 64, 128]},
}
"""Further settings by `model.kind`."""


@dataclasses.dataclass(frozen=True, slots=True)
class SearchSpace:
    """Values to search, by configuration key.

    Args:
        entries: choices or ranges by `section.key`.
    """

    entries: Mapping[str, Any]

    @classmethod
    def default(cls, config: RunConfig) -> SearchSpace:
        """Return the space of a kind of model; each kind is searched with equal effort."""
        return cls({**COMMON_SPACE, **SPACES.get(config.model.kind, {})})

    @classmethod
    def load(cls, path: Path) -> SearchSpace:
        """Return the space in a YAML file.

        Raises:
            ConfigError: the file is missing, or an entry is neither choices nor a range.
        """
        return cls.of(config_file.parse_yaml(config_file.read_text(path), str(path)), str(path))

    @classmethod
    def of(cls, value: Any, source: str) -> SearchSpace:
        """Return the space of a YAML value; `source` names it in an error.

        Raises:
            ConfigError: an entry is neither choices nor a range.
        """
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(
                f"{source} is not a search space",
                found=type(value).__name__,
                expected="configuration keys with choices or ranges",
                fix="For example: train.token_dropout: [0.0, 0.1, 0.3]",
            )
        for key, entry in value.items():
            _check(key, entry)
        return cls(dict(value))

    def check(self, config: RunConfig) -> None:
        """Check that the lowest and the highest value of each key fit a configuration.

        Raises:
            ConfigError: a key is unknown, or a value does not fit.
        """
        for key, entry in self.entries.items():
            values = entry if isinstance(entry, list) else (entry["low"], entry["high"])
            for value in values:
                override(config, {key: value})

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the values that Optuna suggests to a trial, by key."""
        values = {}
        for key, entry in self.entries.items():
            values[key] = _suggest(trial, key, entry)
        return values


def _suggest(trial: optuna.Trial, key: str, entry: Any) -> Any:
    if isinstance(entry, list):
        return trial.suggest_categorical(key, entry)
    numbers = (entry["low"], entry["high"], entry.get("step", 1))
    if all(isinstance(number, int) for number in numbers):
        return trial.suggest_int(key, **entry)
    return trial.suggest_float(key, **entry)


def _check(key: str, entry: Any) -> None:
    """Refuse an entry that is neither a list of choices nor a range."""
    if not _is_choice(entry) and not _is_range(entry):
        raise ConfigError(
            f"the search space of {key} is not valid",
            found=entry,
            expected="a list of choices, or {low, high} with log (from above 0) or step",
        )


def _is_choice(entry: Any) -> bool:
    """Return whether an entry is a list of values that Optuna's journal can hold."""
    if not isinstance(entry, list) or not entry:
        return False
    return all(isinstance(value, (bool, int, float, str)) for value in entry)


def _is_range(entry: Any) -> bool:
    """Return whether an entry is a range in Optuna's words."""
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= RANGE_KEYS:
        return False
    low, high = entry["low"], entry["high"]
    numbers = (low, high, entry.get("step", 1))
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return False
    if entry.get("log"):
        return 0 < low <= high and "step" not in entry
    return bool(low <= high and numbers[-1] > 0)
