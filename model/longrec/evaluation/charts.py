"""Charts of an evaluation, from the content of metrics.json.

A chart is None if there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

from longrec.reporting.charts import (
    BLUE,
    COLORS,
    ORANGE,
    SOFT,
    Labels,
    Point,
    Series,
    interval_chart,
    line_chart,
)
from longrec.reporting.page import row_interval

Row: TypeAlias = Mapping[str, Any]

MAX_CURVE_POINTS = 300
"""Points of the training curve; longer curves are averaged down to it."""
MAX_CALIBRATION_TASKS = 3
SERVED_LENGTH = "events served, the most recent ones (log scale)"
STEP = "optimizer step"
BIN_TEXT = "{task}: score {score:.4f}, rate {rate:.4f}, {num_targets:,} targets"


def all_charts(results: Row) -> dict[str, Any]:
    """Return the charts of the page by name."""
    return {
        "baselines": list(_baselines(results["baselines"])),
        "lengths": _lengths(results),
        "validation_lengths": _validation_lengths(results["training"]),
        "validation": _validation(results["training"]),
        "loss": _loss(results["training_curve"]),
        "calibration": _calibration(results["calibration_bins"]),
    }


def _baselines(baselines: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yield one chart per task with an interval: the model minus each baseline."""
    for task, rows in baselines.items():
        compared = [row for row in rows if row["difference_low"] is not None]
        names = ("name", "difference", "difference_low", "difference_high")
        intervals = [tuple(row[name] for name in names) for row in compared]
        if intervals:
            label = f"AUC of {task}: model minus baseline, 95 % interval"
            yield interval_chart(intervals, Labels(label, label, ""))


def _lengths(results: Row) -> str | None:
    """Return the AUC by served length, beside the best baseline and the best possible AUC."""
    task = next(iter(results["metrics"]))
    rows = _defined(results["lengths"])
    if not rows:
        return None
    best_possible = _points(_defined(results["best_possible"]), "length")
    baseline = results["baselines"][task][0]
    series = [_curve(rows, "model, 95 % interval")]
    if best_possible:
        series.append(Series(best_possible, ORANGE, "best possible", style="--"))
    if baseline["auc"] is not None:
        ends = (rows[0]["length"], rows[-1]["length"])
        level = [(length, baseline["auc"]) for length in ends]
        series.append(Series(level, SOFT, f"best baseline ({baseline['name']})", style="--"))
    labels = Labels("AUC by served length", SERVED_LENGTH, f"AUC of {task}")
    return line_chart(series, labels, is_log=True, marked=_served(results["served_length"]))


def _validation_lengths(training: Row) -> str | None:
    """Return the AUC by served length on validation requests, with the choice."""
    choice = training.get("validation", {}).get("served_length", {})
    rows = _defined(choice.get("curve", ()))
    if not rows:
        return None
    labels = Labels("Validation AUC by served length", SERVED_LENGTH, "AUC on validation requests")
    curve = _curve(rows, "model, 95 % interval")
    return line_chart([curve], labels, is_log=True, marked=_served(choice["length"]))


def _served(length: int) -> tuple[float, str]:
    return length, f"served: {length:,} events"


def _validation(training: Row) -> str | None:
    """Return the AUC on validation requests by step."""
    rows = _defined(training.get("validation", {}).get("curve", ()))
    if len(rows) < 2:
        return None
    texts = [f"step {row['step']:,}: AUC {row['auc']:.4f}" for row in rows]
    labels = Labels("Validation AUC by step", STEP, "AUC on validation requests")
    best_step = training["best_step"]
    return line_chart(
        [Series(_points(rows, "step"), texts=texts)],
        labels,
        marked=(best_step, f"packaged: step {best_step:,}"),
    )


def _loss(curve: Sequence[Row]) -> str | None:
    """Return the training loss by step."""
    if len(curve) < 2:
        return None
    size = math.ceil(len(curve) / MAX_CURVE_POINTS)
    points = []
    for start in range(0, len(curve), size):
        group = curve[start : start + size]
        points.append((group[-1]["step"], fmean(row["loss"] for row in group)))
    labels = Labels("Training loss by step", STEP, "training loss (nats)")
    return line_chart([Series(points)], labels)


def _calibration(bins: Mapping[str, Sequence[Row]]) -> str | None:
    """Return the rate by the score of the first tasks, beside the diagonal."""
    series = []
    for color, (task, rows) in zip(COLORS[:MAX_CALIBRATION_TASKS], bins.items(), strict=False):
        points = [(row["score"], row["rate"]) for row in rows]
        texts = [BIN_TEXT.format_map({"task": task, **row}) for row in rows]
        if points:
            series.append(Series(points, color, task, texts))
    if not series:
        return None
    highest = max(max(point) for line in series for point in line.points)
    diagonal = Series([(0, 0), (highest, highest)], SOFT, "score = rate", style="--")
    labels = Labels("Calibration", "mean score (probability)", "share of positives")
    return line_chart([diagonal, *series], labels)


def _defined(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["auc"] is not None]


def _points(rows: Sequence[Row], x: str) -> list[Point]:
    return [(row[x], row["auc"]) for row in rows]


def _curve(rows: Sequence[Row], name: str) -> Series:
    """Return the line of the AUC by served length, with its interval."""
    texts = [f"{row['length']:,} events: AUC {row_interval(row, 'auc')}" for row in rows]
    bounded = [row for row in rows if row["auc_low"] is not None]
    band = [(row["length"], row["auc_low"], row["auc_high"]) for row in bounded]
    return Series(_points(rows, "length"), BLUE, name, texts, band)
