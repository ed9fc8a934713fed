"""Metrics against brute force, their intervals against the truth, and what they say when nothing is
defined.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from longrec.evaluation import bootstrap, metrics
from longrec.evaluation.popularity import smoothed_rates


def _pairs_auc(labels, scores, weights=None):
    """All pairs, one by one."""
    weights = np.ones(len(labels)) if weights is None else weights
    won = total = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == 1 and labels[j] == 0:
                weight = weights[i] * weights[j]
                total += weight
                won += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / total if total else math.nan


def _loop_gauc(labels, scores, users):
    total = weight = 0.0
    for user in np.unique(users):
        mine = users == user
        if labels[mine].min() == labels[mine].max():
            continue
        total += mine.sum() * _pairs_auc(labels[mine], scores[mine])
        weight += mine.sum()
    return total / weight if weight else math.nan


@st.composite
def _targets(draw):
    size = draw(st.integers(1, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    scores = draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    users = draw(st.lists(st.integers(-3, 5), min_size=size, max_size=size))
    return np.array(labels), np.array(scores) / 10, np.array(users)


@settings(max_examples=150, deadline=None)
@given(_targets())
def test_auc_and_gauc_equal_all_pairs(targets):
    labels, scores, users = targets
    np.testing.assert_allclose(
        metrics.auc(labels, scores), _pairs_auc(labels, scores), equal_nan=True
    )
    np.testing.assert_allclose(
        metrics.gauc(labels, scores, users), _loop_gauc(labels, scores, users), equal_nan=True
    )


@settings(max_examples=100, deadline=None)
@given(_targets(), st.integers(0, 2**31))
def test_weighted_auc_equals_repeated_users(targets, seed):
    labels, scores, users = targets
    uniques, dense = np.unique(users, return_inverse=True)
    weights = np.random.default_rng(seed).integers(0, 4, len(uniques)).astype(float)
    got = metrics.RankedTargets.sort(labels, scores, dense).auc(weights)
    np.testing.assert_allclose(got, _pairs_auc(labels, scores, weights[dense]), equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(_targets(), st.integers(0, 1000))
def test_every_bootstrap_sample_equals_the_metric_of_the_expanded_targets(targets, seed):
    labels, scores, users = targets
    resamples = bootstrap.Resamples.of_users(users, 3, seed)
    got = bootstrap.measure(labels, scores, resamples)
    if resamples.num_users < 2:
        assert all(np.isnan(sample).all() for sample in got.samples.values())
        return
    for index, weights in enumerate(resamples):
        rows = np.repeat(np.arange(len(labels)), weights[resamples.users].astype(int))
        copies = np.concatenate([np.arange(int(w)) for w in weights[resamples.users]])
        y, p, user = labels[rows], scores[rows], resamples.users[rows] * 100 + copies
        if "auc" in got.samples:
            np.testing.assert_allclose(got.samples["auc"][index], metrics.auc(y, p), equal_nan=True)
        if "gauc" in got.samples:
            np.testing.assert_allclose(
                got.samples["gauc"][index], metrics.gauc(y, p, user), equal_nan=True
            )
        if "ne" in got.samples:
            np.testing.assert_allclose(
                got.samples["ne"][index], metrics.normalized_entropy(y, p), equal_nan=True
            )
        if "calibration" in got.samples:
            np.testing.assert_allclose(
                got.samples["calibration"][index], metrics.calibration(y, p), equal_nan=True
            )
        np.testing.assert_allclose(got.samples["logloss"][index], metrics.logloss(y, p))


def test_point_metrics_equal_the_library_and_hand_values():
    generator = np.random.default_rng(0)
    scores = generator.random(500)
    labels = (generator.random(500) < scores).astype(int)
    got = bootstrap.measure(
        labels, scores, bootstrap.Resamples.of_users(generator.integers(0, 50, 500), 20, 0)
    )
    assert got.values["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert got.values["logloss"] == pytest.approx(log_loss(labels, scores))
    base = log_loss(labels, np.full(500, labels.mean()))
    assert got.values["ne"] == pytest.approx(log_loss(labels, scores) / base)
    assert got.values["calibration"] == pytest.approx(scores.mean() / labels.mean())
    assert metrics.normalized_entropy(labels, np.full(500, labels.mean())) == pytest.approx(1.0)
    hand = metrics.expected_calibration_error(
        np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.7]), num_bins=2
    )
    assert hand == pytest.approx((0.15 + 0.35) / 2)


def test_equal_scores_share_one_bin():
    labels = np.repeat([0, 1], 50)
    bins = metrics.reliability_bins(labels, np.full(100, 0.5), 10)
    assert bins == [{"score": 0.5, "rate": 0.5, "num_targets": 100}]
    assert metrics.expected_calibration_error(labels, np.full(100, 0.5)) == 0
    mixed = metrics.reliability_bins(labels, np.where(np.arange(100) < 30, 0.1, 0.9), 10)
    assert [entry["num_targets"] for entry in mixed] == [30, 70]


def test_saturated_scores_have_a_finite_loss():
    got = metrics.logloss(np.array([0, 1]), np.array([1.0, 0.0]))
    assert got == pytest.approx(-math.log(metrics.PROBABILITY_MARGIN))


@pytest.mark.parametrize(
    ("labels", "scores", "undefined"),
    [
        ([], [], set(bootstrap.METRICS)),
        ([0, 0, 0], [0.1, 0.2, 0.3], {"auc", "gauc", "ne", "calibration"}),
        ([1, 1, 1], [0.1, 0.2, 0.3], {"auc", "gauc", "ne"}),
        ([0, 1, 1], [0.1, math.nan, 0.3], set(bootstrap.METRICS)),
    ],
)
def test_what_is_not_defined_says_why(labels, scores, undefined):
    users = np.arange(len(labels))
    got = bootstrap.measure(
        np.array(labels), np.array(scores), bootstrap.Resamples.of_users(users, 10, 0)
    )
    assert set(got.reasons) == undefined
    assert set(got.values) == set(bootstrap.METRICS) - undefined
    assert all(got.reasons.values())
    as_json = got.to_dict()
    assert all(as_json[metric] is None for metric in undefined)
    for metric in undefined:
        assert got.estimate(metric).reason
        assert bootstrap.paired_difference(got, got, metric).value is None


def test_gauc_needs_a_user_with_both_labels():
    got = bootstrap.measure(
        np.array([0, 0, 1, 1]),
        np.array([0.1, 0.2, 0.3, 0.4]),
        bootstrap.Resamples.of_users(np.array([1, 1, 2, 2]), 10, 0),
    )
    assert got.values["auc"] == 1 and got.num_ranked_users == 0
    assert got.reasons["gauc"] == "no user has both labels"


def test_one_user_has_no_interval():
    got = bootstrap.measure(
        np.array([0, 1]),
        np.array([0.1, 0.2]),
        bootstrap.Resamples.of_users(np.array([7, 7]), 10, 0),
    )
    assert got.estimate("auc") == bootstrap.Estimate(
        1.0, reason="there are too few users for an interval"
    )


def test_intervals_cover_the_true_auc():
    """Clustered users, a known population AUC: 95 % intervals hold it in at least 85 of 100 worlds,
    and not always by width.
    """
    world = np.random.default_rng(1)

    def draw(num_users):
        users = np.repeat(np.arange(num_users), 8)
        taste = world.normal(size=num_users)[users]
        noise = world.normal(size=len(users))
        labels = (world.random(len(users)) < 1 / (1 + np.exp(-taste - noise))).astype(int)
        return labels, 1 / (1 + np.exp(-taste)), users

    labels, scores, _ = draw(40_000)
    truth = roc_auc_score(labels, scores)
    covered, widths = 0, []
    for seed in range(100):
        labels, scores, users = draw(150)
        estimate = bootstrap.measure(
            labels, scores, bootstrap.Resamples.of_users(users, 200, seed)
        ).estimate("auc")
        covered += estimate.low <= truth <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert 85 <= covered <= 100
    assert np.mean(widths) < 0.12


def test_paired_intervals_are_narrower_than_the_difference_of_two_models():
    generator = np.random.default_rng(3)
    users = np.repeat(np.arange(200), 5)
    scores = generator.random(1000)
    labels = (generator.random(1000) < scores).astype(int)
    worse = np.clip(scores + generator.normal(0, 0.05, 1000), 0, 1)
    resamples = bootstrap.Resamples.of_users(users, 200, 0)
    ours, theirs = (
        bootstrap.measure(labels, scores, resamples),
        bootstrap.measure(labels, worse, resamples),
    )
    paired = bootstrap.paired_difference(ours, theirs)
    alone = ours.estimate("auc")
    assert paired.value == pytest.approx(ours.values["auc"] - theirs.values["auc"])
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    same = bootstrap.paired_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_resamples_are_the_same_at_every_reading():
    resamples = bootstrap.Resamples.of_users(np.array([3, 3, 9, 12]), 5, 7)
    first, second = list(resamples), list(resamples)
    assert len(first) == 5
    np.testing.assert_array_equal(first, second)
    assert all(weights.sum() == 3 for weights in first)


def test_smoothed_rates_by_hand():
    rates = smoothed_rates(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 0]), 3, strength=2.0)
    np.testing.assert_allclose(rates, [(2 + 1) / 5, (0 + 1) / 3, 0.5])
    assert smoothed_rates(np.array([], np.int64), np.array([]), 2).tolist() == [0.5, 0.5]
