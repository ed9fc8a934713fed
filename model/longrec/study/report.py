"""The page of a study, from the facts in study.json alone; one self-contained file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from longrec.reporting import page
from longrec.reporting.charts import (
    COLORS,
    SOFT,
    Labels,
    Series,
    interval_chart,
    line_chart,
)
from longrec.study.rows import Facts, at_served_length, by_label, label_of, mean_of

FIT_NAMES = {
    "served length": "served length",
    "mean_events": "events of a request at it",
    "train_flops": "training FLOPs",
    "num_layer_parameters": "parameters outside the id tables",
    "train_events_read": "events read in training",
}
TRIAL_COLUMNS = (
    "seed",
    "auc",
    "logloss",
    "calibration",
    "train_num_steps",
    "train_events_read",
    "mean_length",
    "train_final_loss",
    "train_seconds",
)
COST_COLUMNS = (
    "train_events_read",
    "mean_length",
    "train_num_requests",
    "num_layer_parameters",
)
CONFIGURATION_KEYS = ("base", "variants", "seeds", "train_events", "data")
MIN_SEEDS = 3
"""Fewest seeds with an interval that covers the spread of trainings."""
SUBTITLE = (
    "{num_done} of {num_trials} trials, {data[targets]:,} targets of {data[requests]:,} later"
    " requests by {data[users]:,} users, the same for every trial; data {data[name]}"
)
FEW_SEEDS = (
    " With fewer than three seeds (here {num}), an interval covers little or nothing of the spread"
    " of trainings."
)
LEFT_OUT = " {reference} and the best of {num} are drawn; all are in curves.csv."


class FitKey(NamedTuple):
    """A line of the table of fits; its cells are the fits by metric."""

    label: str
    against: str
    num_points: int


def render_files(facts: Facts) -> dict[str, str]:
    """Return report.html, and differences.svg if there are differences, by name.

    Args:
        facts: content of study.json.
    """
    charts = {
        "lengths": _length_chart(facts),
        "costs": _cost_chart(facts),
        "differences": _difference_chart(facts),
    }
    rendered = {"report.html": _render(facts, charts)}
    if charts["differences"]:
        rendered["differences.svg"] = charts["differences"]
    return rendered


def _render(facts: Facts, charts: Mapping[str, str | None]) -> str:
    values = {
        **facts,
        "title": f"Study {facts['name']}",
        "subtitle": SUBTITLE.format_map(facts),
        "date": page.current_minute(),
        "charts": charts,
        "served_length": _served_length(facts),
        "summary": _summary(facts),
        "few_seeds": _few_seeds_note(facts),
        "left_out": _left_out_note(facts),
        "difference_cell": _difference_cell,
        "differences": _differences_by_length(facts),
        "difference_lengths": sorted({row["length"] for row in facts["differences"]}),
        "num_differences": len(facts["differences"]),
        "costs": _costs(facts),
        "fits": _fits(facts),
        "slope": _slope_cell,
        "trials": [[label_of(row), *_values(row, TRIAL_COLUMNS)] for row in facts["trials"]],
        "devices": _devices(facts["trials"]),
        "configuration": {key: facts[key] for key in CONFIGURATION_KEYS},
    }
    return page.render("study.html.jinja", **values)


def _served_length(facts: Facts) -> int:
    evaluate = facts["base"]["evaluate"]
    return int(evaluate["served_length"] or max(evaluate["lengths"]))


def _summary(facts: Facts) -> list[tuple[str, Facts, Facts | None]]:
    """Return name, metrics and paired difference of each variant at the served length."""
    served_length = _served_length(facts)
    differences = _differences_by_length(facts)
    rows = []
    for row in at_served_length(facts["curves"], served_length):
        label = label_of(row)
        length = row["length"]
        # A variant may not be measured at the served length.
        suffix = "" if length == served_length else f" (at {length:,})"
        rows.append((label + suffix, row, differences.get(label, {}).get(length)))
    return rows


def _few_seeds_note(facts: Facts) -> str:
    """Return a warning about intervals of fewer than three seeds, if there are any."""
    labels = {label_of(row) for row in facts["curves"] if row["num_seeds"] < MIN_SEEDS}
    return FEW_SEEDS.format(num=len(labels)) if labels else ""


def _left_out_note(facts: Facts) -> str:
    """Return a note about lines that a chart leaves out, if there are any."""
    num_lines = len(by_label(facts["curves"]))
    if num_lines <= len(COLORS):
        return ""
    return LEFT_OUT.format(reference=facts["reference"], num=num_lines)


def _difference_chart(facts: Facts) -> str | None:
    """Return the differences from the reference at the served length, the best first."""
    rows = [row for row in facts["differences"] if row["auc_low"] is not None]
    if not rows:
        return None
    intervals = []
    for row in at_served_length(rows, _served_length(facts)):
        intervals.append((label_of(row), row["auc"], row["auc_low"], row["auc_high"]))
    label = f"AUC minus that of {facts['reference']}"
    return interval_chart(intervals, Labels("Paired differences of AUC", label, ""))


def _length_chart(facts: Facts) -> str | None:
    """Return the AUC by served length."""
    series = _lines(facts, "length")
    best_possible = [(row["length"], row["auc"]) for row in facts["best_possible"]]
    if best_possible:
        series.append(Series(best_possible, SOFT, "best possible (Bayes)", style="--"))
    labels = Labels(
        "AUC by served length", "events served, the most recent ones (log scale)", "AUC"
    )
    return line_chart(series, labels, is_log=True) if series else None


def _cost_chart(facts: Facts) -> str | None:
    """Return the AUC by the FLOPs of a request."""
    series = _lines(facts, "request_flops", least=1.0)
    labels = Labels("AUC by cost of a request", "FLOPs of a request, forward (log scale)", "AUC")
    return line_chart(series, labels, is_log=True) if series else None


def _lines(facts: Facts, column: str, least: float = 0.0) -> list[Series]:
    """Return one line per variant that fits into a chart, of the points with at least `least`."""
    series = []
    for color, (name, rows) in zip(COLORS, _drawn_rows(facts).items(), strict=False):
        points = sorted((row[column], row["auc"]) for row in rows if row[column] >= least)
        texts = [f"{name}: {x:,.6g}, AUC {auc:.4f}" for x, auc in points]
        if points:
            series.append(Series(points, color, name, texts))
    return series


def _drawn_rows(facts: Facts) -> dict[str, list[Facts]]:
    """Return the rows of the lines that fit into a chart: the reference and the best others.

    Lines are in the order of the study; rows without AUC are left out.
    """
    ranked = at_served_length(facts["curves"], _served_length(facts))
    labels = [label_of(row) for row in ranked]
    references = [label_of(row) for row in ranked if row["variant"] == facts["reference"]]
    # In a grid, the reference has a line per point: the best one is drawn for sure.
    best_reference = references[:1]
    others = [label for label in labels if label not in best_reference]
    drawn = [*best_reference, *others][: len(COLORS)]
    defined = [row for row in facts["curves"] if row["auc"] is not None]
    return {label: rows for label, rows in by_label(defined).items() if label in drawn}


def _differences_by_length(facts: Facts) -> dict[str, dict[int, Facts]]:
    """Return the differences from the reference by variant and served length."""
    grouped: dict[str, dict[int, Facts]] = defaultdict(dict)
    for row in facts["differences"]:
        grouped[label_of(row)][row["length"]] = row
    return dict(grouped)


def _costs(facts: Facts) -> list[list[object]]:
    """Return the cost of each variant, means over seeds."""
    request_mflops = {}
    for row in at_served_length(facts["curves"], _served_length(facts)):
        request_mflops[label_of(row)] = row["request_flops"] / 1e6
    rows: list[list[object]] = []
    for name, trials in by_label(facts["trials"]).items():
        means = [mean_of(trials, column) for column in COST_COLUMNS]
        rows.append([name, *means, request_mflops[name], mean_of(trials, "train_seconds")])
    return rows


def _fits(facts: Facts) -> dict[FitKey, dict[str, Facts | None]]:
    """Return the fits by variant and quantity, then by metric."""
    grouped: dict[FitKey, dict[str, Facts | None]] = {}
    for fit in facts["fits"]:
        key = FitKey(label_of(fit), FIT_NAMES[fit["against"]], fit["num_points"])
        empty: dict[str, Facts | None] = dict.fromkeys(("auc", "gauc", "logloss"))
        grouped.setdefault(key, empty)[fit["metric"]] = fit
    return grouped


def _slope_cell(fit: Facts | None) -> str:
    return page.interval_cell(fit or {}, "slope_per_doubling", "+.5f")


def _devices(trials: Iterable[Facts]) -> list[str]:
    return sorted({f"{trial['train_device']} {trial['train_precision']}" for trial in trials})


def _values(row: Facts, names: Sequence[str]) -> list[object]:
    return [row[name] for name in names]


def _difference_cell(row: Facts | None) -> Markup:
    """Return a cell with a difference of AUC, bold if its interval excludes 0."""
    cell = page.interval_cell(row or {}, "auc", "+.4f")
    if row is None or row["auc_low"] is None or row["auc_low"] <= 0 <= row["auc_high"]:
        return cell
    return Markup("<b>{}</b>").format(cell)
