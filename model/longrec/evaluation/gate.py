"""Decide whether a model may be promoted.

Every bound is a key of `gate` in the configuration, and every reason is a sentence. A model that
fails keeps its files and its evaluation. It is not packaged, and the champion stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from longrec.config import GateConfig
from longrec.evaluation.bootstrap import NOT_MEASURED, Estimate, TaskMetrics

Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of the gate.

    Args:
        passed: whether all criteria passed.
        reasons: sentences of the failed criteria, or of all criteria if none failed.
        criteria: one {"name", "value", "missed_by", "passed", "sentence"} each. `name` is the key
            of the bound in `gate`; `missed_by` is the distance of the value to the bound, 0 if it
            passed, None if it is not defined.
    """

    passed: bool
    reasons: tuple[str, ...]
    criteria: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class BaselineDifference:
    """The best baseline of a task, and the AUC of the ranker minus its AUC, paired."""

    name: str
    difference: Estimate


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """The measurements that the gate reads, all on the same requests.

    Args:
        tasks: task -> metrics of the ranker at the served length.
        gains: task -> gain of its AUC over popularity.
        parity_error: largest difference of a probability between batches and raw rows; None if a
            score is not finite.
        slices: rows of `measure_slices`.
        best_baselines: task -> difference to the best baseline, in the order of `tasks`.
        champion_differences: task -> main metric minus the champion's, paired; empty without one.
        champion_problem: why the champion could not be compared; empty if it could.
        latency_p95_ms: 95th percentile of scoring one request alone; None if not measured.
        unknown_item_share: share of the targets whose item the encoder does not know.
    """

    tasks: Mapping[str, TaskMetrics]
    gains: Mapping[str, Estimate]
    parity_error: float | None = None
    slices: Sequence[Row] = ()
    best_baselines: Mapping[str, BaselineDifference] = dataclasses.field(default_factory=dict)
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

    def distance(self, value: float) -> float:
        """Return how far a value is outside of the bounds; 0 within them."""
        below = 0.0 if self.low is None else self.low - value
        above = 0.0 if self.high is None else value - self.high
        return max(below, above, 0.0)

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
        *_calibration_criteria(evidence, gate),
        *_baseline_criteria(evidence, gate),
        *_champion_criteria(evidence, gate),
        *_slice_criteria(evidence, gate),
        *_serving_criteria(evidence, gate),
    )
    failed = tuple(entry["sentence"] for entry in criteria if not entry["passed"])
    reasons = failed or tuple(entry["sentence"] for entry in criteria)
    return Verdict(not failed, reasons, criteria)


def _metric_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    for task, measured in evidence.tasks.items():
        of_task = _of_task(task, evidence)
        if gate.min_auc > 0:
            yield _criterion(
                "min_auc",
                f"The AUC{of_task}",
                measured.estimate("auc"),
                Bounds(low=gate.min_auc),
            )
        if gate.min_gain_over_popularity > -1:
            yield _criterion(
                "min_gain_over_popularity",
                f"The AUC gain{of_task} over popularity",
                evidence.gains[task],
                Bounds(low=gate.min_gain_over_popularity),
            )
        if gate.max_ece < 1:
            yield _criterion(
                "max_ece",
                f"The expected calibration error{of_task}",
                measured.estimate("ece"),
                Bounds(high=gate.max_ece),
            )


