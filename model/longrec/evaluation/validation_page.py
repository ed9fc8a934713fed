"""What the validation of a training says: sentences for the summary, and a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from longrec.reporting import page
from longrec.reporting.charts import Axis, LineChart, log_axis, nice_ticks, short_number
from longrec.reporting.page import Html, format_interval

Row: TypeAlias = Mapping[str, Any]

SERVED = "Served at {length:,} events: {reason}."
FALLING = (
    "The AUC on validation requests falls with the history length: {best[auc]:.4f} at"
    " {best[length]:,} events, {longest[auc]:.4f} at {longest[length]:,}, difference"
    " {longest[difference]:+.4f} ({longest[difference_low]:+.4f} to"
    " {longest[difference_high]:+.4f}). More events make this model worse: train it on longer"
    " histories, or look for events that mislead it."
)
STOPPED = {
    "patience": "The training stopped after step {num_steps:,}: validations no longer improved.",
    "time": "The training stopped after step {num_steps:,}: train.max_seconds were over.",
}
BEST = "The packaged weights are those of step {best_step:,} of {num_steps:,}."
GAIN = "Training twice as long is expected to gain about {gain:.4f} AUC (trend of the validations)."
NO_GAIN = "Longer training is expected to gain nothing: the AUC had stopped rising."
UNKNOWN_GAIN = (
    "What longer training would gain is unknown: it takes two validations (train.validate_every)."
)


def findings(training: Row) -> list[str]:
    """Return what a user should act on, as sentences.

    Args:
        training: facts of the bundle.
    """
    choice = _choice(training)
    if not choice.get("is_falling"):
        return []
    curve = choice["curve"]
    best = max(curve, key=lambda row: row["auc"])
    return [FALLING.format(best=best, longest=curve[-1])]


def notes(training: Row) -> list[str]:
    """Return how the training ended and how the served length was chosen, as sentences."""
    choice = _choice(training)
    if not choice:
        return []
    sentences = [SERVED.format_map(choice)]
    if training["stopped_by"] in STOPPED:
        sentences.append(STOPPED[training["stopped_by"]].format_map(training))
    if training["best_step"] != training["num_steps"]:
        sentences.append(BEST.format_map(training))
    sentences.append(_gain_text(training["expected_gain"]))
    return sentences


def section(training: Row) -> Html:
    """Return the section of the page: both curves and the sentences; empty without validation."""
    sentences = [*findings(training), *notes(training)]
    if not sentences:
        return Html("")
    charts = []
    steps = [row for row in training["validation"]["curve"] if row["auc"] is not None]
    lengths = [row for row in _choice(training)["curve"] if row["auc"] is not None]
    if len(steps) > 1:
        charts.append(_step_chart(steps, training["best_step"]))
    if len(lengths) > 1:
        charts.append(_length_chart(lengths, _choice(training)["length"]))
    return page.section("Validation", *charts, note=" ".join(sentences))


def _choice(training: Row) -> Row:
    validation: Row = training.get("validation", {})
    choice: Row = validation.get("served_length", {})
    return choice


def _gain_text(gain: float | None) -> str:
    if gain is None:
        return UNKNOWN_GAIN
    return GAIN.format(gain=gain) if gain > 0 else NO_GAIN


def _step_chart(rows: Sequence[Row], best_step: int) -> Html:
    points = [(row["step"], row["auc"]) for row in rows]
    best = [point for point in points if point[0] == best_step]
    ticks = nice_ticks(0, points[-1][0])
    chart = LineChart(
        Axis(0, ticks[-1], ticks, "optimizer step", tick_text=short_number),
        _auc_axis([auc for _, auc in points]),
        "Validation AUC by step",
    )
    texts = [f"step {step:,}: AUC {auc:.4f}, packaged" for step, auc in best]
    return chart.draw(chart.line(points, "s1"), chart.dots(best, "f1", texts))


def _length_chart(rows: Sequence[Row], served_length: int) -> Html:
    points = [(row["length"], row["auc"]) for row in rows]
    lows = [(row["length"], row["auc_low"]) for row in rows if row["auc_low"] is not None]
    highs = [(row["length"], row["auc_high"]) for row in rows if row["auc_high"] is not None]
    chart = LineChart(
        log_axis([row["length"] for row in rows], "events served, on validation requests (log)"),
        _auc_axis([auc for _, auc in [*points, *lows, *highs]]),
        "Validation AUC by served length",
    )
    chosen = [point for point in points if point[0] == served_length]
    texts = [_length_text(row) for row in rows if row["length"] == served_length]
    return chart.draw(
        chart.band(lows, highs),
        chart.line(points, "s1"),
        chart.dots(chosen, "f1", texts),
    )


def _length_text(row: Row) -> str:
    auc = format_interval(row["auc"], row["auc_low"], row["auc_high"])
    return f"{row['length']:,} events, served: AUC {auc}"


def _auc_axis(aucs: Sequence[float]) -> Axis:
    ticks = nice_ticks(min(aucs), max(aucs))
    return Axis(ticks[0], ticks[-1], ticks, "AUC")
