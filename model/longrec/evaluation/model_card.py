"""Write the model card of an evaluated ranker as Markdown.

The card says what the model is, how it was measured, where it is weak and how it was made. It is
made from the content of metrics.json, as is the page (`longrec.evaluation.report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from longrec.evaluation.baselines.standing import describe
from longrec.evaluation.report import TRAINING_LABELS
from longrec.reporting.page import format_interval

Results: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]

ORIGIN = (
    "Trained on {name} (data {data_version}, schema {bundle[schema_fingerprint]}), "
    "served at {served_length:,} events. It {verdict} the gate."
)
SAMPLE = (
    "{num_targets:,} targets of {num_requests:,} requests by {num_users:,} users, "
    "from {data[evaluated from]} to {data[last request]}; 95 % intervals resample users."
)
EXTRAPOLATION = (
    "- Served at {served_length:,} instead of the trained mean of "
    "{extrapolation[trained_length]:,} events: AUC higher by {gain}, "
    "{extrapolation[cost]:.2f} times the events."
)
LATENCY = (
    "- One request of the longest histories: {latency_ms[p50]:.1f} ms, "
    "p95 {latency_ms[p95]:.1f} ms where it was evaluated."
)
LONGEST_HISTORY = (
    "- The longest history measured has {longest_history:,} events; nothing is known beyond it."
)
BETTER_SHORTER_LENGTH = (
    "- Served at {length:,} events the AUC is {auc:.4f}, higher than at {served_length:,}."
)
BELOW_POPULARITY = (
    "- Popularity is better where {family} {name} ({num_targets:,} targets): "
    "{popularity_auc:.4f} against {auc:.4f}."
)
METRICS_HEADER = (
    "| task | AUC | GAUC | log loss | NE | calibration | ECE |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
BASELINES_HEADER = (
    "| task | baseline | AUC | AUC of the model minus it |",
    "| --- | --- | --- | --- |",
)
OFFLINE_LIMIT = (
    "- Measured offline, on logged requests. "
    "It does not show what the served ranking itself would have changed."
)


def render(results: Results) -> str:
    """Return the card of a model.

    Args:
        results: content of metrics.json: `EvaluationReport.to_dict()` and `provenance.describe`.
    """
    lines = [
        f"# Ranker {results['bundle']['version']}",
        "",
        _origin(results),
        "",
        "## Measured",
        SAMPLE.format_map(results),
        "",
        *_metrics(results),
        "",
        *_baselines(results),
        "",
        *_extrapolation(results),
        LATENCY.format_map(results),
        "",
        "## Gate",
        *[f"- {reason}" for reason in results["gate"]["reasons"]],
        "",
        "## Limits",
        *_limits(results),
        "",
        "## Made",
        *_provenance(results),
        "",
    ]
    return "\n".join(lines)


def _origin(results: Results) -> str:
    data_version = results.get("data_version") or "unknown"
    verdict = "passed" if results["gate"]["passed"] else "failed"
    return ORIGIN.format_map({**results, "data_version": data_version, "verdict": verdict})


def _metrics(results: Results) -> Iterator[str]:
    """Yield the lines of the table of metrics."""
    yield from METRICS_HEADER
    for task, row in results["metrics"].items():
        cells = [
            task,
            _with_interval(row, "auc"),
            _with_interval(row, "gauc"),
            format_interval(row["logloss"]),
            format_interval(row["ne"]),
            format_interval(row["calibration"], digits=3),
            format_interval(row["ece"], digits=3),
        ]
        yield f"| {' | '.join(cells)} |"


def _baselines(results: Results) -> Iterator[str]:
    """Yield where the model stands against each baseline, in words and as a table."""
    for task, rows in results["baselines"].items():
        yield f"- {task}: {describe(rows)}"
    yield ""
    yield from BASELINES_HEADER
    for task, rows in results["baselines"].items():
        for row in rows:
            cells = [
                task,
                row["name"],
                _with_interval(row, "auc"),
                _with_interval(row, "difference"),
            ]
            yield f"| {' | '.join(cells)} |"


def _with_interval(row: Row, metric: str) -> str:
    return format_interval(
        row[metric],
        row.get(f"{metric}_low"),
        row.get(f"{metric}_high"),
    )


def _extrapolation(results: Results) -> Iterator[str]:
    """Yield the gain and the cost of serving longer than trained, if they were measured."""
    row = results["extrapolation"]
    if row:
        gain = format_interval(row["value"], row["low"], row["high"])
        yield EXTRAPOLATION.format_map({**results, "gain": gain})


def _limits(results: Results) -> Iterator[str]:
    """Yield the weaknesses that the measurement shows."""
    yield LONGEST_HISTORY.format_map(results)
    yield from _better_shorter_length(results)
    yield from _slices_below_popularity(results)
    for task, metrics in results["metrics"].items():
        for metric, reason in metrics["undefined"].items():
            yield f"- {task}: {metric} is not defined: {reason}."
    yield OFFLINE_LIMIT


def _better_shorter_length(results: Results) -> Iterator[str]:
    served_length = results["served_length"]
    defined = [row for row in results["lengths"] if row["auc"] is not None]
    served = [row for row in defined if row["length"] == served_length]
    shorter = [row for row in defined if row["length"] < served_length]
    if not served or not shorter:
        return
    best = max(shorter, key=lambda row: row["auc"])
    if best["auc"] > served[0]["auc"]:
        yield BETTER_SHORTER_LENGTH.format_map({**best, "served_length": served_length})


def _slices_below_popularity(results: Results) -> Iterator[str]:
    for row in results["slices"]:
        auc = row["auc"]
        popularity_auc = row["popularity_auc"]
        if auc is None or popularity_auc is None:
            continue
        if auc < popularity_auc:
            yield BELOW_POPULARITY.format_map(row)


def _provenance(results: Results) -> Iterator[str]:
    """Yield the lines on how the model was made."""
    training = results["training"]
    shown = {name: training[name] for name in TRAINING_LABELS if name in training}
    yield f"- Model: {_listed(results['bundle']['model'])}."
    yield f"- Training: {_listed(shown)}."
    yield f"- Command: `{results.get('command') or 'not recorded'}`"
    yield f"- Seed {results['config']['seed']}; {_listed(results['versions'])}."


def _listed(values: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
