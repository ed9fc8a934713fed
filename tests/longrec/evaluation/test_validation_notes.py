"""What the validation says, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.evaluation import validation_notes


def length_row(length: int, auc: float, difference: float) -> dict[str, Any]:
    return {
        "length": length,
        "auc": auc,
        "auc_low": auc - 0.01,
        "auc_high": auc + 0.01,
        "difference": difference,
        "difference_low": difference - 0.005,
        "difference_high": difference + 0.005,
    }


def facts(**changes: Any) -> dict[str, Any]:
    """Return the facts of a bundle whose AUC falls beyond 32 events."""
    choice = {
        "length": 32,
        "reason": "the shortest length that validation does not distinguish",
        "is_falling": True,
        "curve": [length_row(32, 0.933, 0.0), length_row(1024, 0.911, -0.022)],
    }
    steps = [
        {"step": 100, "auc": 0.92, "logloss": 0.4},
        {"step": 200, "auc": 0.933, "logloss": 0.3},
    ]
    training = {
        "num_steps": 200,
        "best_step": 200,
        "stopped_by": "steps",
        "expected_gain": 0.0123,
        "validation": {"curve": steps, "served_length": choice},
    }
    return {**training, **changes}


def test_a_falling_curve_is_a_finding_with_numbers() -> None:
    [finding] = validation_notes.findings(facts())
    assert "0.9330 at 32 events, 0.9110 at 1,024" in finding
    assert "-0.0220 (-0.0270 to -0.0170)" in finding
    level = facts()
    level["validation"]["served_length"]["is_falling"] = False
    assert validation_notes.findings(level) == []


def test_the_notes_name_the_choice_and_the_expected_gain() -> None:
    served, gain = validation_notes.notes(facts())
    assert served.startswith("Served at 32 events: the shortest length")
    assert "expected to gain about 0.0123 AUC" in gain


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stopped_by": "patience", "expected_gain": 0.0}, "stopped after step 200: validations"),
        ({"stopped_by": "time"}, "train.max_seconds were over"),
        ({"best_step": 100}, "those of step 100 of 200"),
        ({"expected_gain": 0.0}, "expected to gain nothing"),
        ({"expected_gain": None}, "would gain is unknown"),
    ],
)
def test_the_notes_say_how_the_training_ended(changes: dict[str, Any], words: str) -> None:
    assert words in " ".join(validation_notes.notes(facts(**changes)))


def test_a_bundle_without_validation_has_no_sentences() -> None:
    assert validation_notes.findings({}) == validation_notes.notes({}) == []
