"""The page of a study, from the facts in study.json alone; one self-contained file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from longrec.reporting import page
from longrec.reporting.page import DASH, Html, format_interval, interval_cell
from longrec.study import charts
from longrec.study.rows import Facts, at_served_length, by_label, label_of, mean_of

FIT_NAMES = {
    "served length": "served length",
    "mean_events": "events of a request at it",
    "train_flops": "training FLOPs",
    "num_layer_parameters": "parameters outside the id tables",
    "train_events_read": "events read in training",
}
FIT_METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "Log loss",
}
MIN_SEEDS = 3
"""Fewest seeds with an interval that covers the spread of trainings."""


class FitKey(NamedTuple):
    """A line of the table of fits; its cells are the fits by metric."""

    label: str
    against: str
    num_points: int


def render(facts: Facts) -> str:
    """Return the page.

    Args:
        facts: content of study.json.
    """
    data = facts["data"]
    subtitle = (
        f"{facts['num_done']} of {facts['num_trials']} trials, {data['targets']:,} targets of"
        f" {data['requests']:,} later requests by {data['users']:,} users, the same for every"
        f" trial; data {data['name']}"
    )
    plots = _length_section(facts) + _cost_section(facts)
    sections = [
        _summary_section(facts),
        _recovery_section(facts),
        _bars_section(facts),
        f'<div class="grid">{plots}</div>',
        _differences_section(facts),
        _spent_section(facts),
        _fits_section(facts),
        _trials_section(facts),
        _configuration_section(facts),
    ]
    body = Html("".join(sections))
    return page.document(f"Study {facts['name']}", subtitle, body)


def render_files(facts: Facts) -> dict[str, str]:
    """Return report.html, and differences.svg if there are differences, by name."""
    rendered = {"report.html": render(facts)}
    rows = _differences_with_intervals(facts)
    if rows:
        bars = charts.difference_bars(rows)
        rendered["differences.svg"] = page.standalone_svg(bars)
    return rendered


def _served_length(facts: Facts) -> int:
    evaluate = facts["base"]["evaluate"]
    return int(evaluate["served_length"] or max(evaluate["lengths"]))


def _summary_section(facts: Facts) -> Html:
    """Return the metrics of each variant at the served length."""
    served_length = _served_length(facts)
    difference_of = {}
    for row in facts["differences"]:
        difference_of[label_of(row), row["length"]] = row
    rows = []
    for row in at_served_length(facts["curves"], served_length):
        label = label_of(row)
        difference = difference_of.get((label, row["length"]))
        # A variant may not be measured at the served length.
        suffix = "" if row["length"] == served_length else f" (at {row['length']:,})"
        cells = [
            label + suffix,
            row["num_seeds"],
            _estimate(row, "auc"),
            _difference(difference) if difference else DASH,
            _estimate(row, "gauc"),
            _estimate(row, "logloss"),
            _estimate(row, "calibration", ".3f"),
            _estimate(row, "gain", "+.4f"),
        ]
        rows.append(cells)
    headers = [
        "Variant",
        "Seeds",
        "AUC",
        f"AUC minus {facts['reference']}",
        "GAUC",
        "Log loss",
        "Calibration",
        "Gain of length",
    ]
    note = (
        f"At the served length {served_length:,}, means over seeds; 95 % intervals resample users"
        " and seeds. Differences are paired: the same users and seeds for both. Gain of length: AUC"
        " minus AUC at the shortest served length."
    )
    return page.section(
        "At the served length",
        page.table(headers, rows),
        note=note + _few_seeds_note(facts),
    )


def _few_seeds_note(facts: Facts) -> str:
    """Return a warning about intervals of fewer than three seeds, if there are any."""
    labels = set()
    for row in facts["curves"]:
        if row["num_seeds"] < MIN_SEEDS:
            labels.add(label_of(row))
    if not labels:
        return ""
    return (
        f" With fewer than three seeds (here {len(labels)}), an interval covers little or nothing"
        " of the spread of trainings."
    )


def _recovery_section(facts: Facts) -> Html:
    """Return the gain of the length extrapolation; nothing if the study does not measure it."""
    recovery = facts["recovery"]
    if not recovery:
        return Html("")
    recovered = format_interval(
        recovery["recovered"],
        recovery["recovered_low"],
        recovery["recovered_high"],
        3,
    )
    full_gain = format_interval(
        recovery["full_gain"],
        recovery["full_gain_low"],
        recovery["full_gain_high"],
    )
    tiles = {
        "gain recovered": recovered,
        "of the gain": full_gain,
        "events read against full length": f"{recovery['events_share']:.1%}",
    }
    note = (
        "Trained on short windows, served long: the share of the gain of training at full length,"
        " and of the events it reads."
    )
    return page.section("Length extrapolation", page.tiles(tiles), note=note)


def _bars_section(facts: Facts) -> Html:
    """Return the drawing of differences from the reference at the served length."""
    rows = _differences_with_intervals(facts)
    if not rows:
        return Html("")
    reference = facts["reference"]
    note = (
        f"AUC minus that of {reference} at the served length with its paired 95 % interval; right"
        " of the line is better."
    )
    return page.section(f"Against {reference}", charts.difference_bars(rows), note=note)


def _differences_with_intervals(facts: Facts) -> list[Facts]:
    """Return the differences at the served length that have an interval, the best first."""
    rows = [row for row in facts["differences"] if row["auc_low"] is not None]
    return at_served_length(rows, _served_length(facts))


def _length_section(facts: Facts) -> Html:
    """Return the chart of AUC by served length."""
    best_possible = [(row["length"], row["auc"]) for row in facts["best_possible"]]
    series = {}
    for name, rows in _drawn_rows(facts).items():
        series[name] = [(row["length"], row["auc"]) for row in rows]
    chart = charts.line_chart(
        series,
        best_possible,
        "events served, most recent (log scale)",
        "AUC by served length",
    )
    note = "One model per line, the same requests at every length."
    return page.section(
        "Served length",
        chart,
        charts.legend(series, bool(best_possible)),
        note=note + _left_out_note(facts),
    )


def _cost_section(facts: Facts) -> Html:
    """Return the chart of AUC by FLOPs of a request."""
    series = {}
    for name, rows in _drawn_rows(facts).items():
        points = []
        for row in rows:
            if row["request_flops"] > 0:
                points.append((row["request_flops"] / 1e6, row["auc"]))
        if points:
            series[name] = points
    if not series:
        return page.section("Cost", note="No model spends anything here.")
    chart = charts.line_chart(
        series,
        [],
        "MFLOPs of a request, forward (log scale)",
        "AUC by cost of a request",
    )
    note = (
        "The same points by cost: history, attention and fusion of one request with all its"
        " targets."
    )
    return page.section(
        "Cost",
        chart,
        charts.legend(series, False),
        note=note + _left_out_note(facts),
    )


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
    drawn = [*best_reference, *others][: charts.MAX_SERIES]
    defined = [row for row in facts["curves"] if row["auc"] is not None]
    drawn_rows = {}
    for label, rows in by_label(defined).items():
        if label in drawn:
            drawn_rows[label] = rows
    return drawn_rows


def _left_out_note(facts: Facts) -> str:
    """Return a note about lines that a chart leaves out, if there are any."""
    num_lines = len(by_label(facts["curves"]))
    if num_lines <= charts.MAX_SERIES:
        return ""
    return f" {facts['reference']} and the best of {num_lines} are drawn; all are in curves.csv."


def _differences_section(facts: Facts) -> Html:
    """Return the differences from the reference at each length."""
    grouped = by_label(facts["differences"])
    if not grouped:
        return Html("")
    lengths = sorted({row["length"] for row in facts["differences"]})
    rows = []
    for name, differences in grouped.items():
        at_length = {row["length"]: row for row in differences}
        cells: list[object] = [name]
        for length in lengths:
            row = at_length.get(length)
            cells.append(_difference(row) if row else DASH)
        rows.append(cells)
    headers = ["Variant", *(f"{length:,}" for length in lengths)]
    note = (
        f"AUC minus that of {facts['reference']} at the same length, paired by user and seed; bold"
        f" if the interval excludes 0. Of {len(facts['differences'])} intervals one in twenty"
        " excludes 0 by chance."
    )
    return page.section("Paired differences", page.table(headers, rows), note=note)


def _spent_section(facts: Facts) -> Html:
    """Return the cost of each variant."""
    request_mflops = {}
    for row in at_served_length(facts["curves"], _served_length(facts)):
        request_mflops[label_of(row)] = row["request_flops"] / 1e6
    rows = []
    for name, trials in by_label(facts["trials"]).items():
        cells = [
            name,
            mean_of(trials, "train_events_read"),
            mean_of(trials, "mean_length"),
            mean_of(trials, "train_num_requests"),
            mean_of(trials, "num_layer_parameters"),
            request_mflops[name],
            mean_of(trials, "train_seconds"),
        ]
        rows.append(cells)
    headers = [
        "Variant",
        "Events read",
        "Trained length",
        "Requests read",
        "Parameters",
        "MFLOPs a request",
        "Training seconds",
    ]
    note = (
        "Means over seeds. Parameters are those outside the id tables; MFLOPs: one request with"
        " its targets at the served length."
    )
    return page.section("What it cost", page.table(headers, rows), note=note)


def _fits_section(facts: Facts) -> Html:
    """Return the slopes of the fits, one line per variant and quantity."""
    if not facts["fits"]:
        return Html("")
    grouped: dict[FitKey, dict[str, Facts]] = {}
    for fit in facts["fits"]:
        key = FitKey(label_of(fit), FIT_NAMES[fit["against"]], fit["num_points"])
        grouped.setdefault(key, {})[fit["metric"]] = fit
    rows = []
    for key, fit_of in grouped.items():
        cells: list[object] = list(key)
        for metric in FIT_METRICS:
            fit = fit_of.get(metric)
            slope = _estimate(fit, "slope_per_doubling", "+.5f") if fit else DASH
            cells.append(slope)
        cells.append(fit_of["auc"]["r_squared"] if "auc" in fit_of else None)
        rows.append(cells)
    headers = [
        "Variant",
        "Against",
        "Points",
        *(f"{title} per doubling" for title in FIT_METRICS.values()),
        "R² of AUC",
    ]
    note = (
        "Least squares on log2 of the means over seeds; the interval repeats the fit on every"
        " resample of users and seeds."
    )
    return page.section("Scaling", page.table(headers, rows), note=note)


def _trials_section(facts: Facts) -> Html:
    """Return one line per finished trial, and the failed ones."""
    columns = {
        "Seed": "seed",
        "AUC": "auc",
        "Log loss": "logloss",
        "Calibration": "calibration",
        "Steps": "train_num_steps",
        "Events read": "train_events_read",
        "Mean length": "mean_length",
        "Last loss": "train_final_loss",
        "Seconds": "train_seconds",
    }
    rows = []
    devices = set()
    for trial in facts["trials"]:
        values = [trial[key] for key in columns.values()]
        rows.append([label_of(trial), *values])
        devices.add(f"{trial['train_device']} {trial['train_precision']}")
    return page.section(
        "Trials",
        page.table(["Variant", *columns], rows),
        _failures_table(facts["failures"]),
        note=f"Trained on {', '.join(sorted(devices))}. All columns are in trials.csv.",
    )


def _failures_table(failures: Sequence[Facts]) -> Html:
    """Return the failed trials with their errors; nothing if there are none."""
    if not failures:
        return Html("")
    rows = [[failure["id"], failure["error"]] for failure in failures]
    return page.table(["Failed trial", "Error"], rows)


def _configuration_section(facts: Facts) -> Html:
    """Return the configuration of the study, folded."""
    keys = ("base", "variants", "seeds", "train_events", "data")
    configuration = {key: facts[key] for key in keys}
    text = json.dumps(
        configuration,
        indent=2,
        ensure_ascii=False,
    )
    details = page.details("Configuration (JSON)", text)
    return page.section("How it was made", details)


def _estimate(
    row: Facts,
    name: str,
    form: str = ".4f",
) -> Html:
    """Return a cell with an estimate of a row and its interval."""
    return interval_cell(
        row.get(name),
        row.get(f"{name}_low"),
        row.get(f"{name}_high"),
        form,
    )


def _difference(row: Facts) -> Html:
    """Return a cell with a difference of AUC, bold if its interval excludes 0."""
    cell = _estimate(row, "auc", "+.4f")
    low = row["auc_low"]
    high = row["auc_high"]
    if low is None or high is None or low <= 0 <= high:
        return cell
    return Html(f"<b>{cell}</b>")
