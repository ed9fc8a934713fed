"""Schedules: cosine decay, a constant rate, and decay on a plateau of the validations."""

from __future__ import annotations

import itertools

import pytest

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.training.recipe import schedule
from tests.longrec.training.recipe.builders import validations

WARM = TrainConfig(warmup_fraction=0.1)
PLATEAU = TrainConfig(
    schedule="plateau", epochs=9, plateau_factor=0.5, plateau_patience=1, patience=0
)


def scales(config: TrainConfig, num_steps: int) -> list[float]:
    return [
        schedule.learning_rate_scale(step, num_steps=num_steps, config=config)
        for step in range(num_steps)
    ]


def test_cosine_rises_and_falls_to_a_tenth() -> None:
    found = scales(WARM, 100)
    rising = [step / 10 for step in range(1, 11)]
    assert found[:10] == pytest.approx(rising)
    assert all(before >= after for before, after in itertools.pairwise(found[9:]))
    assert found[-1] == pytest.approx(schedule.FINAL_SCALE)


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_a_single_step_without_warmup_has_the_peak_rate(name: str) -> None:
    config = TrainConfig(schedule=name, warmup_fraction=0.0)  # type: ignore[arg-type]
    assert scales(config, 1) == [1.0]


def test_constant_rises_and_stays() -> None:
    config = TrainConfig(schedule="constant", warmup_fraction=0.1)
    assert scales(config, 40)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert set(scales(config, 40)[4:]) == {1.0}


@pytest.mark.parametrize(
    ("aucs", "share"),
    [
        ([], 1.0),
        ([0.6, 0.7, 0.7], 1.0),
        # An equal value is no improvement: two in a row exceed the patience of one.
        ([0.6, 0.7, 0.7, 0.7], 0.5),
        ([0.6, 0.7, 0.7, 0.7, 0.6], 0.5),
        ([0.6, 0.7, 0.7, 0.7, 0.6, 0.6], 0.25),
        ([0.6, 0.5, 0.7, 0.6, 0.8], 1.0),
    ],
)
def test_plateau_lowers_the_rate_after_more_than_patience_stalls(
    aucs: list[float], share: float
) -> None:
    found = schedule.plateau_scale(validations(aucs), PLATEAU)
    assert found == share
    scale = schedule.learning_rate_scale(50, num_steps=100, config=PLATEAU, plateau_scale=found)
    assert scale == share


def test_plateau_goes_by_the_log_loss_where_the_auc_is_unknown() -> None:
    rows = validations([None, None, None], loglosses=[0.5, 0.6, 0.7])
    assert schedule.plateau_scale(rows, PLATEAU) == 0.5
    rows = validations([None, None, None], loglosses=[0.7, 0.6, 0.5])
    assert schedule.plateau_scale(rows, PLATEAU) == 1.0


def test_other_schedules_ignore_validations() -> None:
    assert schedule.plateau_scale(validations([0.7, 0.1, 0.1, 0.1]), WARM) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1}, "needs several validations"),
        ({"plateau_patience": 1, "patience": 2}, "would end before"),
        ({"plateau_factor": 1.0}, "plateau_factor"),
        ({"plateau_patience": -1}, "plateau_patience"),
    ],
)
def test_a_plateau_that_can_lower_nothing_is_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"schedule": "plateau", "epochs": 4, **settings})  # type: ignore[arg-type]


def test_plateau_without_validation_requests_is_refused() -> None:
    schedule.require_validations(WARM, has_validation=False)
    schedule.require_validations(PLATEAU, has_validation=True)
    with pytest.raises(ConfigError, match=r"data\.validation_fraction"):
        schedule.require_validations(PLATEAU, has_validation=False)
