"""Compare rates and counts before each request with loops over every target."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.data.loading.label_rates import (
    LabelledTargets,
    event_counts_before,
    overall_rates_before,
    rates_before,
)
from longrec.evaluation.baselines.rates import combined_rates

STRENGTH = 2.0


@pytest.fixture
def known() -> LabelledTargets:
    rng = np.random.default_rng(0)
    return LabelledTargets(
        groups=rng.integers(0, 4, 200),
        times=rng.integers(0, 20, 200) * 1_000,
        labels=rng.integers(0, 2, 200),
    )


def test_rates_equal_a_loop_over_strictly_earlier_targets(known: LabelledTargets) -> None:
    rates = rates_before(known, known.groups, known.times, STRENGTH)
    for row, rate in enumerate(rates):
        earlier = known.times < known.times[row]
        prior = known.labels[earlier].mean() if earlier.any() else 0.5
        in_group = known.labels[earlier & (known.groups == known.groups[row])]
        expected = (in_group.sum() + STRENGTH * prior) / (len(in_group) + STRENGTH)
        assert rate == pytest.approx(expected)


def test_a_target_sees_neither_its_own_label_nor_one_of_the_same_time(
    known: LabelledTargets,
) -> None:
    rates = rates_before(known, known.groups, known.times)
    for time in np.unique(known.times):
        now = known.times == time
        labels = np.where(now, 1 - known.labels, known.labels)
        flipped = LabelledTargets(known.groups, known.times, labels)
        after = rates_before(flipped, known.groups, known.times)
        np.testing.assert_array_equal(after[now], rates[now])


def test_rates_by_hand() -> None:
    known = LabelledTargets(
        groups=np.array([0, 0, 0, 1]),
        times=np.array([1, 2, 3, 4]),
        labels=np.array([1, 1, 0, 0]),
    )
    groups = np.array([0, 1, 2])
    rates = rates_before(known, groups, np.array([9, 9, 9]), STRENGTH)
    np.testing.assert_allclose(rates, [(2 + 1) / 5, (0 + 1) / 3, 0.5])


def test_without_known_labels_every_rate_is_a_half() -> None:
    nothing = LabelledTargets(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    rates = rates_before(nothing, np.array([0, 1]), np.array([5, 6]))
    assert rates.tolist() == [0.5, 0.5]
    assert overall_rates_before(nothing, np.array([5])).tolist() == [0.5]


def test_event_counts_equal_a_loop() -> None:
    rng = np.random.default_rng(1)
    event_groups = rng.integers(-1, 5, 300)
    event_times = rng.integers(0, 40, 300)
    groups = rng.integers(0, 5, 50)
    times = rng.integers(0, 40, 50)
    counts = event_counts_before(event_groups, event_times, groups, times)
    for row, count in enumerate(counts):
        matching = (event_groups == groups[row]) & (event_times < times[row])
        assert count == matching.sum()


def test_a_user_of_the_mean_rate_leaves_the_item_rate() -> None:
    item = np.array([0.1, 0.5, 0.9])
    mean = np.full(3, 0.3)
    np.testing.assert_allclose(combined_rates(item, mean, mean), item)
    assert (combined_rates(item, np.full(3, 0.6), mean) > item).all()


def test_rates_of_one_class_combine_to_finite_rates() -> None:
    for rate in (0.0, 1.0):
        same = np.full(2, rate)
        assert np.isfinite(combined_rates(same, same, same)).all()
