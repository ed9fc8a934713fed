"""Charts of an evaluation, from the content of metrics.json.

A chart is None if there is nothing to draw.
"""

from __future__ import annotations

import math
import operator
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
BIN_TEXT = "score {score:.4f}, rate {rate:.4f}, {num_targets:,} targets"
STEP_TEXT = "step {step:,}: AUC {auc:.4f}"
DIFFERENCE = ("name", "difference", "difference_low", "difference_high")


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
        intervals = list(map(operator.itemgetter(*DIFFERENCE), compared))
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
    auc = baseline["auc"]
    series = [_curve(rows)]
    if best_possible:
        series.append(Series(best_possible, ORANGE, "best possible", style="--"))
    if auc is not None:
        level = [(row["length"], auc) for row in rows]
        name = f"best baseline ({baseline['name']})"
        series.append(Series(level, SOFT, name, style="--"))
    labels = Labels("AUC by served length", SERVED_LENGTH, f"AUC of {task}")
    served = _served(results["served_length"])
    return line_chart(series, labels, is_log=True, marked=served)


def _validation_lengths(training: Row) -> str | None:
    """Return the AUC by served length on validation requests, with the choice."""
    validation = training.get("validation", {})
    choice = validation.get("served_length", {})
    rows = _defined(choice.get("curve", ()))
    if not rows:
        return None
    labels = Labels("Validation AUC by served length", SERVED_LENGTH, "AUC on validation requests")
    served = _served(choice["length"])
    return line_chart([_curve(rows)], labels, is_log=True, marked=served)


def _served(length: int) -> tuple[float, str]:
    return length, f"served: {length:,} events"


def _validation(training: Row) -> str | None:
    """Return the AUC on validation requests by step."""
    validation = training.get("validation", {})
    rows = _defined(validation.get("curve", ()))
    if len(rows) < 2:
        return None
    texts = list(map(STEP_TEXT.format_map, rows))
    curve = Series(_points(rows, "step"), texts=texts)
    labels = Labels("Validation AUC by step", STEP, "AUC on validation requests")
    best_step = training["best_step"]
    packaged = f"packaged: step {best_step:,}"
    return line_chart([curve], labels, marked=(best_step, packaged))


def _loss(curve: Sequence[Row]) -> str | None:
    """Return the training loss by step."""
    if len(curve) < 2:
        return None
    size = math.ceil(len(curve) / MAX_CURVE_POINTS)
    points = []
    for start in range(0, len(curve), size):
        group = curve[start : start + size]
        loss = fmean(row["loss"] for row in group)
        points.append((group[-1]["step"], loss))
    labels = Labels("Training loss by step", STEP, "training loss (nats)")
    return line_chart([Series(points)], labels)


def _calibration(bins: Mapping[str, Sequence[Row]]) -> str | None:
    """Return the rate by the score of the first tasks, beside the diagonal."""
    series = []
    highest = 0.0
    colors = COLORS[:MAX_CALIBRATION_TASKS]
    for color, (task, rows) in zip(colors, bins.items(), strict=False):
        points = [(row["score"], row["rate"]) for row in rows]
        texts = list(map(BIN_TEXT.format_map, rows))
        if points:
            series.append(Series(points, color, task, texts))
            highest = max(highest, *map(max, points))
    if not series:
        return None
    diagonal = Series([(0, 0), (highest, highest)], SOFT, "score = rate", style="--")
    labels = Labels("Calibration", "mean score (probability)", "share of positives")
    return line_chart([diagonal, *series], labels)


def _defined(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["auc"] is not None]


def _points(rows: Sequence[Row], x: str) -> list[Point]:
    return [(row[x], row["auc"]) for row in rows]


def _curve(rows: Sequence[Row]) -> Series:
    """Return the line of the AUC by served length, with its interval."""
    texts = []
    for row in rows:
        auc = row_interval(row, "auc")
        texts.append(f"{row['length']:,} events: AUC {auc}")
    bounded = [row for row in rows if row["auc_low"] is not None]
    ends = operator.itemgetter("length", "auc_low", "auc_high")
    band = list(map(ends, bounded))
    points = _points(rows, "length")
    return Series(points, BLUE, "model, 95 % interval", texts, band)