def _calibration_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Yield the criteria of the calibration of every task.

    A small sample has a wide interval. The end next to the bound is judged: a model is refused when
    it is clearly miscalibrated.
    """
    for position, (task, measured) in enumerate(evidence.tasks.items()):
        calibration = measured.estimate("calibration")
        subject = f"calibration{_of_task(task, evidence)} (mean score over mean label)"
        if position > 0 and calibration.value is None:
            yield _not_judged("min_calibration", f"The {subject}", calibration.reason)
            continue
        low_bound = Bounds(low=gate.min_calibration)
        high_bound = Bounds(high=gate.max_calibration)
        yield _end_criterion("min_calibration", subject, calibration, low_bound, end="high")
        yield _end_criterion("max_calibration", subject, calibration, high_bound, end="low")


def _baseline_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Yield the criteria against the best baseline, where no champion is compared.

    As with a champion, the first task must exclude a loss, and a further task must not be clearly
    worse.
    """
    if evidence.champion_differences or gate.max_loss_to_baseline >= 1:
        return
    bounds = Bounds(low=-gate.max_loss_to_baseline)
    for position, (task, best) in enumerate(evidence.best_baselines.items()):
        subject = f"AUC{_of_task(task, evidence)} minus that of the best baseline ({best.name})"
        name = "max_loss_to_baseline"
        if position == 0:
            low_end = Estimate(best.difference.low, reason=best.difference.reason)
            yield _criterion(
                name, f"The low end of the 95 % interval of the {subject}", low_end, bounds
            )
        elif best.difference.high is None:
            yield _not_judged(name, f"The {subject}", best.difference.reason)
        else:
            yield _end_criterion(name, subject, best.difference, bounds, end="high")


def _of_task(task: str, evidence: Evidence) -> str:
    """Return the words that name the task, if there are several."""
    return f" of {task}" if len(evidence.tasks) > 1 else ""


def _champion_criteria(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Yield the criteria against the champion.

    The first task must exclude a loss: the low end of its paired interval is judged. A further task
    may be rare and must not be clearly worse: the high end is judged.
    """
    if evidence.champion_problem:
        yield _champion_problem(evidence, gate)
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


def _champion_problem(evidence: Evidence, gate: GateConfig) -> Row:
    """Return the criterion of a champion that cannot be compared; the best baseline replaces it."""
    has_baseline = gate.max_loss_to_baseline < 1 and bool(evidence.best_baselines)
    sentence = f"The champion could not be compared: {evidence.champion_problem}."
    if has_baseline:
        sentence += " The best baseline takes its place."
    return {
        "name": "max_loss_to_champion",
        "value": None,
        "missed_by": None,
        "passed": has_baseline,
        "sentence": sentence,
    }


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


def _end_criterion(
    name: str,
    subject: str,
    estimate: Estimate,
    bounds: Bounds,
    *,
    end: Literal["low", "high"],
) -> Row:
    """Return the criterion of one end of an interval; of the value itself without an interval.

    Args:
        name, bounds: see `_criterion`.
        subject: without its article, for example `calibration`.
        estimate: the value and its interval.
        end: the end that is judged.
    """
    value = estimate.low if end == "low" else estimate.high
    if value is None:
        return _criterion(name, f"The {subject}", estimate, bounds)
    full_subject = f"The {end} end of the 95 % interval of the {subject}"
    return _criterion(name, full_subject, Estimate(value), bounds)


def _not_judged(name: str, subject: str, reason: str) -> Row:
    """Return a passed criterion of a further task whose value is not defined."""
    return {
        "name": name,
        "value": None,
        "missed_by": None,
        "passed": True,
        "sentence": f"{subject} is not defined: {reason}; it is not judged.",
    }


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
        return {
            "name": name,
            "value": None,
            "missed_by": None,
            "passed": False,
            "sentence": f"{subject} is not defined: {estimate.reason}; expected {bounds}.",
        }
    passed = bounds.contain(value)
    missed_by = 0.0 if passed else bounds.distance(value)
    shown = f"{value:{form}}"
    if estimate.low is not None and estimate.high is not None:
        shown += f" (95 % interval {estimate.low:{form}} to {estimate.high:{form}})"
    sentence = f"{subject}, {shown}, is {bounds}."
    if not passed:
        sentence = f"{subject}, {shown}, is not {bounds}: it misses gate.{name} by {missed_by:.2g}."
    return {
        "name": name,
        "value": value,
        "missed_by": missed_by,
        "passed": passed,
        "sentence": sentence,
    }
