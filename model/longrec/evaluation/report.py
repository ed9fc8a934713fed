"""Render the page of an evaluation from the content of its metrics.json.

The page is one self-contained HTML file with tables and SVG charts. It can be made again from
metrics.json alone.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from longrec.evaluation import validation_page
from longrec.evaluation.baselines.standing import describe
from longrec.reporting import page
from longrec.reporting.charts import (
    Axis,
    LineChart,
    Point,
    fill_style,
    legend,
    log_axis,
    nice_ticks,
    short_number,
)
from longrec.reporting.page import DASH, Html, format_interval, interval_cell

Results: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]

MAX_CURVE_POINTS = 300
"""Points of the training curve; longer curves are averaged down to it."""
SERIES_STYLES = ("s1", "s2", "s3")
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
METRIC_TITLES = (
    ("auc", "AUC"),
    ("gauc", "GAUC"),
    ("logloss", "Log loss"),
    ("ne", "NE"),
    ("calibration", "Calibration"),
    ("ece", "ECE"),
)
SUBTITLE = (
    "{num_targets:,} targets of {num_requests:,} later requests by {num_users:,} users, "
    "served length {served_length:,}, model version {version}"
)
METRICS_NOTE = (
    "95 % intervals resample users. GAUC: AUC within users, weighted by their targets. "
    "NE: log loss over the entropy of the mean label; below 1 beats the mean. "
    "Calibration: mean score over mean label. "
    "Best baseline: that with the highest AUC on these targets. "
    "AUC minus it: paired difference."
)
BASELINES_NOTE = (
    "Fitted on the training window; each value is from before the request. "
    "Item and user rate: item rate, shifted by the user's own mean label. "
    "Recency and frequency: the target's value in the user's history. "
    "Boosted trees read all of them. The interval of the paired difference decides the standing."
)
STANDING_TEXTS = {
    "above": "model above",
    "level": "not distinguishable",
    "below": "model below",
    "unknown": "not compared",
}
EXTRAPOLATION_LABEL = (
    "AUC at {served_length:,} minus at the trained mean of {extrapolation[trained_length]:,}"
)
COST_TEXT = "{extrapolation[cost]:.2f} times"
REFUSED_NOTE = (
    "The model is not packaged. Its bundle and this evaluation stay. "
    "To package it anyway, marked as refused: longrec package --force"
)
BIN_TEXT = "score {score:.4f}, rate {rate:.4f}, {num_targets:,} targets"
CALIBRATION_NOTE = (
    "Bins of equal numbers of targets by rising score. On the diagonal, scores are probabilities."
)
LENGTH_CHART_NOTE = (
    "One model, the same requests at every length. "
    "The longest history of the sample has {longest_history:,} events."
)
LENGTH_TABLE_NOTE = (
    "A length that cuts no history shorter than the one before has the same scores. "
    "It is not computed again."
)
SLICES_NOTE = (
    "At the served length. Item age: time since its first event in the histories. "
    "Activity: events of the user in the 28 days before."
)


def render(results: Results) -> str:
    """Return the page of an evaluation.

    Args:
        results: content of metrics.json: `EvaluationReport.to_dict()` and `provenance.describe`.
    """
    passed = results["gate"]["passed"]
    charts = [_length_section(results), _calibration_section(results)]
    right_column = f"<div>{_data_section(results)}{_configuration_section(results)}</div>"
    body = [
        _gate_section(results["gate"]),
        _metrics_section(results),
        _baselines_section(results),
        _serving_section(results),
        _grid(*charts),
        _lengths_table(results),
        validation_page.section(results.get("training", {})),
        _slices_section(results),
        _grid(_training_section(results), right_column),
    ]
    return page.document(
        f"Evaluation of {results.get('name', 'the ranker')}",
        _subtitle(results),
        Html("".join(body)),
        (passed, "gate passed" if passed else "gate failed"),
    )


def _subtitle(results: Results) -> str:
    version = results.get("bundle", {}).get("version", "unknown")
    return SUBTITLE.format_map({**results, "version": version})


def _grid(*sections: str) -> str:
    return f'<div class="grid">{"".join(sections)}</div>'


def _gate_section(verdict: Row) -> Html:
    rows = []
    classes = []
    for criterion in verdict["criteria"]:
        passed = criterion["passed"]
        status = page.badge(passed, "passed" if passed else "failed")
        rows.append([status, criterion["sentence"]])
        classes.append("" if passed else "bad")
    table = page.table(
        ["", "Criterion, at the served length"],
        rows,
        classes,
    )
    note = "" if verdict["passed"] else REFUSED_NOTE
    return page.section("Promotion gate", table, note=note)


def _metrics_section(results: Results) -> Html:
    titles = [title for _, title in METRIC_TITLES]
    headers = ["Task", "Rate", *titles, "Best baseline", "AUC minus it"]
    rows = []
    undefined = []
    for task, metrics in results["metrics"].items():
        rows.append(_metrics_row(task, results))
        for name, reason in metrics["undefined"].items():
            undefined.append(f"<li>{html.escape(f'{task}: {name}: {reason}')}</li>")
    reasons = Html(f"<ul>{''.join(undefined)}</ul>") if undefined else Html("")
    table = page.table(headers, rows)
    return page.section(
        "Metrics at the served length",
        table,
        reasons,
        note=METRICS_NOTE,
    )


def _metrics_row(task: str, results: Results) -> list[object]:
    metrics = results["metrics"][task]
    best = results["baselines"][task][0]
    rate = None
    if metrics["num_targets"]:
        rate = metrics["num_positives"] / metrics["num_targets"]
    cells = [metric_cell(metrics, name) for name, _ in METRIC_TITLES]
    auc = format_interval(best["auc"])
    return [
        task,
        _percent(rate),
        *cells,
        Html(f"{auc}<br><span class=soft>{html.escape(best['name'])}</span>"),
        metric_cell(best, "difference", "+.4f"),
    ]


def _baselines_section(results: Results) -> Html:
    headers = ["Task", "Baseline", "AUC", "GAUC", "Log loss", "AUC of the model minus it", ""]
    rows = []
    classes = []
    sentences = []
    for task, baselines in results["baselines"].items():
        sentence = describe(baselines)
        sentences.append(f"<li>{html.escape(f'{task}: {sentence}')}</li>")
        for row in baselines:
            rows.append(_baseline_row(task, row))
            classes.append("bad" if row["standing"] == "below" else "")
    return page.section(
        "Baselines",
        Html(f"<ul>{''.join(sentences)}</ul>"),
        page.table(headers, rows, classes),
        note=BASELINES_NOTE,
    )


def _baseline_row(task: str, row: Row) -> list[object]:
    standing = STANDING_TEXTS[row["standing"]]
    if row["standing"] == "unknown":
        standing = f"{standing}: {row['reason']}"
    return [
        task,
        row["name"],
        metric_cell(row, "auc"),
        metric_cell(row, "gauc"),
        format_interval(row["logloss"]),
        metric_cell(row, "difference", "+.4f"),
        standing,
    ]


def metric_cell(row: Row, metric: str, form: str = ".4f") -> Html:
    """Return the table cell of a metric with the interval that the row holds."""
    low = row.get(f"{metric}_low")
    high = row.get(f"{metric}_high")
    return interval_cell(row.get(metric), low, high, form)


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{share:.2%}"


def _serving_section(results: Results) -> Html:
    latency = results["latency_ms"]
    values = {
        "one request, p50 ms": f"{latency['p50']:.1f}",
        "p95 ms": f"{latency['p95']:.1f}",
        "targets of unknown items": _percent(results["unknown_item_share"]),
    }
    if results["extrapolation"]:
        name = EXTRAPOLATION_LABEL.format_map(results)
        values[name] = _format_difference(results["extrapolation"])
        values["events served over that"] = COST_TEXT.format_map(results)
    champion = results["champion"]
    for task, difference in champion.get("differences", {}).items():
        metric = champion["metric"].upper()
        name = f"{metric} of {task} minus champion {champion['version']}"
        values[name] = _format_difference(difference)
    return page.section("Served", page.tiles(values))


def _format_difference(row: Row) -> str:
    return format_interval(row["value"], row["low"], row["high"])


def _length_section(results: Results) -> Html:
    rows = [row for row in results["lengths"] if row["auc"] is not None]
    if not rows:
        return page.section("History length", note="The AUC is not defined on this sample.")
    task = next(iter(results["metrics"]))
    baseline = results["baselines"][task][0]
    entries = [("s1", "ranker, 95 % interval")]
    if results.get("best_possible"):
        entries.append(("s2 dash", "best possible"))
    if baseline["auc"] is not None:
        entries.append(("s3 dash", f"best baseline ({baseline['name']})"))
    chart = _length_chart(task, rows, results)
    note = LENGTH_CHART_NOTE.format_map(results)
    return page.section("History length", chart, legend(entries), note=note)


def _length_chart(task: str, rows: Sequence[Row], results: Results) -> Html:
    points = _points(rows, "auc")
    lows = _points(rows, "auc_low")
    highs = _points(rows, "auc_high")
    best_possible = _points(results.get("best_possible", []), "auc")
    baseline_auc = results["baselines"][task][0]["auc"]
    lengths = sorted({length for length, _ in [*points, *best_possible]})
    level: list[Point] = []
    if baseline_auc is not None:
        level = [(lengths[0], baseline_auc), (lengths[-1], baseline_auc)]
    drawn = [*points, *lows, *highs, *best_possible, *level]
    chart = LineChart(
        log_axis(lengths, "events served, most recent (log scale)"),
        _value_axis(drawn, f"AUC of {task}"),
        "AUC by served history length",
    )
    best_texts = [f"{x:,.0f} events: best possible {auc:.4f}" for x, auc in best_possible]
    texts = []
    for row in rows:
        auc = format_interval(row["auc"], row["auc_low"], row["auc_high"])
        texts.append(f"{row['length']:,} events: AUC {auc}")
    return chart.draw(
        chart.band(lows, highs),
        chart.line(level, "s3 dash"),
        chart.line(best_possible, "s2 dash"),
        chart.line(points, "s1"),
        chart.dots(best_possible, "f2", best_texts, 2.6),
        chart.dots(points, "f1", texts),
    )


def _points(rows: Sequence[Row], name: str) -> list[Point]:
    """Return (length, value) of the rows whose value is defined."""
    return [(row["length"], row[name]) for row in rows if row[name] is not None]


def _value_axis(points: Sequence[Point], label: str) -> Axis:
    values = [value for _, value in points]
    ticks = nice_ticks(min(values), max(values))
    return Axis(ticks[0], ticks[-1], ticks, label)


def _calibration_section(results: Results) -> Html:
    tasks = list(results["calibration_bins"].items())[: len(SERIES_STYLES)]
    bins = {task: rows for task, rows in tasks if rows}
    if not bins:
        return page.section("Calibration", note="There are no scores to show.")
    styles = list(zip(SERIES_STYLES, bins, strict=False))
    chart = _calibration_chart(bins)
    return page.section(
        "Calibration",
        chart,
        legend(styles),
        note=CALIBRATION_NOTE,
    )


def _calibration_chart(bins: Mapping[str, Sequence[Row]]) -> Html:
    levels = []
    for rows in bins.values():
        levels += [max(row["score"], row["rate"]) for row in rows]
    # With a margin of 5 %; scores that are all 0 get the whole axis.
    highest = min(1.0, max(levels) * 1.05) or 1
    ticks = nice_ticks(0, highest)
    top = ticks[-1]
    chart = LineChart(
        Axis(0, top, ticks, "mean score"),
        Axis(0, top, ticks, "share of positives"),
        "Calibration",
    )
    shapes = [chart.line([(0, 0), (top, top)], "axis dash")]
    for style, (task, rows) in zip(SERIES_STYLES, bins.items(), strict=False):
        points = [(row["score"], row["rate"]) for row in rows]
        texts = [f"{task}: {BIN_TEXT.format_map(row)}" for row in rows]
        shapes.append(chart.line(points, style))
        shapes.append(chart.dots(points, fill_style(style), texts, 3))
    return chart.draw(*shapes)


def _lengths_table(results: Results) -> Html:
    headers = ["Served length", "Mean events", "AUC", "Log loss", "Same scores as"]
    rows = [_length_row(row) for row in results["lengths"]]
    best_possible = {row["length"]: row["auc"] for row in results.get("best_possible", [])}
    if best_possible:
        headers.append("Best possible AUC")
        for row, entry in zip(rows, results["lengths"], strict=True):
            row.append(format_interval(best_possible.get(entry["length"])))
    return page.section(
        "Served lengths",
        page.table(headers, rows),
        note=LENGTH_TABLE_NOTE,
    )


def _length_row(row: Row) -> list[object]:
    same_as = row["same_as"]
    return [
        row["length"],
        round(row["mean_events"], 1),
        format_interval(row["auc"], row["auc_low"], row["auc_high"]),
        format_interval(row["logloss"]),
        "" if same_as is None else f"{same_as:,}",
    ]


def _slices_section(results: Results) -> Html:
    task = next(iter(results["metrics"]))
    slices = results["slices"]
    headers = [
        "Slice",
        "",
        "Requests",
        "Targets",
        f"Rate of {task}",
        "AUC",
        "Popularity AUC",
        "Calibration",
        "ECE",
    ]
    rows = [_slice_row(row) for row in slices]
    if any("difference" in row for row in slices):
        headers.append("AUC minus champion")
        for row, entry in zip(rows, slices, strict=True):
            row.append(metric_cell(entry, "difference", "+.4f"))
    headers.append("")
    for row, entry in zip(rows, slices, strict=True):
        row.append(entry["reason"])
    return page.section(
        "Slices",
        page.table(headers, rows),
        note=SLICES_NOTE,
    )


def _slice_row(row: Row) -> list[object]:
    return [
        row["family"],
        row["name"],
        row["num_requests"],
        row["num_targets"],
        _percent(row["rate"]),
        metric_cell(row, "auc"),
        format_interval(row["popularity_auc"]),
        format_interval(row["calibration"], digits=3),
        format_interval(row["ece"], digits=3),
    ]


def _training_section(results: Results) -> Html:
    training = results.get("training", {})
    values = {label: training[name] for name, label in TRAINING_LABELS.items() if name in training}
    summary = page.tiles(values) if values else Html("")
    curve: Sequence[Row] = results.get("training_curve", [])
    if len(curve) < 2:
        return page.section(
            "Training",
            summary,
            note="There is no training curve.",
        )
    points = _thinned([(row["step"], row["loss"]) for row in curve])
    last_step, last_loss = points[-1]
    steps = nice_ticks(0, last_step)
    chart = LineChart(
        Axis(0, steps[-1], steps, "optimizer step", tick_text=short_number),
        _value_axis(points, "training loss"),
        "Training loss by step",
    )
    drawing = chart.draw(
        chart.line(points, "s1"),
        chart.dots(
            points[-1:],
            "f1",
            [f"step {last_step:,.0f}: loss {last_loss:.4f}"],
        ),
    )
    return page.section("Training", drawing, summary)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most MAX_CURVE_POINTS points: means of neighbours."""
    size = math.ceil(len(points) / MAX_CURVE_POINTS)
    thinned = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        mean = sum(y for _, y in group) / len(group)
        thinned.append((group[-1][0], mean))
    return thinned


def _data_section(results: Results) -> Html:
    return page.section("Data", page.tiles(results["data"]))


def _configuration_section(results: Results) -> Html:
    values = {"bundle": results.get("bundle", {}), **results["config"]}
    text = json.dumps(values, indent=2, ensure_ascii=False)
    folded = page.details("Configuration (JSON)", text)
    return page.section(
        "How it was made",
        page.tiles(results["versions"]),
        folded,
    )
