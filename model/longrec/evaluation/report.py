"""Render the page and the model card of an evaluation from the content of its metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from longrec.evaluation.baselines.standing import describe
from longrec.evaluation.charts import all_charts
from longrec.reporting import page
from longrec.reporting.page import format_percent

Results: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]

TRAINING_LABELS = {
    "num_steps": "steps",
    "num_requests": "requests seen",
    "num_events": "events seen",
    "mean_length": "mean length",
    "seconds": "seconds",
    "events_per_second": "events per second",
    "first_loss": "first loss",
    "final_loss": "last loss",
    "num_parameters": "parameters",
    "device": "device",
    "precision": "precision",
}
"""Values of the training report that the page shows, with their labels."""
STANDING_TEXTS = {
    "above": "model above",
    "level": "not distinguishable",
    "below": "model below",
    "unknown": "not compared",
}
SUBTITLE = (
    "{num_targets:,} targets of {num_requests:,} later requests by {num_users:,} users, "
    "served length {served_length:,}"
)
EXTRAPOLATION_LABEL = (
    "AUC at {served_length:,} minus at the trained mean of {extrapolation[trained_length]:,}"
)


def render(results: Results, run_id: str = "", pages: Mapping[str, str] | None = None) -> str:
    """Return the page of an evaluation.

    Args:
        results: content of metrics.json: `EvaluationReport.to_dict()` and `provenance.describe`.
        run_id: id of the run; empty outside of one.
        pages: name of the file and title of each page of the run beside this one.
    """
    passed = results["gate"]["passed"]
    bundle = results["bundle"]
    return page.render(
        "evaluation.html.jinja",
        **results,
        title=f"Evaluation of {results['name']}",
        subtitle=SUBTITLE.format_map(results),
        verdict=(passed, "gate passed" if passed else "gate failed"),
        run_id=run_id,
        pages=pages or {},
        charts=all_charts(results),
        first_task=next(iter(results["metrics"])),
        rates={task: _rate(row) for task, row in results["metrics"].items()},
        undefined=undefined_metrics(results),
        standings=standings(results),
        standing_texts=STANDING_TEXTS,
        best_aucs={row["length"]: row["auc"] for row in results["best_possible"]},
        training_tiles=training_values(results),
        serving_tiles=_serving_values(results),
        configuration={"bundle": bundle, **results["config"]},
    )


def standings(results: Results) -> list[str]:
    """Return where the model stands against the baselines, one sentence per task."""
    return [f"{task}: {describe(rows)}" for task, rows in results["baselines"].items()]


def undefined_metrics(results: Results) -> list[str]:
    """Return the metrics that are not defined, with the reasons."""
    reasons = []
    for task, metrics in results["metrics"].items():
        for name, reason in metrics["undefined"].items():
            reasons.append(f"{task}: {name} is not defined: {reason}")
    return reasons


def training_values(results: Results) -> dict[str, Any]:
    """Return the values of the training report by their labels."""
    training = results["training"]
    return {label: training[name] for name, label in TRAINING_LABELS.items() if name in training}


def _rate(metrics: Row) -> float | None:
    if not metrics["num_targets"]:
        return None
    return float(metrics["num_positives"] / metrics["num_targets"])


def _serving_values(results: Results) -> dict[str, str]:
    latency = results["latency_ms"]
    values = {
        "one request, p50 ms": f"{latency['p50']:.1f}",
        "p95 ms": f"{latency['p95']:.1f}",
        "targets of unknown items": format_percent(results["unknown_item_share"]),
    }
    extrapolation = results["extrapolation"]
    if extrapolation:
        values[EXTRAPOLATION_LABEL.format_map(results)] = _difference(extrapolation)
        values["events served over that"] = f"{extrapolation['cost']:.2f} times"
    champion = results["champion"]
    for task, difference in champion.get("differences", {}).items():
        name = f"{champion['metric'].upper()} of {task} minus champion {champion['version']}"
        values[name] = _difference(difference)
    return values


def _difference(row: Row) -> str:
    return page.format_interval(row["value"], row["low"], row["high"])
