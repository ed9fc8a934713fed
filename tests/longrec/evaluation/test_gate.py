"""Judge every bound of the gate on both of its sides, and read the sentences."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from longrec.config import GateConfig
from longrec.evaluation.bootstrap import Estimate, TaskMetrics
from longrec.evaluation.gate import BaselineDifference, Bounds, Evidence, Verdict, judge

GATE = GateConfig(
    min_auc=0.6,
    min_gain_over_popularity=0.01,
    min_calibration=0.8,
    max_calibration=1.25,
    max_parity_error=1e-4,
)


def measured(
    auc: float | None = 0.7, calibration: float | None = 1.0, ece: float = 0.01
) -> TaskMetrics:
    values = {"auc": auc, "calibration": calibration, "ece": ece}
    return TaskMetrics(
        values={name: value for name, value in values.items() if value is not None},
        reasons={"auc": "all labels are 1"},
        samples={},
        num_targets=10,
        num_positives=5,
        num_users=4,
        num_ranked_users=3,
    )


def calibrated(value: float, low: float | None, high: float | None) -> TaskMetrics:
    """Return metrics whose calibration has a value and an interval."""
    samples = {} if low is None or high is None else {"calibration": np.linspace(low, high, 10_001)}
    return dataclasses.replace(measured(calibration=value), samples=samples)


def evidence(**changes: Any) -> Evidence:
    """Return evidence that passes GATE, unless it is changed."""
    arguments: dict[str, Any] = {
        "tasks": {"click": measured()},
        "gains": {"click": Estimate(0.05)},
        "parity_error": 1e-6,
    }
    return Evidence(**{**arguments, **changes})


def failed_names(verdict: Verdict) -> list[str]:
    return [entry["name"] for entry in verdict.criteria if not entry["passed"]]


@pytest.mark.parametrize(
    ("auc", "calibration", "gain", "parity", "failed"),
    [
        (0.7, 1.0, 0.05, 1e-6, ()),
        (0.6, 0.8, 0.01, 1e-4, ()),
        (
            0.599,
            1.0,
            0.05,
            1e-6,
            ("The AUC, 0.5990, is not at least 0.6: it misses gate.min_auc by 0.001.",),
        ),
        (0.7, 0.79, 0.05, 1e-6, ("calibration",)),
        (0.7, 1.26, 0.05, 1e-6, ("calibration",)),
        (0.7, 1.0, 0.0099, 1e-6, ("gain over popularity",)),
        (0.7, 1.0, 0.05, 2e-4, ("batches and raw rows",)),
        (None, 1.0, None, None, ("The AUC is not defined: all labels are 1", "gain", "finite")),
        (0.5, 3.0, -0.1, 1.0, ("The AUC,", "gain", "calibration", "batches")),
        (0.7, None, 0.05, 1e-6, ("calibration", "calibration")),
    ],
)
def test_bounds_of_the_model_alone(
    auc: float | None,
    calibration: float | None,
    gain: float | None,
    parity: float | None,
    failed: tuple[str, ...],
) -> None:
    found = evidence(
        tasks={"click": measured(auc, calibration)},
        gains={"click": Estimate(gain, reason="no AUC")},
        parity_error=parity,
    )
    verdict = judge(found, GATE)
    assert verdict.passed == (not failed)
    assert len(verdict.reasons) == (len(failed) or 5)
    for expected, reason in zip(failed, verdict.reasons, strict=False):
        assert expected in reason
    assert len(failed_names(verdict)) == len(failed)


def test_every_task_is_judged_and_named() -> None:
    found = evidence(
        tasks={"click": measured(), "buy": measured(0.55)},
        gains={"click": Estimate(0.05), "buy": Estimate(0.0)},
    )
    reasons = judge(found, GATE).reasons
    assert len(reasons) == 2
    assert "The AUC of buy, 0.5500" in reasons[0]
    assert "gain of buy" in reasons[1]


@pytest.mark.parametrize(("low", "passed"), [(-0.0051, False), (-0.0049, True), (0.001, True)])
def test_a_loss_that_the_interval_does_not_exclude_fails(low: float, passed: bool) -> None:
    difference = Estimate(low + 0.004, low, low + 0.008)
    verdict = judge(evidence(champion_differences={"click": difference}), GATE)
    assert verdict.passed is passed
    assert any("minus the champion's" in entry["sentence"] for entry in verdict.criteria)


@pytest.mark.parametrize(("high", "passed"), [(-0.006, False), (-0.004, True)])
def test_a_further_task_fails_only_when_it_is_clearly_worse(high: float, passed: bool) -> None:
    differences = {
        "click": Estimate(0.0, -0.001, 0.001),
        "buy": Estimate(high - 0.05, high - 0.1, high),
    }
    found = evidence(
        tasks={"click": measured(), "buy": measured()},
        gains={"click": Estimate(0.05), "buy": Estimate(0.05)},
        champion_differences=differences,
    )
    assert judge(found, GATE).passed is passed


def test_a_difference_without_an_interval_excludes_no_loss() -> None:
    difference = Estimate(0.02, reason="there are too few users for an interval")
    verdict = judge(evidence(champion_differences={"click": difference}), GATE)
    assert not verdict.passed
    assert "too few users for an interval" in verdict.reasons[0]


def best_baseline(low: float | None, high: float | None) -> BaselineDifference:
    reason = "" if high is not None else "all labels are 1"
    value = None if low is None or high is None else (low + high) / 2
    return BaselineDifference("boosted trees", Estimate(value, low, high, reason))


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [
        (-0.0019, 0.01, True),
        (-0.0021, 0.01, False),
        (-0.0021, -0.002, False),
        (0.0, 0.01, True),
        (None, None, False),
    ],
)
def test_without_a_champion_the_best_baseline_counts(
    low: float | None, high: float | None, passed: bool
) -> None:
    verdict = judge(evidence(best_baselines={"click": best_baseline(low, high)}), GateConfig())
    assert verdict.passed is passed
    assert passed or failed_names(verdict) == ["max_loss_to_baseline"]
    criterion = next(row for row in verdict.criteria if row["name"] == "max_loss_to_baseline")
    assert "best baseline (boosted trees)" in criterion["sentence"]


def test_a_refusal_names_the_bound_and_by_how_much_it_was_missed() -> None:
    found = evidence(best_baselines={"click": best_baseline(-0.0123, 0.01)})
    verdict = judge(found, GateConfig())
    assert "it misses gate.max_loss_to_baseline by 0.01." in verdict.reasons[0]
    row = next(row for row in verdict.criteria if not row["passed"])
    assert row["missed_by"] == pytest.approx(0.0103)


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [(-0.1, -0.0019, True), (-0.1, -0.0021, False), (None, None, True)],
)
def test_a_further_task_loses_to_a_baseline_only_when_it_is_clearly_worse(
    low: float | None, high: float | None, passed: bool
) -> None:
    found = evidence(
        tasks={"click": measured(), "buy": measured()},
        gains={"click": Estimate(0.05), "buy": Estimate(0.05)},
        best_baselines={"click": best_baseline(0.0, 0.01), "buy": best_baseline(low, high)},
    )
    assert judge(found, GateConfig()).passed is passed


def test_a_compared_champion_takes_the_place_of_the_baseline() -> None:
    found = evidence(
        best_baselines={"click": best_baseline(-0.5, -0.4)},
        champion_differences={"click": Estimate(0.0, -0.001, 0.001)},
    )
    verdict = judge(found, GateConfig())
    assert verdict.passed
    assert "max_loss_to_baseline" not in {row["name"] for row in verdict.criteria}


@pytest.mark.parametrize(("low", "passed"), [(0.0, True), (-0.1, False)])
def test_the_best_baseline_replaces_a_champion_that_cannot_be_compared(
    low: float, passed: bool
) -> None:
    found = evidence(
        champion_problem="another schema", best_baselines={"click": best_baseline(low, 0.01)}
    )
    verdict = judge(found, GateConfig())
    assert verdict.passed is passed
    sentences = " ".join(row["sentence"] for row in verdict.criteria)
    assert "could not be compared: another schema. The best baseline takes its place." in sentences


def test_a_champion_that_cannot_be_compared_fails_where_no_baseline_counts() -> None:
    gate = GateConfig(max_loss_to_baseline=1)
    found = evidence(
        champion_problem="another schema", best_baselines={"click": best_baseline(0.0, 0.1)}
    )
    verdict = judge(found, gate)
    assert verdict.reasons == ("The champion could not be compared: another schema.",)


@pytest.mark.parametrize(
    ("value", "low", "high", "failed"),
    [
        (0.7, 0.5, 0.9, []),
        (0.7, 0.6, 0.79, ["min_calibration"]),
        (1.5, 1.2, 1.8, []),
        (1.5, 1.3, 1.8, ["max_calibration"]),
        (0.7, None, None, ["min_calibration"]),
    ],
)
def test_calibration_fails_only_when_its_whole_interval_misses(
    value: float, low: float | None, high: float | None, failed: list[str]
) -> None:
    verdict = judge(evidence(tasks={"click": calibrated(value, low, high)}), GateConfig())
    assert failed_names(verdict) == failed


def test_a_further_task_without_positives_is_not_judged() -> None:
    found = evidence(tasks={"click": measured(), "buy": measured(calibration=None)})
    verdict = judge(found, GateConfig())
    assert verdict.passed
    assert any("it is not judged" in row["sentence"] for row in verdict.criteria)


def test_the_default_gate_has_no_absolute_bound_of_the_auc() -> None:
    found = evidence(tasks={"click": measured(0.51)}, gains={"click": Estimate(-0.4)})
    assert judge(found, GateConfig()).passed


@pytest.mark.parametrize(
    ("row", "failed"),
    [
        ({"num_targets": 1_000, "auc": 0.49}, 1),
        ({"num_targets": 999, "auc": 0.49}, 0),
        ({"num_targets": 1_000, "auc": 0.51}, 0),
        ({"num_targets": 1_000, "auc": None}, 0),
        ({"num_targets": 5_000, "auc": 0.7, "difference_high": -0.021}, 1),
        ({"num_targets": 5_000, "auc": 0.7, "difference_high": -0.019}, 0),
        ({"num_targets": 5_000, "auc": 0.7, "difference_high": None}, 0),
    ],
)
def test_large_slices_are_judged(row: dict[str, Any], failed: int) -> None:
    gate = GateConfig(min_slice_auc=0.5)
    row = {"family": "history", "name": "0 events", **row}
    verdict = judge(evidence(slices=[row]), gate)
    assert len(failed_names(verdict)) == failed
    assert failed == 0 or "where history 0 events" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("options", "changes", "name"),
    [
        ({"max_latency_ms": 50.0}, {"latency_p95_ms": 51.0}, "max_latency_ms"),
        ({"max_latency_ms": 50.0}, {"latency_p95_ms": None}, "max_latency_ms"),
        ({"max_ece": 0.05}, {"tasks": {"click": measured(ece=0.06)}}, "max_ece"),
        ({"max_unknown_item_share": 0.1}, {"unknown_item_share": 0.11}, "max_unknown_item_share"),
    ],
)
def test_bounds_that_are_off_by_default(
    options: dict[str, float], changes: dict[str, Any], name: str
) -> None:
    assert judge(evidence(**changes), GateConfig()).passed
    verdict = judge(evidence(**changes), GateConfig(**options))
    assert failed_names(verdict) == [name]


def test_a_value_that_is_not_a_number_passes_no_bound() -> None:
    verdict = judge(evidence(parity_error=math.nan), GATE)
    assert failed_names(verdict) == ["max_parity_error"]
    assert not Bounds(low=0.0).contain(math.nan)
