"""The page of a study: curves, cost, differences, fits and runs, from the facts in study.json
alone; one self-contained file.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from longrec.reporting import page
from longrec.reporting.charts import Axis, LineChart, legend, nice_ticks, short_number
from longrec.reporting.page import Html, format_interval

Facts: TypeAlias = Mapping[str, Any]
STYLES = ("s1", "s2", "s4", "s5", "s6", "s7", "s8")
MAX_SERIES = len(STYLES)
FIT_NAMES = {
    "served length": "served length",
    "mean_events": "events of a request at it",
    "train_flops": "training FLOPs",
    "num_layer_parameters": "parameters beside the tables",
    "train_events_read": "events read in training",
}
FIT_METRICS = {"auc": "AUC", "gauc": "GAUC", "logloss": "Log loss"}
BAR_WIDTH, BAR_HEIGHT, LETTER_WIDTH = 1100.0, 24.0, 7.0


def render(facts: Facts) -> str:
    """Returns the page.

    Args:
        facts: content of study.json.
    """
    data = facts["data"]
    subtitle = (
        f"{facts['num_done']} of {facts['num_trials']} runs, {data['targets']:,} targets of {data['requests']:,} later requests by "
        f"{data['users']:,} users, the same for every run; data {data['name']}"
    )
    plots = Html(f'<div class="grid">{_curves(facts)}{_cost(facts)}</div>')
    body = (
        _headline(facts)
        + _recovery(facts)
        + _apart(facts)
        + plots
        + _differences(facts)
        + _spent(facts)
        + _fits(facts)
        + _runs(facts)
        + _made(facts)
    )
    return page.document(f"Study {facts['name']}", subtitle, Html(body))


def files_of(facts: Facts) -> dict[str, str]:
    """Returns report.html and, where there are differences, differences.svg, by name."""
    rows = _with_intervals(facts)
    return {
        "report.html": render(facts),
        **({"differences.svg": page.standalone_svg(bars(rows))} if rows else {}),
    }


def _label(row: Facts) -> str:
    """The variant, and the grid point where there is one."""
    point = [f"{key.rpartition('.')[2]} {value}" for key, value in row.items() if "." in key]
    return ", ".join([row["variant"], *point])


def at_served(curves: Sequence[Facts], served: int) -> list[Facts]:
    """Returns the row of each variant and grid point at the served length; at its longest where it
    was not measured at that. Best first.
    """
    rows = [
        next(
            (row for row in some if row["length"] == served),
            max(some, key=lambda row: row["length"]),
        )
        for some in _by_label(curves).values()
    ]
    return sorted(rows, key=lambda row: -(row["auc"] or 0))


def _headline(facts: Facts) -> Html:
    served = facts["base"]["evaluate"]["served_length"]
    apart = {(_label(row), row["length"]): row for row in facts["differences"]}
    rows = []
    for row in at_served(facts["curves"], served):
        other = apart.get((_label(row), row["length"]))
        elsewhere = "" if row["length"] == served else f" (at {row['length']:,})"
        rows.append(
            [
                _label(row) + elsewhere,
                row["num_seeds"],
                _stacked(row, "auc"),
                _difference(other) if other else "–",
                _stacked(row, "gauc"),
                _stacked(row, "logloss"),
                _stacked(row, "calibration", ".3f"),
                _stacked(row, "gain", "+.4f"),
            ]
        )
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
        f"At the served length {served:,}, means over seeds; 95 % intervals resample users and seeds. Differences are paired: the same "
        "users and seeds for both. Gain of length: AUC over that of the shortest served length."
    )
    return page.section(
        "At the served length", page.table(headers, rows), note=note + _few_seeds(facts)
    )


def _spent(facts: Facts) -> Html:
    flops = {
        _label(row): row["request_flops"] / 1e6
        for row in at_served(facts["curves"], facts["base"]["evaluate"]["served_length"])
    }
    names = ("train_events_read", "mean_length", "train_num_requests", "num_layer_parameters")
    rows = [
        [name, *(_mean(own, column) for column in names), flops[name], _mean(own, "train_seconds")]
        for name, own in _by_label(facts["runs"]).items()
    ]
    headers = [
        "Variant",
        "Events read",
        "Trained length",
        "Requests read",
        "Parameters",
        "MFLOPs a request",
        "Training seconds",
    ]
    note = "Means over seeds. Parameters are those beside the tables of ids; MFLOPs: one request with its targets at the served length."
    return page.section("What it cost", page.table(headers, rows), note=note)


def _few_seeds(facts: Facts) -> str:
    """What the intervals do not hold where fewer than three seeds ran."""
    few = len({_label(row) for row in facts["curves"] if row["num_seeds"] < 3})
    return (
        f" With fewer than three seeds (here {few}), an interval holds little or nothing of the spread of trainings."
        if few
        else ""
    )


def _stacked(row: Facts, metric: str, form: str = ".4f") -> Html:
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return Html("–")
    under = (
        f'<br><span class="soft nowrap">{low:{form}} to {high:{form}}</span>'
        if low is not None and high is not None
        else ""
    )
    return Html(f"{value:{form}}{under}")


def _recovery(facts: Facts) -> Html:
    found = facts["recovery"]
    if not found:
        return Html("")
    tiles = {
        "gain recovered": format_interval(
            found["recovered"], found["recovered_low"], found["recovered_high"], 3
        ),
        "of the gain": format_interval(
            found["full_gain"], found["full_gain_low"], found["full_gain_high"]
        ),
        "events read against full length": f"{found['events_share']:.1%}",
    }
    note = "Trained on short windows, served long: the share of the gain of training at full length, and of the events it reads."
    return page.section("Length extrapolation", page.tiles(tiles), note=note)


def _curves(facts: Facts) -> Html:
    rows = [row for row in facts["curves"] if row["auc"] is not None]
    best_possible = [(row["length"], row["auc"]) for row in facts["best_possible"]]
    series = {
        name: [(row["length"], row["auc"]) for row in some]
        for name, some in _drawn(facts, rows).items()
    }
    drawing = _drawing(
        series,
        best_possible,
        "events served, most recent (log scale)",
        "AUC",
        "AUC by served length",
    )
    note = "One model per line, the same requests at every length."
    return page.section(
        "Served length", drawing, _legend(series, best_possible), note=note + _left_out(facts)
    )


def _cost(facts: Facts) -> Html:
    rows = [row for row in facts["curves"] if row["auc"] is not None and row["request_flops"] > 0]
    series = {
        name: [(row["request_flops"] / 1e6, row["auc"]) for row in some]
        for name, some in _drawn(facts, rows).items()
    }
    if not series:
        return page.section("Cost", note="No model spends anything here.")
    drawing = _drawing(
        series, [], "MFLOPs of a request, forward (log scale)", "AUC", "AUC by cost of a request"
    )
    note = "The same points by what they cost: history, attention and fusion of one request with all its targets."
    return page.section("Cost", drawing, _legend(series, []), note=note + _left_out(facts))


def _drawing(
    series: Mapping[str, Sequence[tuple[float, float]]],
    best_possible: Sequence[tuple[float, float]],
    x: str,
    y: str,
    title: str,
) -> Html:
    points = [point for line in series.values() for point in line] + list(best_possible)
    if not points:
        return Html('<p class="note">No run has a defined AUC.</p>')
    levels = nice_ticks(min(level for _, level in points), max(level for _, level in points))
    places = sorted({place for place, _ in points})
    unit = next((place for place in places if place), 1.0)
    plot = LineChart(
        Axis(places[0], places[-1], _log_ticks(places), x, _scale(unit), _text),
        Axis(levels[0], levels[-1], levels, y),
        title,
    )
    shapes = [plot.line(sorted(best_possible), "s3 dash")]
    for style, (name, line) in zip(STYLES, series.items(), strict=False):
        texts = [f"{name}: {place:,.6g}, AUC {level:.4f}" for place, level in line]
        shapes += [
            plot.line(sorted(line), style),
            plot.dots(line, style.replace("s", "f"), texts, 3),
        ]
    return plot.draw(*shapes)


def _text(value: float) -> str:
    return short_number(value if value >= 1_000 else float(f"{value:.3g}"))


def _scale(unit: float) -> Callable[[float], float]:
    return lambda value: math.log(max(value, unit / 2))


def _log_ticks(places: Sequence[float]) -> list[float]:
    """The values themselves where there are few, else powers of ten and their thirds between the
    ends.
    """
    if len(places) <= 8:
        return list(places)
    low, high = max(places[0], places[-1] * 1e-9), places[-1]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        factor * 10.0**power
        for power in powers
        for factor in (1, 3)
        if low <= factor * 10.0**power <= high
    ]


def _legend(series: Mapping[str, Any], best_possible: Sequence[Any]) -> Html:
    return legend(
        [
            *zip(STYLES, series, strict=False),
            *([("s3 dash", "best possible (Bayes)")] if best_possible else []),
        ]
    )


def _drawn(facts: Facts, rows: Sequence[Facts]) -> dict[str, list[Facts]]:
    """The lines that a plot has room for, in the order of the study: the reference, then the best
    at the served length.
    """
    best = [
        _label(row)
        for row in at_served(facts["curves"], facts["base"]["evaluate"]["served_length"])
    ]
    reference = [name for name in best if name.split(", ")[0] == facts["reference"]][:1]
    kept = [*reference, *(name for name in best if name not in reference)][:MAX_SERIES]
    return {name: some for name, some in _by_label(rows).items() if name in kept}


def _left_out(facts: Facts) -> str:
    count = len(_by_label(facts["curves"]))
    return (
        f" {facts['reference']} and the best of {count} are drawn; all are in curves.csv."
        if count > MAX_SERIES
        else ""
    )


def _apart(facts: Facts) -> Html:
    rows = _with_intervals(facts)
    if not rows:
        return Html("")
    note = f"AUC minus that of {facts['reference']} at the served length with its paired 95 % interval; right of the line is better."
    return page.section(f"Against {facts['reference']}", bars(rows), note=note)


def _with_intervals(facts: Facts) -> list[Facts]:
    """The differences at the served length that have an interval, best first."""
    return at_served(
        [row for row in facts["differences"] if row["auc_low"] is not None],
        facts["base"]["evaluate"]["served_length"],
    )


def bars(rows: Sequence[Facts]) -> Html:
    """Returns the SVG of differences: a bar from the low to the high end of each interval around a
    dot, and a line at zero.

    Args:
        rows: of differences.csv, with an interval each, from top to bottom.
    """
    ticks = nice_ticks(
        min(0.0, *(row["auc_low"] for row in rows)), max(0.0, *(row["auc_high"] for row in rows)), 6
    )
    axis, floor = Axis(ticks[0], ticks[-1], ticks, ""), 10 + BAR_HEIGHT * len(rows)
    left = 24 + LETTER_WIDTH * max(len(_label(row)) for row in rows)

    def across(value: float) -> float:
        return left + axis.fraction(value) * (BAR_WIDTH - left - 30)

    parts = [
        f'<line class="{"s3 dash" if tick == 0 else "axis"}" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="4" y2="{floor:g}"/>'
        f'<text x="{across(tick):.1f}" y="{floor + 18:g}" text-anchor="middle">{format(tick, "+g" if tick else "g")}</text>'
        for tick in ticks
    ]
    for place, row in enumerate(rows):
        level, (low, high) = 10 + BAR_HEIGHT * (place + 0.5), (row["auc_low"], row["auc_high"])
        style = "4" if low > 0 else "6" if high < 0 else "3"
        text = html.escape(
            f"{_label(row)}: {row['auc']:+.4f} ({low:+.4f} to {high:+.4f}), {row['num_seeds']} seeds"
        )
        parts.append(
            f'<text x="{left - 12:g}" y="{level + 4:g}" text-anchor="end">{html.escape(_label(row))}</text>'
            f'<line class="line s{style}" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{level:g}" y2="{level:g}"/>'
            f'<circle class="f{style}" cx="{across(row["auc"]):.1f}" cy="{level:g}" r="4"><title>{text}</title></circle>'
        )
    return Html(
        f'<svg viewBox="0 0 {BAR_WIDTH:g} {floor + 26:g}" role="img" aria-label="Paired differences of AUC">{"".join(parts)}</svg>'
    )


def _differences(facts: Facts) -> Html:
    by_label = _by_label(facts["differences"])
    if not by_label:
        return Html("")
    lengths = sorted({row["length"] for row in facts["differences"]})
    rows = []
    for name, some in by_label.items():
        at = {row["length"]: row for row in some}
        rows.append(
            [name, *(_difference(at[length]) if length in at else "–" for length in lengths)]
        )
    note = (
        f"AUC minus that of {facts['reference']} at the same length, paired by user and seed; bold where the interval leaves out 0. "
        f"Of {len(facts['differences'])} intervals one in twenty leaves out 0 by chance."
    )
    return page.section(
        "Paired differences",
        page.table(["Variant", *(f"{length:,}" for length in lengths)], rows),
        note=note,
    )


def _difference(row: Facts) -> Html:
    low, high = row["auc_low"], row["auc_high"]
    trial = _stacked(row, "auc", "+.4f")
    return (
        Html(f"<b>{trial}</b>")
        if low is not None and high is not None and (low > 0 or high < 0)
        else trial
    )


def _fits(facts: Facts) -> Html:
    if not facts["fits"]:
        return Html("")
    by_line: dict[tuple[str, str, int], dict[str, Facts]] = {}
    for row in facts["fits"]:
        by_line.setdefault((_label(row), FIT_NAMES[row["against"]], row["num_points"]), {})[
            row["metric"]
        ] = row
    rows = [
        [
            *name,
            *(
                _stacked(some[metric], "slope_per_doubling", "+.5f") if metric in some else "–"
                for metric in FIT_METRICS
            ),
            some["auc"]["r_squared"] if "auc" in some else None,
        ]
        for name, some in by_line.items()
    ]
    headers = [
        "Variant",
        "Against",
        "Points",
        *(f"{title} per doubling" for title in FIT_METRICS.values()),
        "R² of AUC",
    ]
    note = "Least squares on log2 of the means over seeds; the interval repeats the fit on every resample of users and seeds."
    return page.section("Scaling", page.table(headers, rows), note=note)


def _runs(facts: Facts) -> Html:
    rows = [
        [
            _label(row),
            row["seed"],
            row["auc"],
            row["logloss"],
            row["calibration"],
            row["train_num_steps"],
            row["train_events_read"],
            row["mean_length"],
            row["train_final_loss"],
            row["train_seconds"],
        ]
        for row in facts["runs"]
    ]
    headers = [
        "Variant",
        "Seed",
        "AUC",
        "Log loss",
        "Calibration",
        "Steps",
        "Events read",
        "Mean length",
        "Last loss",
        "Seconds",
    ]
    devices = ", ".join(
        sorted({f"{row['train_device']} {row['train_precision']}" for row in facts["runs"]})
    )
    failed = (
        page.table(["Failed run", "Why"], [[row["id"], row["error"]] for row in facts["failures"]])
        if facts["failures"]
        else Html("")
    )
    return page.section(
        "Runs",
        page.table(headers, rows),
        failed,
        note=f"Trained on {devices}. All columns are in runs.csv.",
    )


def _made(facts: Facts) -> Html:
    text = json.dumps(
        {name: facts[name] for name in ("base", "variants", "seeds", "train_events", "data")},
        indent=2,
        ensure_ascii=False,
    )
    return page.section("How it was made", page.details("Configuration (JSON)", text))


def _by_label(rows: Iterable[Facts]) -> dict[str, list[Facts]]:
    found: dict[str, list[Facts]] = {}
    for row in rows:
        found.setdefault(_label(row), []).append(row)
    return found


def _mean(rows: Sequence[Facts], name: str) -> float | None:
    return round(sum(row[name] for row in rows) / len(rows), 1) if rows else None
