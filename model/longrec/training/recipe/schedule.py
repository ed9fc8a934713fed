"""Learning rate schedules: warm-up, then cosine decay, a constant rate, or decay on a plateau."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.training.curve import ValidationRow

FINAL_SCALE = 0.1
"""Share of the peak learning rate at the last step of the cosine schedule."""


def learning_rate_scale(
    step: int,
    *,
    num_steps: int,
    config: TrainConfig,
    plateau_scale: float = 1.0,
) -> float:
    """Return the share of the peak learning rate: linear rise, then `config.schedule`.

    Args:
        step: number of the step, from 0.
        num_steps: steps of the whole training.
        config: settings of the training.
        plateau_scale: result of `plateau_scale`, for `schedule: plateau`.
    """
    num_warmup_steps = math.ceil(config.warmup_fraction * num_steps)
    warmup = min(1.0, (step + 1) / max(num_warmup_steps, 1))
    if config.schedule == "constant":
        return warmup
    if config.schedule == "plateau":
        return warmup * plateau_scale
    if step < num_warmup_steps:
        return warmup
    num_decay_steps = max(1, num_steps - 1 - num_warmup_steps)
    progress = min(1.0, (step - num_warmup_steps) / num_decay_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return FINAL_SCALE + (1 - FINAL_SCALE) * cosine


def plateau_scale(validations: Sequence[ValidationRow], config: TrainConfig) -> float:
    """Return the share of the peak rate after these validations, for `schedule: plateau`.

    It is a function of the validations alone, so a resumed training has the same rate.

    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, where any rise is an improvement.
    """
    if config.schedule != "plateau":
        return 1.0
    # The scheduler needs an optimizer to hold its rate.
    holder = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = ReduceLROnPlateau(
        holder,
        mode="max",
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        threshold=0.0,
        threshold_mode="abs",
    )
    for row in validations:
        scheduler.step(row.quality)
    return float(holder.param_groups[0]["lr"])


def require_validations(config: TrainConfig, has_validation: bool) -> None:
    """Refuse `schedule: plateau` for a training without validation requests.

    Raises:
        ConfigError: nothing would ever lower the rate.
    """
    if config.schedule == "plateau" and not has_validation:
        raise ConfigError(
            "train.schedule=plateau needs validation requests",
            found="none in these histories",
            fix="Set data.validation_fraction above 0, or train.schedule=cosine.",
        )
