"""Measure baselines on small histories whose labels depend on repeats."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from longrec.config import EvaluateConfig
from longrec.data.histories import SPLITS, Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation.baselines import comparison
from longrec.evaluation.baselines.comparison import (
    POPULARITY,
    Baseline,
    best,
    comparison_rows,
    measure_baselines,
)
from longrec.evaluation.sample import draw_sample
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories

NAMES = [
    "item rate",
    "item count",
    "item and user rate",
    "recency of item_id",
    "frequency of item_id",
    "recency of topic",
    "frequency of topic",
    "boosted trees",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Inputs of an evaluation without a ranker."""
    folder = tmp_path_factory.mktemp("data")
    histories = Histories.open(small_histories.write(folder / "histories", num_users=30))
    encoded = EncodedHistories.encode(histories, fit_encoder(histories), folder / "encoded")
    return SimpleNamespace(
        histories=histories,
        encoded=encoded,
        sample=draw_sample(encoded, EvaluateConfig(bootstrap_samples=20), 0),
        task_names=histories.schema.task_names,
        seed=0,
    )


@pytest.fixture(scope="module")
def baselines(inputs: Any) -> dict[str, tuple[Baseline, ...]]:
    return measure_baselines(inputs)


def changed(inputs: Any, **changes: Any) -> Any:
    return SimpleNamespace(**{**vars(inputs), **changes})


def test_every_task_has_every_baseline(baselines: dict[str, tuple[Baseline, ...]]) -> None:
    assert list(baselines) == ["click", "buy"]
    for measured in baselines.values():
        assert [baseline.name for baseline in measured] == NAMES


def test_scores_are_probabilities(baselines: dict[str, tuple[Baseline, ...]]) -> None:
    for baseline in baselines["click"]:
        assert ((baseline.scores >= 0) & (baseline.scores <= 1)).all(), baseline.name


def test_repeats_of_the_topic_beat_the_item_rate(
    baselines: dict[str, tuple[Baseline, ...]],
) -> None:
    aucs = {baseline.name: baseline.auc for baseline in baselines["click"]}
    assert aucs["frequency of topic"] > aucs["item rate"] + 0.1
    assert aucs["boosted trees"] > aucs["item rate"] + 0.1
    assert best(baselines["click"]).auc == max(aucs.values())
    assert best(baselines["click"], POPULARITY).name in POPULARITY


def test_the_auc_of_a_repeat_is_that_of_its_raw_value(
    inputs: Any, baselines: dict[str, tuple[Baseline, ...]]
) -> None:
    counts = comparison._read_window(inputs).sample.repeats["topic"].counts
    labels = inputs.sample.labels[:, 0]
    frequency = dict(zip(NAMES, baselines["click"], strict=True))["frequency of topic"]
    assert frequency.auc == pytest.approx(roc_auc_score(labels, counts))


def test_a_repeat_that_speaks_against_the_label_is_turned_round(inputs: Any) -> None:
    labels = 1 - np.array(inputs.encoded.labels)
    encoded = dataclasses.replace(inputs.encoded, labels=labels)
    sample = dataclasses.replace(inputs.sample, labels=labels[inputs.sample.target_positions])
    turned = measure_baselines(changed(inputs, encoded=encoded, sample=sample))
    aucs = {baseline.name: baseline.auc for baseline in turned["click"]}
    assert aucs["frequency of topic"] > 0.6


def test_labels_of_the_evaluation_change_no_score(
    inputs: Any, baselines: dict[str, tuple[Baseline, ...]]
) -> None:
    labels = np.array(inputs.encoded.labels)
    positions = inputs.sample.target_positions
    labels[positions] = 1 - labels[positions]
    encoded = dataclasses.replace(inputs.encoded, labels=labels)
    again = measure_baselines(changed(inputs, encoded=encoded))
    for before, after in zip(baselines["click"], again["click"], strict=True):
        np.testing.assert_array_equal(before.scores, after.scores)


def test_one_class_in_training_leaves_a_reason(inputs: Any) -> None:
    labels = np.zeros_like(inputs.encoded.labels)
    encoded = dataclasses.replace(inputs.encoded, labels=labels)
    measured = measure_baselines(changed(inputs, encoded=encoded))
    trees = measured["click"][-1]
    assert np.isnan(trees.scores).all()
    reason = "all labels of the training window are 0"
    assert reason in trees.metrics.reasons["auc"]
    row = comparison_rows(measured["click"], measured["click"][0].metrics)[-1]
    assert row["auc"] is None
    assert row["standing"] == "unknown"
    assert reason in row["reason"]


def test_without_lightgbm_only_the_trees_are_missing(
    inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    measured = measure_baselines(inputs)["click"]
    assert [baseline.name for baseline in measured if np.isnan(baseline.scores).any()] == [
        "boosted trees"
    ]
    assert "pip install lightgbm" in measured[-1].metrics.reasons["auc"]


def test_a_later_part_never_shares_a_request_with_the_fit(inputs: Any) -> None:
    (_, train), (_, later) = comparison._split_fit(inputs.encoded)
    assert 0 < len(later) < len(train)
    assert train.max() < later.min()


def test_one_request_is_fitted_whole(inputs: Any) -> None:
    splits = np.array(inputs.encoded.splits)
    train = np.flatnonzero(splits == 1)
    splits[train[1:]] = 0
    encoded = dataclasses.replace(inputs.encoded, splits=splits)
    (positions, _), (later, _) = comparison._split_fit(encoded)
    assert len(positions) > 0
    assert len(later) == 0


def test_rows_are_sorted_and_paired(baselines: dict[str, tuple[Baseline, ...]]) -> None:
    ours = best(baselines["click"])
    rows = comparison_rows(baselines["click"], ours.metrics)
    aucs = [row["auc"] for row in rows]
    assert aucs == sorted(aucs, reverse=True)
    assert rows[0]["name"] == ours.name
    assert (rows[0]["difference"], rows[0]["difference_low"]) == (0.0, 0.0)
    assert rows[0]["standing"] == "level"
    by_name = {row["name"]: row for row in rows}
    assert by_name["item rate"]["standing"] == "above"


def test_a_validation_part_ends_the_fit_and_is_not_fitted(inputs: Any) -> None:
    splits = np.array(inputs.encoded.splits)
    train = np.flatnonzero(splits == SPLITS.index("train"))
    splits[train[-20:]] = SPLITS.index("validation")
    encoded = dataclasses.replace(inputs.encoded, splits=splits)
    (_, fitted), (_, later) = comparison._split_fit(encoded)
    assert set(fitted) == set(train[:-20])
    assert set(later) == set(train[-20:])
