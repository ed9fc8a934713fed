"""gate: whether a model may be promoted; every bound is a key of `gate` in the configuration, every
reason a sentence.

A refused model is kept where it was trained, with its evaluation; it is not packaged, and the
champion stays what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from longrec.config import GateConfig
from longrec.evaluation.metrics import Estimate, Measurement

Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may be packaged.

    Args:
        passed: all criteria hold.
        reasons: the sentences of the broken criteria, or of all when none is.
        criteria: {"name", "value", "passed", "sentence"} each.
    """

    passed: bool
    reasons: tuple[str, ...]
    criteria: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate looks at, all of it on the same requests.

    Args:
        tasks: task -> metrics of the ranker at the served length.
        gains: task -> gain of its AUC over popularity.
        parity: largest difference of a probability between the two ways to score; None when a score
            is not finite.
        slices: rows of the first task, {"family", "name", "num_targets", "auc", ...}, with
            `difference`, `difference_low`,
            `difference_high` against the champion where there is one.
        champion: task -> main metric minus the champion's, paired; empty without a champion.
        champion_problem: why the champion could not be compared.
        latency_ms: 95th percentile of scoring one request alone.
        unknown_item_share: share of the targets whose item the encoder does not know.
    """

    tasks: Mapping[str, Measurement]
    gains: Mapping[str, Estimate]
    parity: float | None = None
    slices: Sequence[Row] = ()
    champion: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    champion_problem: str = ""
    latency_ms: float | None = None
    unknown_item_share: float = 0.0


def judge(evidence: Evidence, gate: GateConfig) -> Verdict:
    """Returns the verdict; a metric that is not defined breaks its criterion."""
    criteria = (
        *_quality(evidence, gate),
        *_against_champion(evidence, gate),
        *_slices(evidence, gate),
        *_serving(evidence, gate),
    )
    broken = tuple(entry["sentence"] for entry in criteria if not entry["passed"])
    return Verdict(not broken, broken or tuple(entry["sentence"] for entry in criteria), criteria)


def _quality(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    for task, measured in evidence.tasks.items():
        of = f" of {task}" if len(evidence.tasks) > 1 else ""
        yield _criterion("min_auc", f"The AUC{of}", measured.estimate("auc"), low=gate.min_auc)
        yield _criterion(
            "min_gain_over_popularity",
            f"The AUC gain{of} over popularity",
            evidence.gains[task],
            low=gate.min_gain_over_popularity,
        )
        yield _criterion(
            "calibration",
            f"The calibration{of} (mean score over mean label)",
            measured.estimate("calibration"),
            low=gate.min_calibration,
            high=gate.max_calibration,
        )
        if gate.max_ece < 1:
            yield _criterion(
                "max_ece",
                f"The expected calibration error{of}",
                measured.estimate("ece"),
                high=gate.max_ece,
            )


def _against_champion(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """The first task must exclude a loss (low end of the paired interval); a further one, which may
    be rare, must not be clearly worse.
    """
    if evidence.champion_problem:
        yield {
            "name": "max_loss_to_champion",
            "value": None,
            "passed": False,
            "sentence": f"The champion could not be compared: {evidence.champion_problem}.",
        }
    for place, (task, difference) in enumerate(evidence.champion.items()):
        end, bound = ("high", difference.high) if place else ("low", difference.low)
        of = f" of {task}" if len(evidence.tasks) > 1 else ""
        value = Estimate(
            bound, reason=difference.reason
        )  # a difference without an interval excludes no loss
        what = (
            f"The {end} end of the 95 % interval of {gate.metric.upper()}{of} minus the champion's"
        )
        yield _criterion("max_loss_to_champion", what, value, low=-gate.max_loss_to_champion)


def _slices(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    """Large slices of the first task: none may be bad in itself, none clearly worse than the
    champion's.
    """
    for row in evidence.slices:
        if row["num_targets"] < gate.min_slice_targets:
            continue
        where = f"{row['family']} {row['name']}"
        if gate.min_slice_auc > 0 and row["auc"] is not None:
            yield _criterion(
                "min_slice_auc",
                f"The AUC where {where}",
                Estimate(row["auc"]),
                low=gate.min_slice_auc,
            )
        if row.get("difference_high") is not None:
            what = (
                f"The high end of the 95 % interval of the AUC minus the champion's where {where}"
            )
            yield _criterion(
                "max_slice_loss", what, Estimate(row["difference_high"]), low=-gate.max_slice_loss
            )


def _serving(evidence: Evidence, gate: GateConfig) -> Iterator[Row]:
    yield _criterion(
        "max_parity_error",
        "The largest difference of a probability between batches and raw rows",
        Estimate(evidence.parity, reason="a score is not finite"),
        high=gate.max_parity_error,
        form=".2g",
    )
    if gate.max_latency_ms > 0:
        yield _criterion(
            "max_latency_ms",
            "The 95th percentile of scoring one request, ms",
            Estimate(evidence.latency_ms, reason="it was not measured"),
            high=gate.max_latency_ms,
            form=".1f",
        )
    if gate.max_unknown_item_share < 1:
        yield _criterion(
            "max_unknown_item_share",
            "The share of targets whose item the encoder does not know",
            Estimate(evidence.unknown_item_share),
            high=gate.max_unknown_item_share,
        )


def _criterion(
    name: str,
    what: str,
    estimate: Estimate,
    *,
    low: float | None = None,
    high: float | None = None,
    form: str = ".4f",
) -> Row:
    bounds = [
        f"at least {low:g}" if low is not None else "",
        f"at most {high:g}" if high is not None else "",
    ]
    wanted = " and ".join(bound for bound in bounds if bound)
    if estimate.value is None:
        return {
            "name": name,
            "value": None,
            "passed": False,
            "sentence": f"{what} is not defined: {estimate.reason}; wanted {wanted}.",
        }
    passed = (low is None or estimate.value >= low) and (high is None or estimate.value <= high)
    around = ""
    if estimate.low is not None and estimate.high is not None:
        around = f" (95 % interval {estimate.low:{form}} to {estimate.high:{form}})"
    verb = "is" if passed else "is not"
    return {
        "name": name,
        "value": estimate.value,
        "passed": passed,
        "sentence": f"{what}, {estimate.value:{form}}{around}, {verb} {wanted}.",
    }
