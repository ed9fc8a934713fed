"""Compare metrics with brute force, scikit-learn and values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from longrec.evaluation import bootstrap, metrics
from longrec.evaluation.bootstrap import Resamples
from tests.longrec.evaluation.brute_force import auc_of_pairs, gauc_of_loops, targets


@settings(max_examples=150, deadline=None)
@given(targets())
def test_auc_and_gauc_equal_all_pairs(sample):
    labels, scores, users = sample
    auc = metrics.auc(labels, scores)
    np.testing.assert_allclose(
        auc,
        auc_of_pairs(labels, scores),
        equal_nan=True,
    )
    gauc = metrics.gauc(labels, scores, users)
    np.testing.assert_allclose(
        gauc,
        gauc_of_loops(
            labels,
            scores,
            users,
        ),
        equal_nan=True,
    )


@settings(max_examples=100, deadline=None)
@given(targets(), st.integers(0, 2**31))
def test_weighted_auc_equals_repeated_users(sample, seed):
    labels, scores, users = sample
    uniques, user_index = np.unique(users, return_inverse=True)
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, 4, len(uniques)).astype(float)
    ranked = metrics.RankedTargets.sort(labels, scores, user_index)
    expected = auc_of_pairs(labels, scores, weights[user_index])
    np.testing.assert_allclose(ranked.auc(weights), expected, equal_nan=True)


def test_metrics_equal_scikit_learn():
    generator = np.random.default_rng(0)
    scores = generator.random(500)
    labels = (generator.random(500) < scores).astype(int)
    users = generator.integers(0, 50, 500)
    resamples = Resamples.of_users(users, 20, 0)
    values = bootstrap.measure(labels, scores, resamples).values
    loss = log_loss(labels, scores)
    loss_of_mean = log_loss(labels, np.full(500, labels.mean()))
    assert values["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert values["logloss"] == pytest.approx(loss)
    assert values["ne"] == pytest.approx(loss / loss_of_mean)
    assert values["calibration"] == pytest.approx(scores.mean() / labels.mean())


def test_fast_metrics_equal_scikit_learn_by_user_and_by_weight():
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 40, 600) / 40
    labels = (generator.random(600) < scores).astype(float)
    users = generator.integers(0, 20, 600)
    weights = generator.integers(0, 4, 20).astype(float)
    ranked = metrics.RankedTargets.sort(labels, scores, users)
    expected = roc_auc_score(labels, scores, sample_weight=weights[users])
    assert ranked.auc(weights) == pytest.approx(expected)
    aucs, _ = metrics.user_aucs(labels, scores, users, 20)
    of_users = [roc_auc_score(labels[users == user], scores[users == user]) for user in range(20)]
    assert aucs == pytest.approx(of_users)
    inside = np.clip(scores, 0.01, 0.99)
    assert metrics.log_losses(labels, inside).mean() == pytest.approx(log_loss(labels, inside))


def test_the_normalized_entropy_of_the_mean_is_one():
    labels = np.array([0, 0, 1])
    mean = np.full(3, labels.mean())
    assert metrics.normalized_entropy(labels, mean) == pytest.approx(1.0)


def test_the_calibration_error_by_hand():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.6, 0.7])
    error = metrics.expected_calibration_error(labels, scores, num_bins=2)
    assert error == pytest.approx((0.15 + 0.35) / 2)


def test_equal_scores_share_one_bin():
    labels = np.repeat([0, 1], 50)
    equal = np.full(100, 0.5)
    assert metrics.reliability_bins(labels, equal, 10) == [
        {"score": 0.5, "rate": 0.5, "num_targets": 100},
    ]
    assert metrics.expected_calibration_error(labels, equal) == 0
    two_scores = np.where(np.arange(100) < 30, 0.1, 0.9)
    bins = metrics.reliability_bins(labels, two_scores, 10)
    assert [row["num_targets"] for row in bins] == [30, 70]


def test_saturated_scores_have_a_finite_loss():
    loss = metrics.logloss(np.array([0, 1]), np.array([1.0, 0.0]))
    assert loss == pytest.approx(-math.log(metrics.PROBABILITY_MARGIN))
