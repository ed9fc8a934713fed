"""Write the model card of an evaluated ranker as Markdown.

The card says what the model is, how it was measured, where it is weak and how it was made. It is
made from the content of metrics.json, as is the page (`longrec.evaluation.report`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from longrec.evaluation.report import TRAINING_LABELS
from longrec.reporting.page import format_interval

Results: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]

METRICS_HEADER = (
    "| task | AUC | GAUC | log loss | NE | calibration | ECE | popularity AUC |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
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
        _sample(results),
        "",
        *_metrics(results),
        "",
        *_extrapolation(results),
        _latency(results),
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
    data = results.get("data_version") or "unknown"
    schema = results["bundle"]["schema_fingerprint"]
    source = f"Trained on {results['name']} (data {data}, schema {schema})"
    verdict = "passed" if results["gate"]["passed"] else "failed"
    return f"{source}, served at {results['served_length']:,} events. It {verdict} the gate."


def _sample(results: Results) -> str:
    targets = f"{results['num_targets']:,} targets"
    requests = f"{results['num_requests']:,} requests"
    users = f"{results['num_users']:,} users"
    first = results["data"]["evaluated from"]
    last = results["data"]["last request"]
    sample = f"{targets} of {requests} by {users}"
    return f"{sample}, from {first} to {last}; 95 % intervals resample users."


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
            format_interval(results["popularity"][task]["auc"]),
        ]
        yield f"| {' | '.join(cells)} |"


def _with_interval(row: Row, metric: str) -> str:
    return format_interval(row[metric], row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _extrapolation(results: Results) -> Iterator[str]:
    """Yield what serving longer than trained gains and costs, if it was measured."""
    row = results["extrapolation"]
    if not row:
        return
    served = f"{results['served_length']:,}"
    trained = f"{row['trained_length']:,}"
    gain = format_interval(row["value"], row["low"], row["high"])
    lengths = f"Served at {served} instead of the trained mean of {trained} events"
    yield f"- {lengths}: AUC {gain} more, {row['cost']:.2f} times the events."


def _latency(results: Results) -> str:
    p50 = f"{results['latency_ms']['p50']:.1f} ms"
    p95 = f"{results['latency_ms']['p95']:.1f} ms"
    return f"- One request of the longest histories: {p50}, p95 {p95} where it was evaluated."


def _limits(results: Results) -> Iterator[str]:
    """Yield the weaknesses that the measurement shows."""
    longest = f"{results['longest_history']:,}"
    yield f"- The longest history measured has {longest} events; nothing is known beyond it."
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
        yield (
            f"- Served at {best['length']:,} events the AUC is {best['auc']:.4f}, "
            f"higher than at {served_length:,}."
        )


def _slices_below_popularity(results: Results) -> Iterator[str]:
    for row in results["slices"]:
        auc = row["auc"]
        popularity = row["popularity_auc"]
        if auc is None or popularity is None or auc >= popularity:
            continue
        size = f"{row['num_targets']:,} targets"
        yield (
            f"- Popularity is better where {row['family']} {row['name']} ({size}): "
            f"{popularity:.4f} against {auc:.4f}."
        )


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
