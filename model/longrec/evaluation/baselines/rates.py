"""Combine the rates of item and user."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.loading.label_rates import log_odds
from longrec.evaluation.metrics import PROBABILITY_MARGIN

Float: TypeAlias = npt.NDArray[np.float64]


def combined_rates(
    item_rates: Float,
    user_rates: Float,
    overall_rates: Float,
) -> Float:
    """Return item rates shifted by the user's rate over the overall rate, in log-odds.

    All are float64 [N]. Item and user count as independent given the label.
    """
    logits = _logit(item_rates) + _logit(user_rates) - _logit(overall_rates)
    combined: Float = 1 / (1 + np.exp(-logits))
    return combined


def _logit(rates: Float) -> Float:
    return log_odds(np.clip(rates, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))
