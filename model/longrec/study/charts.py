"""Charts of a study: AUC by served length or cost, and bars of paired differences."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from longrec.reporting.charts import (
    Axis,
    LineChart,
    Point,
    element,
    fill_style,
    log_axis,
    nice_ticks,
    short_number,
)
from longrec.reporting.charts import legend as chart_legend
from longrec.reporting.page import Html
from longrec.study.rows import Facts, label_of

Series: TypeAlias = Mapping[str, Sequence[Point]]
"""Points by the name of their series."""
STYLES = ("s1", "s2", "s4", "s5", "s6", "s7", "s8")
MAX_SERIES = len(STYLES)
BETTER_STYLE = "s4"
WORSE_STYLE = "s6"
UNCLEAR_STYLE = "s3"
BEST_POSSIBLE_STYLE = "s3 dash"
MAX_VALUE_TICKS = 8
"""Largest number of different values that are ticks of a logarithmic axis themselves."""
DOT_RADIUS = 3.0

BAR_WIDTH = 1100.0
BAR_HEIGHT = 24.0
BAR_TOP = 10.0
BAR_RIGHT = 30.0
LABEL_GAP = 12.0
LETTER_WIDTH = 7.0
NUM_BAR_TICKS = 6


def line_chart(
    series: Series,
    best_possible: Sequence[Point],
    x_label: str,
    title: str,
) -> Html:
    """Return a chart of AUC over a logarithmic axis.

    Args:
        series: points of each line.
        best_possible: points of the best possible AUC, if it is known.
        x_label: label of the horizontal axis.
        title: title of the chart.
    """
    points = [point for line in series.values() for point in line]
    points.extend(best_possible)
    if not points:
        return Html('<p class="note">No trial has a defined AUC.</p>')
    xs = sorted({x for x, _ in points})
    aucs = [auc for _, auc in points]
    y_ticks = nice_ticks(min(aucs), max(aucs))
    chart = LineChart(
        log_axis(xs, x_label, _log_ticks(xs), _tick_text),
        Axis(
            y_ticks[0],
            y_ticks[-1],
            y_ticks,
            "AUC",
        ),
        title,
    )
    shapes = [chart.line(sorted(best_possible), BEST_POSSIBLE_STYLE)]
    for style, (name, line) in zip(STYLES, series.items(), strict=False):
        texts = [f"{name}: {x:,.6g}, AUC {auc:.4f}" for x, auc in line]
        dot_style = fill_style(style)
        shapes.append(chart.line(sorted(line), style))
        shapes.append(
            chart.dots(
                line,
                dot_style,
                texts,
                DOT_RADIUS,
            )
        )
    return chart.draw(*shapes)


def legend(series: Mapping[str, Any], has_best_possible: bool) -> Html:
    """Return the legend of a line chart."""
    entries = list(zip(STYLES, series, strict=False))
    if has_best_possible:
        entries.append((BEST_POSSIBLE_STYLE, "best possible (Bayes)"))
    return chart_legend(entries)


def difference_bars(rows: Sequence[Facts]) -> Html:
    """Return a bar per difference of AUC, from the low to the high end of its interval.

    A dot marks the difference itself, a line marks zero.

    Args:
        rows: rows of differences.csv from top to bottom, each with an interval.
    """
    lows = [row["auc_low"] for row in rows]
    highs = [row["auc_high"] for row in rows]
    ticks = nice_ticks(
        min(0.0, *lows),
        max(0.0, *highs),
        NUM_BAR_TICKS,
    )
    axis = Axis(
        ticks[0],
        ticks[-1],
        ticks,
        "",
    )
    longest_label = max(len(label_of(row)) for row in rows)
    left = 2 * LABEL_GAP + LETTER_WIDTH * longest_label
    bottom = BAR_TOP + BAR_HEIGHT * len(rows)

    def x_of(value: float) -> float:
        return left + axis.fraction(value) * (BAR_WIDTH - left - BAR_RIGHT)

    parts = [_bar_tick(tick, x_of(tick), bottom) for tick in ticks]
    for number, row in enumerate(rows):
        y = BAR_TOP + BAR_HEIGHT * (number + 0.5)
        xs = {
            "low": x_of(row["auc_low"]),
            "value": x_of(row["auc"]),
            "high": x_of(row["auc_high"]),
        }
        parts.append(_bar(row, xs, y, left - LABEL_GAP))
    return Html(
        element(
            "svg",
            "".join(parts),
            viewBox=f"0 0 {BAR_WIDTH:g} {bottom + 26:g}",
            role="img",
            aria_label="Paired differences of AUC",
        )
    )


def _bar_tick(
    tick: float,
    x: float,
    bottom: float,
) -> str:
    """Return the vertical line and the label of a tick."""
    line = element(
        "line",
        class_="axis" if tick else "s3 dash",
        x1=x,
        x2=x,
        y1=4.0,
        y2=bottom,
    )
    text = element(
        "text",
        format(tick, "+g" if tick else "g"),
        x=x,
        y=bottom + 18,
        text_anchor="middle",
    )
    return line + text


def _bar(
    row: Facts,
    xs: Mapping[str, float],
    y: float,
    label_end: float,
) -> str:
    """Return the label, the line and the dot of one difference.

    Args:
        row: row of differences.csv.
        xs: horizontal positions of `low`, `value` and `high`.
        y: vertical position.
        label_end: horizontal position of the end of the label.
    """
    name = label_of(row)
    low = row["auc_low"]
    high = row["auc_high"]
    style = _bar_style(low, high)
    text = f"{name}: {row['auc']:+.4f} ({low:+.4f} to {high:+.4f}), {row['num_seeds']} seeds"
    label = element(
        "text",
        html.escape(name),
        x=label_end,
        y=y + 4,
        text_anchor="end",
    )
    line = element(
        "line",
        class_=f"line {style}",
        x1=xs["low"],
        x2=xs["high"],
        y1=y,
        y2=y,
    )
    dot = element(
        "circle",
        element("title", html.escape(text)),
        class_=fill_style(style),
        cx=xs["value"],
        cy=y,
        r=4.0,
    )
    return label + line + dot


def _bar_style(low: float, high: float) -> str:
    """Return the style of an interval: above zero, below zero, or around it."""
    if low > 0:
        return BETTER_STYLE
    return WORSE_STYLE if high < 0 else UNCLEAR_STYLE


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Return rising values themselves if they are few, else 1, 3, 10, 30, ... between the ends."""
    if len(values) <= MAX_VALUE_TICKS:
        return list(values)
    high = values[-1]
    low = max(values[0], high * 1e-9)
    first_power = math.floor(math.log10(low))
    last_power = math.ceil(math.log10(high))
    ticks = []
    for power in range(first_power, last_power + 1):
        for factor in (1, 3):
            tick = factor * 10.0**power
            if low <= tick <= high:
                ticks.append(tick)
    return ticks


def _tick_text(value: float) -> str:
    if value >= 1_000:
        return short_number(value)
    return short_number(float(f"{value:.3g}"))
