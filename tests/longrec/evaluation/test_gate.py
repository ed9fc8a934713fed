"""The gate: every bound judged on both of its sides, in sentences that say what was found and what
was wanted.
"""

from __future__ import annotations

from typing import Any

import pytest

from longrec.config import GateConfig
from longrec.evaluation.bootstrap import Estimate, TaskMetrics
from longrec.evaluation.gate import Evidence, judge

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
    values = {
        name: value
        for name, value in (("auc", auc), ("calibration", calibration), ("ece", ece))
        if value is not None
    }
    return TaskMetrics(values, {"auc": "all labels are 1"}, {}, 10, 5, 4, 3)


def evidence(**changes: Any) -> Evidence:
    return Evidence(
        **{
            "tasks": {"click": measured()},
            "gains": {"click": Estimate(0.05)},
            "parity_error": 1e-6,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("auc", "calibration", "gain", "parity", "broken"),
    [
        (0.7, 1.0, 0.05, 1e-6, ()),
        (0.6, 0.8, 0.01, 1e-4, ()),
        (0.599, 1.0, 0.05, 1e-6, ("The AUC, 0.5990, is not at least 0.6.",)),
        (0.7, 0.79, 0.05, 1e-6, ("calibration",)),
        (0.7, 1.26, 0.05, 1e-6, ("calibration",)),
        (0.7, 1.0, 0.0099, 1e-6, ("gain over popularity",)),
        (0.7, 1.0, 0.05, 2e-4, ("batches and raw rows",)),
        (None, 1.0, None, None, ("The AUC is not defined: all labels are 1", "gain", "finite")),
        (0.5, 3.0, -0.1, 1.0, ("The AUC,", "gain", "calibration", "batches")),
    ],
)
def test_bounds_of_the_model_alone(
    auc: float | None,
    calibration: float | None,
    gain: float | None,
    parity: float | None,
    broken: tuple[str, ...],
) -> None:
    found = evidence(
        tasks={"click": measured(auc, calibration)},
        gains={"click": Estimate(gain, reason="no AUC")},
        parity_error=parity,
    )
    verdict = judge(found, GATE)
    assert verdict.passed == (not broken)
    assert len(verdict.reasons) == (len(broken) or 4)
    for expected, reason in zip(broken, verdict.reasons, strict=False):
        assert expected in reason
    assert [entry["passed"] for entry in verdict.criteria].count(False) == len(broken)


def test_every_task_is_judged_and_named() -> None:
    found = evidence(
        tasks={"click": measured(), "buy": measured(0.55)},
        gains={"click": Estimate(0.05), "buy": Estimate(0.0)},
    )
    reasons = judge(found, GATE).reasons
    assert (
        len(reasons) == 2 and "The AUC of buy, 0.5500" in reasons[0] and "gain of buy" in reasons[1]
    )


@pytest.mark.parametrize(("low", "passed"), [(-0.0051, False), (-0.0049, True), (0.001, True)])
def test_a_loss_that_the_interval_does_not_exclude_refuses(low: float, passed: bool) -> None:
    verdict = judge(
        evidence(champion_differences={"click": Estimate(low + 0.004, low, low + 0.008)}), GATE
    )
    assert verdict.passed is passed
    assert any("minus the champion's" in entry["sentence"] for entry in verdict.criteria)


@pytest.mark.parametrize(("high", "passed"), [(-0.006, False), (-0.004, True)])
def test_a_further_task_refuses_only_when_it_is_clearly_worse(high: float, passed: bool) -> None:
    apart = {"click": Estimate(0.0, -0.001, 0.001), "buy": Estimate(high - 0.05, high - 0.1, high)}
    found = evidence(
        tasks={"click": measured(), "buy": measured()},
        gains={"click": Estimate(0.05), "buy": Estimate(0.05)},
        champion_differences=apart,
    )
    assert judge(found, GATE).passed is passed


def test_a_difference_without_an_interval_excludes_no_loss() -> None:
    verdict = judge(
        evidence(
            champion_differences={
                "click": Estimate(0.02, reason="there are too few users for an interval")
            }
        ),
        GATE,
    )
    assert not verdict.passed and "too few users for an interval" in verdict.reasons[0]


def test_a_champion_that_cannot_be_compared_refuses() -> None:
    verdict = judge(evidence(champion_problem="another schema"), GATE)
    assert verdict.reasons == ("The champion could not be compared: another schema.",)


@pytest.mark.parametrize(
    ("row", "broken"),
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
def test_large_slices_are_judged(row: dict[str, Any], broken: int) -> None:
    gate = GateConfig(min_slice_auc=0.5)
    verdict = judge(evidence(slices=[{"family": "history", "name": "0 events", **row}]), gate)
    assert [entry["passed"] for entry in verdict.criteria].count(False) == broken
    assert broken == 0 or "where history 0 events" in verdict.reasons[0]


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
    assert [entry["name"] for entry in verdict.criteria if not entry["passed"]] == [name]
