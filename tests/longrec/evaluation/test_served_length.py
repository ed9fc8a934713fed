"""The served length is the shortest one that validation does not distinguish from the best."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longrec.evaluation import served_length
from longrec.evaluation.bootstrap import Resamples
from longrec.evaluation.length_curve import LengthScores
from longrec.evaluation.served_length import LengthChoice, choose_served_length

LENGTHS = (8, 16, 32, 64)
NUM_USERS = 60
TARGETS_PER_USER = 40


def choose(
    monkeypatch: pytest.MonkeyPatch,
    noise: dict[int, float],
    *,
    num_users: int = NUM_USERS,
    same_as: dict[int, int] | None = None,
    num_labels: int = 2,
) -> LengthChoice:
    """Choose among lengths whose scores are the label plus noise."""
    rng = np.random.default_rng(0)
    num_targets = num_users * TARGETS_PER_USER
    labels = rng.integers(0, num_labels, num_targets)
    error = rng.normal(size=num_targets)
    own_error = {length: rng.normal(size=num_targets) for length in noise}
    users = np.repeat(np.arange(num_users), TARGETS_PER_USER)
    sample: Any = SimpleNamespace(
        labels=labels[:, None],
        resamples=Resamples.of_users(users, 100, 0),
    )

    def score_lengths(*arguments: Any) -> list[LengthScores]:
        entries = []
        for length, level in noise.items():
            source = (same_as or {}).get(length)
            errors = error + 0.05 * own_error[length if source is None else source]
            logits = labels + level * errors
            scores = 1 / (1 + np.exp(-logits))
            entries.append(LengthScores(length, length, source, scores[:, None]))
        return entries

    monkeypatch.setattr(served_length, "score_lengths", score_lengths)
    nothing: Any = None
    return choose_served_length(nothing, nothing, sample, tuple(noise))


def test_a_rising_curve_is_served_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {8: 2.0, 16: 1.5, 32: 1.2, 64: 1.0})
    assert choice.length == 64
    assert not choice.is_falling
    assert [row["length"] for row in choice.curve] == list(LENGTHS)
    aucs = [row["auc"] for row in choice.curve]
    assert aucs == sorted(aucs)
    assert choice.curve[0]["difference_high"] < 0 == choice.curve[-1]["difference"]


def test_where_it_no_longer_rises_the_shortest_level_length_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = choose(monkeypatch, {8: 2.0, 16: 1.001, 32: 1.0, 64: 1.0})
    assert choice.length == 16
    assert not choice.is_falling
    assert "does not distinguish from the best one" in choice.reason


def test_a_falling_curve_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {8: 1.6, 16: 1.0, 32: 1.3, 64: 1.6})
    assert choice.length == 16
    assert choice.is_falling


def test_lengths_that_cut_nothing_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = {8: 1.5, 16: 1.0, 32: 1.0, 64: 1.0}
    choice = choose(monkeypatch, noise, same_as={32: 16, 64: 16})
    assert choice.length == 16
    assert choice.curve[2]["difference"] == 0


@pytest.mark.parametrize("undefined", [{"num_users": 1}, {"num_labels": 1}])
def test_without_an_interval_the_longest_is_served(
    monkeypatch: pytest.MonkeyPatch,
    undefined: dict[str, int],
) -> None:
    choice = choose(monkeypatch, {8: 1.0, 64: 2.0}, **undefined)
    assert choice.length == 64
    assert "no interval" in choice.reason
    assert not choice.is_falling


def test_without_validation_the_longest_is_served() -> None:
    nothing: Any = None
    choice = choose_served_length(nothing, nothing, None, LENGTHS)
    assert choice.length == 64
    assert "no validation requests" in choice.reason
    assert choose_served_length(nothing, nothing, None, [8]).reason == "it was set"
