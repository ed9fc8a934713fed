"""Decide whether a model may be promoted.

Every bound is a key of `gate` in the configuration, and every reason is a sentence. A model that
fails keeps its files and its evaluation. It is not packaged, and the champion stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from longrec.config import GateConfig
from longrec.evaluation.bootstrap import NOT_MEASURED, Estimate, TaskMetrics

Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of the gate.

    Args:
        passed: whether all criteria passed.
        reasons: sentences of the failed criteria, or of all criteria if none failed.
        criteria: one {"name", "value", "passed", "sentence"} each.
    """

    passed: bool
    reasons: tuple[str, ...]
    criteria: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """The measurements that the gate reads, all on the same requests.

    Args:
        tasks: task -> metrics of the ranker at the served length.
        gains: task -> gain of its AUC over popularity.
        parity_error: largest difference of a probability between batches and raw rows; None if a
            score is not finite.
        slices: rows of `measure_slices`.
        champion_differences: task -> main metric minus the champion's, paired; empty without one.
        champion_problem: why the champion could not be compared; empty if it could.
        latency_p95_ms: 95th percentile of scoring one request alone; None if not measured.
        unknown_item_share: share of the targets whose item the encoder does not know.
    """

    tasks: Mapping[str, TaskMetrics]
    gains: Mapping[str, Estimate]
    parity_error: float | None = None
    slices: Sequence[Row] = ()
    champion_differences: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    champion_problem: str = ""
    latency_p95_ms: float | None = None
    unknown_item_share: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The interval of values that pass; None for no bound."""

    low: float | None = None
    high: float | None = None

    def contain(self, value: float) -> bool:
        """Return whether a value lies within the bounds."""
        # Written so that nan lies within no bound.
        is_high_enough = self.low is None or value >= self.low
        is_low_enough = self.high is None or value <= self.high
        return is_high_enough and is_low_enough

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"at least {self.low:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        return " and ".join(parts)


def judge(evidence: Evidence, gate: GateConfig) -> Verdict:
    """Return the verdict; a metric that is not defined fails its criterion."""
    criteria = (
        *_metric_criteria(evidence, gate),
        *_champion_criteria(evidence, gate),
        *_slice_criteria(evidence, gate),
        *_serving_criteria(evidence, gate),
    )
    failed = tuple(entry["sentence"] for entry in criteria if not entry["passed"])
    reasons = failed or tuple(entry["sentence"] for entry in criteria)
    return Verdict(not failed, reasons, criteria)


def _metric_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    calibration = Bounds(gate.min_calibration, gate.max_calibration)
    for task, measured in evidence.tasks.items():
        of_task = _of_task(task, evidence)
        yield _criterion(
            "min_auc",
            f"The AUC{of_task}",
            measured.estimate("auc"),
            Bounds(low=gate.min_auc),
        )
        yield _criterion(
            "min_gain_over_popularity",
            f"The AUC gain{of_task} over popularity",
            evidence.gains[task],
            Bounds(low=gate.min_gain_over_popularity),
        )
        yield _criterion(
            "calibration",
            f"The calibration{of_task} (mean score over mean label)",
            measured.estimate("calibration"),
            calibration,
        )
        if gate.max_ece < 1:
            yield _criterion(
                "max_ece",
                f"The expected calibration error{of_task}",
                measured.estimate("ece"),
                Bounds(high=gate.max_ece),
            )


def _of_task(task: str, evidence: Evidence) -> str:
    """Return the words that name the task, if there are several."""
    return f" of {task}" if len(evidence.tasks) > 1 else ""


def _champion_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Yield the criteria against the champion.

    The first task must exclude a loss: the low end of its paired interval is judged. A further task
    may be rare and must not be clearly worse: the high end is judged.
    """
    if evidence.champion_problem:
        yield {
            "name": "max_loss_to_champion",
            "value": None,
            "passed": False,
            "sentence": f"The champion could not be compared: {evidence.champion_problem}.",
        }
    bounds = Bounds(low=-gate.max_loss_to_champion)
    metric = gate.metric.upper()
    for position, (task, difference) in enumerate(evidence.champion_differences.items()):
        end = "low" if position == 0 else "high"
        judged = difference.low if end == "low" else difference.high
        of_task = _of_task(task, evidence)
        name = f"The {end} end of the 95 % interval of {metric}{of_task} minus the champion's"
        # A difference without an interval excludes no loss: its end is None, which fails.
        estimate = Estimate(judged, reason=difference.reason)
        yield _criterion("max_loss_to_champion", name, estimate, bounds)


def _slice_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Yield the criteria of large slices of the first task.

    None may have a low AUC, and none may be clearly worse than the champion.
    """
    for row in evidence.slices:
        if row["num_targets"] < gate.min_slice_targets:
            continue
        where = f"where {row['family']} {row['name']}"
        if gate.min_slice_auc > 0 and row["auc"] is not None:
            yield _criterion(
                "min_slice_auc",
                f"The AUC {where}",
                Estimate(row["auc"]),
                Bounds(low=gate.min_slice_auc),
            )
        difference_high = row.get("difference_high")
        # A slice without an interval shows no clear loss.
        if difference_high is not None:
            yield _criterion(
                "max_slice_loss",
                f"The high end of the 95 % interval of the AUC minus the champion's {where}",
                Estimate(difference_high),
                Bounds(low=-gate.max_slice_loss),
            )


def _serving_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    yield _criterion(
        "max_parity_error",
        "The largest difference of a probability between batches and raw rows",
        Estimate(evidence.parity_error, reason="a score is not finite"),
        Bounds(high=gate.max_parity_error),
        form=".2g",
    )
    if gate.max_latency_ms > 0:
        yield _criterion(
            "max_latency_ms",
            "The 95th percentile of scoring one request, ms",
            Estimate(evidence.latency_p95_ms, reason=NOT_MEASURED),
            Bounds(high=gate.max_latency_ms),
            form=".1f",
        )
    if gate.max_unknown_item_share < 1:
        yield _criterion(
            "max_unknown_item_share",
            "The share of targets whose item the encoder does not know",
            Estimate(evidence.unknown_item_share),
            Bounds(high=gate.max_unknown_item_share),
        )


def _criterion(
    name: str,
    subject: str,
    estimate: Estimate,
    bounds: Bounds,
    *,
    form: str = ".4f",
) -> Row:
    """Return one judged criterion.

    Args:
        name: key of the bound in the configuration.
        subject: start of the sentence, for example `The AUC`.
        estimate: the judged value.
        bounds: values that pass.
        form: format specification of the value.
    """
    value = estimate.value
    if value is None:
        passed = False
        sentence = f"{subject} is not defined: {estimate.reason}; expected {bounds}."
    else:
        passed = bounds.contain(value)
        shown = f"{value:{form}}"
        if estimate.low is not None and estimate.high is not None:
            shown += f" (95 % interval {estimate.low:{form}} to {estimate.high:{form}})"
        verb = "is" if passed else "is not"
        sentence = f"{subject}, {shown}, {verb} {bounds}."
    return {"name": name, "value": value, "passed": passed, "sentence": sentence}
