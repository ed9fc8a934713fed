"""Compare bootstrap intervals with expanded samples and with a known population."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from longrec.evaluation import bootstrap, metrics
from longrec.evaluation.bootstrap import METRICS, Estimate, Resamples
from tests.longrec.evaluation.brute_force import targets


@settings(max_examples=60, deadline=None)
@given(targets(), st.integers(0, 1000))
def test_every_resample_equals_the_metric_of_the_expanded_targets(sample, seed):
    labels, scores, users = sample
    resamples = Resamples.of_users(users, 3, seed)
    measured = bootstrap.measure(labels, scores, resamples)
    if resamples.num_users < 2:
        assert all(np.isnan(values).all() for values in measured.samples.values())
        return
    for index, user_weights in enumerate(resamples):
        weights = user_weights[resamples.users].astype(int)
        rows = np.repeat(np.arange(len(labels)), weights)
        # A user that was drawn twice counts as two users.
        copies = np.concatenate([np.arange(weight) for weight in weights])
        expected = metrics_of(
            labels[rows],
            scores[rows],
            resamples.users[rows] * 100 + copies,
        )
        assert "logloss" in measured.samples
        for metric, values in measured.samples.items():
            np.testing.assert_allclose(
                values[index],
                expected[metric],
                equal_nan=True,
            )


def metrics_of(labels, scores, users):
    """Return all metrics that are resampled."""
    return {
        "auc": metrics.auc(labels, scores),
        "gauc": metrics.gauc(labels, scores, users),
        "ne": metrics.normalized_entropy(labels, scores),
        "calibration": metrics.calibration(labels, scores),
        "logloss": metrics.logloss(labels, scores),
    }


@pytest.mark.parametrize(
    ("labels", "scores", "undefined"),
    [
        ([], [], set(METRICS)),
        ([0, 0, 0], [0.1, 0.2, 0.3], {"auc", "gauc", "ne", "calibration"}),
        ([1, 1, 1], [0.1, 0.2, 0.3], {"auc", "gauc", "ne"}),
        ([0, 1, 1], [0.1, math.nan, 0.3], set(METRICS)),
    ],
)
def test_an_undefined_metric_has_a_reason(labels, scores, undefined):
    resamples = Resamples.of_users(np.arange(len(labels)), 10, 0)
    measured = bootstrap.measure(
        np.array(labels),
        np.array(scores),
        resamples,
    )
    assert set(measured.reasons) == undefined
    assert set(measured.values) == set(METRICS) - undefined
    assert all(measured.reasons.values())
    as_json = measured.to_dict()
    for metric in undefined:
        assert as_json[metric] is None
        assert measured.estimate(metric).reason
        difference = bootstrap.paired_difference(measured, measured, metric)
        assert difference.value is None


def test_gauc_needs_a_user_with_both_labels():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    resamples = Resamples.of_users(np.array([1, 1, 2, 2]), 10, 0)
    measured = bootstrap.measure(labels, scores, resamples)
    assert measured.values["auc"] == 1
    assert measured.num_ranked_users == 0
    assert measured.reasons["gauc"] == "no user has both labels"


def test_one_user_has_no_interval():
    resamples = Resamples.of_users(np.array([7, 7]), 10, 0)
    measured = bootstrap.measure(
        np.array([0, 1]),
        np.array([0.1, 0.2]),
        resamples,
    )
    reason = "there are too few users for an interval"
    assert measured.estimate("auc") == Estimate(1.0, reason=reason)


def test_intervals_cover_the_true_auc():
    """95 % intervals hold the AUC of the population in at least 85 of 100 samples.

    The users are clustered. The intervals are also narrow, so they do not cover it by width.
    """
    generator = np.random.default_rng(1)

    def draw(num_users):
        users = np.repeat(np.arange(num_users), 8)
        taste = generator.normal(size=num_users)[users]
        noise = generator.normal(size=len(users))
        probability = 1 / (1 + np.exp(-taste - noise))
        labels = (generator.random(len(users)) < probability).astype(int)
        return labels, 1 / (1 + np.exp(-taste)), users

    labels, scores, _ = draw(40_000)
    true_auc = roc_auc_score(labels, scores)
    num_covered = 0
    widths = []
    for seed in range(100):
        labels, scores, users = draw(150)
        resamples = Resamples.of_users(users, 200, seed)
        measured = bootstrap.measure(labels, scores, resamples)
        estimate = measured.estimate("auc")
        num_covered += estimate.low <= true_auc <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert 85 <= num_covered <= 100
    assert np.mean(widths) < 0.12


def test_paired_intervals_are_narrower_than_the_difference_of_two_models():
    generator = np.random.default_rng(3)
    users = np.repeat(np.arange(200), 5)
    scores = generator.random(1000)
    labels = (generator.random(1000) < scores).astype(int)
    noise = generator.normal(0, 0.05, 1000)
    worse_scores = np.clip(scores + noise, 0, 1)
    resamples = Resamples.of_users(users, 200, 0)
    ours = bootstrap.measure(labels, scores, resamples)
    theirs = bootstrap.measure(labels, worse_scores, resamples)
    paired = bootstrap.paired_difference(ours, theirs)
    alone = ours.estimate("auc")
    assert paired.value == pytest.approx(ours.values["auc"] - theirs.values["auc"])
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    same = bootstrap.paired_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_resamples_are_the_same_at_every_iteration():
    resamples = Resamples.of_users(np.array([3, 3, 9, 12]), 5, 7)
    first = list(resamples)
    second = list(resamples)
    assert len(first) == 5
    np.testing.assert_array_equal(first, second)
    assert all(weights.sum() == 3 for weights in first)
