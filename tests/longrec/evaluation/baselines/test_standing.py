"""Name the standing of a ranker by intervals, and say it in one sentence."""

from __future__ import annotations

import pytest

from longrec.evaluation.baselines.standing import describe, standing
from longrec.evaluation.bootstrap import Estimate


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "above"), (-0.2, -0.1, "below"), (-0.1, 0.1, "level"), (None, None, "unknown")],
)
def test_the_standing_follows_the_interval(
    low: float | None, high: float | None, expected: str
) -> None:
    assert standing(Estimate(0.0, low, high)) == expected


def row(name: str, value: str) -> dict[str, str]:
    return {"name": name, "standing": value}


def test_the_sentence_names_the_worst_first() -> None:
    rows = [row("trees", "below"), row("recency", "level"), row("rate", "above")]
    sentence = describe(rows)
    assert sentence == "The model is below trees; level with recency; above rate."


def test_a_model_above_all_needs_no_names() -> None:
    sentence = describe([row("trees", "above"), row("rate", "above")])
    assert sentence == "The model is above all 2 baselines."


def test_a_missing_baseline_is_named() -> None:
    sentence = describe([row("rate", "above"), row("trees", "unknown")])
    assert sentence == "The model is above rate; not compared with trees."
    assert "no baseline" in describe([])
