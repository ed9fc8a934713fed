"""Evaluations of a small ranker, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longrec.config import EvaluateConfig, GateConfig
from longrec.evaluation.evaluate import EvaluationReport, evaluate

CONFIG = EvaluateConfig(
    lengths=(0, 4, 16, 200, 1000),
    served_length=64,
    bootstrap_samples=40,
)
GATE = GateConfig(min_auc=0.6, max_loss_to_baseline=0.3, min_calibration=0.5, max_calibration=2.0)
LENIENT_GATE = GateConfig(
    max_loss_to_baseline=1,
    min_calibration=0.5,
    max_calibration=2.0,
    max_loss_to_champion=0.01,
    min_slice_targets=50,
    max_slice_loss=0.02,
)


def run_evaluation(
    bundle_dir: Path,
    histories_dir: Path,
    out_dir: Path,
    **changes: Any,
) -> EvaluationReport:
    """Evaluate on the CPU with CONFIG, GATE and seed 3, unless they are changed."""
    arguments: dict[str, Any] = {"config": CONFIG, "gate": GATE, "seed": 3, "device": "cpu"}
    return evaluate(
        bundle_dir,
        histories_dir,
        out_dir,
        **{**arguments, **changes},
    )


def failed_criteria(report: EvaluationReport) -> set[str]:
    """Return the names of the criteria that failed."""
    return {entry["name"] for entry in report.gate.criteria if not entry["passed"]}


def refuse_constant(name: str) -> None:
    """Fail the test: NaN and Infinity are not JSON."""
    pytest.fail(f"{name} is not JSON")
