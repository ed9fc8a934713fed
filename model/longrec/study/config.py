"""The configuration of a study: a grid of trainings, read from YAML."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from longrec import config_file
from longrec.config import RunConfig
from longrec.errors import ConfigError

Overrides: TypeAlias = Mapping[str, Any]
"""Values by `section.key`."""
Combination: TypeAlias = tuple[str, dict[str, Any], RunConfig]
"""(variant, grid point, configuration)."""
Grid: TypeAlias = Mapping[str, Sequence[Any]]
"""Lists of values by `section.key`."""
Recovery: TypeAlias = Mapping[str, tuple[str, int]]
"""(variant, served length) by role."""
RECOVERY_ROLES = ("base", "full", "extrapolated")


@dataclasses.dataclass(frozen=True, slots=True)
class StudyConfig:
    """A grid of trainings.

    Args:
        name: name of the study.
        base: configuration that every trial starts from, as in a run's YAML (sections model,
            lengths, train, evaluate).
        variants: overrides by name; the study compares variants.
        grid: values by `section.key`; each variant is trained at every grid point, which is one
            value for each key.
        seeds: each trial is trained once with every seed (weights, order, lengths). All of them
            evaluate the requests of `base.seed`.
        reference: variant that the others are compared with; empty for the first.
        train_events: number of events that a trial may read, whatever its training length
            distribution. The number of epochs follows from it; 0 for `train.epochs`.
        recovery: {"base": (variant, length), "full": ..., "extrapolated": ...}. The report states
            the share of the gain of `full` over `base` that `extrapolated` reaches, and its share
            of the events. Only without a grid: it compares variants.
        task: task whose metrics are compared; empty for the first. Every trial measures all tasks,
            so another task needs no further training.
    """

    name: str
    base: RunConfig
    variants: Mapping[str, Overrides]
    grid: Grid = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: str = ""
    train_events: int = 0
    recovery: Recovery = dataclasses.field(default_factory=dict)
    task: str = ""

    def __post_init__(self) -> None:
        num_variants = len(self.variants)
        num_seeds = len(self.seeds)
        if not num_variants or not num_seeds:
            raise ConfigError(
                "a study needs at least one variant and one seed",
                found=f"{num_variants} and {num_seeds}",
            )
        named_variants = [variant for variant, _ in self.recovery.values()]
        if self.reference:
            named_variants.insert(0, self.reference)
        for name in named_variants:
            if name not in self.variants:
                raise ConfigError(
                    "a study names a variant that it does not have",
                    found=name,
                    expected=", ".join(self.variants),
                )
        if self.recovery and self.recovery.keys() != set(RECOVERY_ROLES):
            raise ConfigError(
                "study.recovery must name three variants",
                found=", ".join(self.recovery),
                expected=", ".join(RECOVERY_ROLES),
            )
        num_points = math.prod(map(len, self.grid.values()))
        if self.recovery and num_points > 1:
            raise ConfigError(
                "study.recovery compares variants, so it needs a study without a grid",
                found=f"{num_points} grid points per variant",
                fix="Remove `recovery`, or write the points that it compares as variants.",
            )

    @property
    def reference_variant(self) -> str:
        """The variant that the others are compared with."""
        return self.reference or next(iter(self.variants))

    def combinations(self) -> Iterator[Combination]:
        """Yield (variant, grid point, configuration) of every variant at every grid point.

        Raises:
            ConfigError: a key of a variant or of the grid is unknown, or a value does not fit.
        """
        for values in itertools.product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            for variant, overrides in self.variants.items():
                config = override(self.base, {**overrides, **point})
                yield variant, point, config


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the study in a YAML file.

    `base` in the file is a configuration, or the path of one relative to the file; `set` overrides
    values of it.

    Args:
        path: the file.
        overrides: `section.key=value` texts for the base configuration; they take precedence over
            the file's.

    Raises:
        ConfigError: the file is missing or wrong, or a variant or grid key is.
    """
    text = config_file.read_text(path)
    return parse(text, overrides, path=path)


def parse(
    text: str,
    overrides: Sequence[str] = (),
    *,
    path: str | Path = "study",
) -> StudyConfig:
    """Return the study in YAML text, as `load` does.

    Args:
        text: the YAML text.
        overrides: see `load`.
        path: path of the text, which names the study; a base that is a path is relative to it.
    """
    value = config_file.parse_yaml(text, str(path))
    _check_keys(value, path)
    try:
        study = _build(value, overrides, Path(path))
    except ConfigError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a study",
            found=str(error),
            fix="See configs/study-*.yaml.",
        ) from error
    # a wrong key of a variant or of the grid is found here, before anything is trained
    list(study.combinations())
    return study


def to_text(study: StudyConfig) -> str:
    """Return the text that `parse` reads, with the base written out. JSON is YAML."""
    value = dataclasses.asdict(study)
    value["base"] = study.base.to_dict()
    return json.dumps(value, indent=1)


def override(config: RunConfig, values: Overrides) -> RunConfig:
    """Return the configuration with some values replaced.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    plain = config.to_dict()
    for key, value in values.items():
        section_name, _, name = config_file.current_key(key).rpartition(".")
        section = plain.get(section_name) if section_name else plain
        if not isinstance(section, dict):
            raise ConfigError(
                f"'{key}' does not name a configuration key",
                expected="section.key, for example model.width",
            )
        section[name] = value
    return config_file.build(RunConfig, plain)


def _check_keys(value: Any, path: str | Path) -> None:
    """Refuse a value without the required keys, or with unknown ones."""
    names = {field.name for field in dataclasses.fields(StudyConfig)}
    names.add("set")
    required = {"base", "variants"}
    expected = f"base, variants, and of {', '.join(sorted(names))}"
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} is not a study",
            found=type(value).__name__,
            expected=expected,
        )
    if not required <= value.keys() <= names:
        raise ConfigError(
            f"{path} is not a study",
            found=", ".join(value),
            expected=expected,
        )


def _build(
    value: dict[str, Any],
    overrides: Sequence[str],
    path: Path,
) -> StudyConfig:
    """Return the study of its YAML value."""
    fields = dict(value)
    base = _base_config(fields.pop("base"), path)
    changes = dict(fields.pop("set", {}))
    for text in overrides:
        key, entry = config_file.parse_override(text)
        changes[key] = entry
    recovery = {}
    roles = fields.pop("recovery", None) or {}
    for role, (variant, length) in roles.items():
        recovery[role] = (str(variant), int(length))
    seeds = fields.pop("seeds", (0,))
    name = fields.pop("name", path.stem)
    return StudyConfig(
        name=name,
        base=override(base, changes),
        seeds=tuple(seeds),
        recovery=recovery,
        **fields,
    )


def _base_config(base: Any, path: Path) -> RunConfig:
    """Return the base configuration, given itself or as a path relative to the study's file."""
    if isinstance(base, str):
        return config_file.load_config(path.parent / base)
    return config_file.build(RunConfig, base)
