"""What the validation of a training says, in sentences for summary and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]

SERVED = "Served at {length:,} events: {reason}."
FALLING = (
    "The AUC on validation requests falls with the history length: {best[auc]:.4f} at"
    " {best[length]:,} events, {longest[auc]:.4f} at {longest[length]:,}, difference"
    " {longest[difference]:+.4f} ({longest[difference_low]:+.4f} to"
    " {longest[difference_high]:+.4f}). More events make this model worse: train it on longer"
    " histories, or look for events that mislead it."
)
STOPPED = {
    "patience": "The training stopped after step {num_steps:,}: validations no longer improved.",
    "time": "The training stopped after step {num_steps:,}: train.max_seconds were over.",
}
BEST = "The packaged weights are those of step {best_step:,} of {num_steps:,}."
GAIN = "Training twice as long is expected to gain about {gain:.4f} AUC (trend of the validations)."
NO_GAIN = "Longer training is expected to gain nothing: the AUC had stopped rising."
UNKNOWN_GAIN = (
    "What longer training would gain is unknown: it takes two validations (train.validate_every)."
)


def findings(training: Row) -> list[str]:
    """Return what a user should act on, as sentences.

    Args:
        training: facts of the bundle.
    """
    choice = _choice(training)
    if not choice.get("is_falling"):
        return []
    curve = choice["curve"]
    best = max(curve, key=lambda row: row["auc"])
    return [FALLING.format(best=best, longest=curve[-1])]


def notes(training: Row) -> list[str]:
    """Return how the training ended and how the served length was chosen, as sentences."""
    choice = _choice(training)
    if not choice:
        return []
    sentences = [SERVED.format_map(choice)]
    if training["stopped_by"] in STOPPED:
        sentences.append(STOPPED[training["stopped_by"]].format_map(training))
    if training["best_step"] != training["num_steps"]:
        sentences.append(BEST.format_map(training))
    sentences.append(_gain_text(training["expected_gain"]))
    return sentences


def _choice(training: Row) -> Row:
    validation: Row = training.get("validation", {})
    choice: Row = validation.get("served_length", {})
    return choice


def _gain_text(gain: float | None) -> str:
    if gain is None:
        return UNKNOWN_GAIN
    return GAIN.format(gain=gain) if gain > 0 else NO_GAIN
