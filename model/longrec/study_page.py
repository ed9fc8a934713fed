"""The page of a study: curves, cost, differences, fits and runs, from the facts in study.json alone; one self-contained file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from longrec import page
from longrec.page import Html
from longrec.report import Axis, Plot, interval, legend, nice_ticks, short

Facts: TypeAlias = Mapping[str, Any]
STYLES = ("s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8")
MAX_SERIES = len(STYLES)
FIT_NAMES = {"served length": "served length", "mean_events": "events of a request at it", "train_flops": "training FLOPs",
             "num_layer_parameters": "parameters beside the tables", "train_events_read": "events read in training"}


def render(facts: Facts) -> str:
    """Returns the page.

    Args:
        facts: content of study.json.
    """
    data = facts["data"]
    subtitle = (f"{facts['num_done']} of {facts['num_cells']} runs, {data['targets']:,} targets of {data['requests']:,} later requests by "
                f"{data['users']:,} users, the same for every run; data {data['name']}")
    plots = Html(f'<div class="grid">{_curves(facts)}{_cost(facts)}</div>')
    body = _headline(facts) + _recovery(facts) + plots + _differences(facts) + _fits(facts) + _runs(facts) + _made(facts)
    return page.page(f"Study {facts['name']}", subtitle, Html(body))


def _label(row: Facts) -> str:
    """The variant, and the grid point where there is one."""
    point = [f"{key.rpartition('.')[2]} {value}" for key, value in row.items() if "." in key]
    return ", ".join([row["variant"], *point])


def at_served(curves: Sequence[Facts], served: int) -> list[Facts]:
    """Returns the row of each variant and grid point at the served length; at its longest where it was not measured at that. Best first."""
    rows = [next((row for row in some if row["length"] == served), max(some, key=lambda row: row["length"]))
            for some in _by_label(curves).values()]
    return sorted(rows, key=lambda row: -(row["auc"] or 0))


def _headline(facts: Facts) -> Html:
    served = facts["base"]["evaluate"]["served_length"]
    apart = {(_label(row), row["length"]): row for row in facts["differences"]}
    runs = _by_label(facts["runs"])
    rows = []
    for row in at_served(facts["curves"], served):
        other, own = apart.get((_label(row), row["length"])), runs.get(_label(row), [])
        elsewhere = "" if row["length"] == served else f" (at {row['length']:,})"
        rows.append([_label(row) + elsewhere, row["num_seeds"], _stacked(row, "auc"), _stacked(row, "gauc"), _stacked(row, "logloss"),
                     _stacked(row, "calibration", ".3f"), _stacked(other, "auc", "+.4f") if other else "–", _stacked(row, "gain", "+.4f"),
                     _mean(own, "mean_length"), _mean(own, "train_events_read"), _mean(own, "num_layer_parameters"),
                     row["request_flops"] / 1e6])
    headers = ["Variant", "Seeds", "AUC", "GAUC", "Log loss", "Calibration", f"AUC against {facts['reference']}",
               "Gain of length", "Trained length", "Events read", "Parameters*", "MFLOPs a request"]
    note = (f"At the served length {served:,}, means over seeds; 95 % intervals resample users and seeds. Differences are paired: the same "
            "users and seeds for both. Gain of length: AUC over that of the shortest served length. * beside the tables of ids.")
    return page.section("At the served length", page.table(headers, rows), note=note + _few_seeds(facts))


def _few_seeds(facts: Facts) -> str:
    """What the intervals do not hold where fewer than three seeds ran."""
    few = len({_label(row) for row in facts["curves"] if row["num_seeds"] < 3})
    return f" {few} of these have fewer than three seeds: their intervals hold little or nothing of the spread of trainings." if few else ""


def _stacked(row: Facts, metric: str, form: str = ".4f") -> Html:
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return Html("–")
    under = f'<br><span class="soft keep">{low:{form}} to {high:{form}}</span>' if low is not None and high is not None else ""
    return Html(f"{value:{form}}{under}")


def _recovery(facts: Facts) -> Html:
    found = facts["recovery"]
    if not found:
        return Html("")
    tiles = {"gain recovered": interval(found["recovered"], found["recovered_low"], found["recovered_high"], 3),
             "of the gain": interval(found["full_gain"], found["full_gain_low"], found["full_gain_high"]),
             "events read against full length": f"{found['events_share']:.1%}"}
    note = "Trained on short windows, served long: the share of the gain of training at full length, and of the events it reads."
    return page.section("Length extrapolation", page.facts(tiles), note=note)


def _curves(facts: Facts) -> Html:
    rows = [row for row in facts["curves"] if row["auc"] is not None]
    bayes = [(row["length"], row["auc"]) for row in facts["bayes"]]
    series = {name: [(row["length"], row["auc"]) for row in some] for name, some in _by_label(rows).items()}
    drawing = _drawing(series, bayes, "events served, most recent (log scale)", "AUC", "AUC by served length")
    note = "One model per line, the same requests at every length."
    return page.section("Served length", drawing, _legend(series, bayes), note=note + _left_out(series))


def _cost(facts: Facts) -> Html:
    rows = [row for row in facts["curves"] if row["auc"] is not None and row["request_flops"] > 0]
    series = {name: [(row["request_flops"] / 1e6, row["auc"]) for row in some] for name, some in _by_label(rows).items()}
    if not series:
        return page.section("Cost", note="No model spends anything here.")
    drawing = _drawing(series, [], "MFLOPs of a request, forward (log scale)", "AUC", "AUC by cost of a request")
    note = "The same points by what they cost: history, attention and fusion of one request with all its targets."
    return page.section("Cost", drawing, _legend(series, []), note=note + _left_out(series))


def _drawing(series: Mapping[str, Sequence[tuple[float, float]]], bayes: Sequence[tuple[float, float]], x: str, y: str, title: str) -> Html:
    shown = list(series.items())[:MAX_SERIES]
    points = [point for _, line in shown for point in line] + list(bayes)
    if not points:
        return Html('<p class="note">No run has a defined AUC.</p>')
    levels = nice_ticks(min(level for _, level in points), max(level for _, level in points))
    places = sorted({place for place, _ in points})
    unit = next((place for place in places if place), 1.0)
    plot = Plot(Axis(places[0], places[-1], _log_ticks(places), x, _scale(unit), short), Axis(levels[0], levels[-1], levels, y), title)
    shapes = [plot.line(sorted(bayes), "s3 dash")]
    for style, (name, line) in zip(STYLES, shown, strict=False):
        texts = [f"{name}: {place:,.6g}, AUC {level:.4f}" for place, level in line]
        shapes += [plot.line(sorted(line), style), plot.dots(line, style.replace("s", "f"), texts, 3)]
    return plot.draw(*shapes)


def _scale(unit: float) -> Callable[[float], float]:
    return lambda value: math.log(max(value, unit / 2))


def _log_ticks(places: Sequence[float]) -> list[float]:
    """The values themselves where there are few, else powers of ten and their thirds between the ends."""
    if len(places) <= 8:
        return list(places)
    low, high = max(places[0], places[-1] * 1e-9), places[-1]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 3) if low <= factor * 10.0**power <= high]


def _legend(series: Mapping[str, Any], bayes: Sequence[Any]) -> Html:
    return legend([*zip(STYLES, series, strict=False), *([("s3 dash", "best possible (Bayes)")] if bayes else [])])


def _left_out(series: Mapping[str, Any]) -> str:
    return f" The first {MAX_SERIES} of {len(series)} are drawn; all are in curves.csv." if len(series) > MAX_SERIES else ""


def _differences(facts: Facts) -> Html:
    by_label = _by_label(facts["differences"])
    if not by_label:
        return Html("")
    lengths = sorted({row["length"] for row in facts["differences"]})
    rows = []
    for name, some in by_label.items():
        at = {row["length"]: row for row in some}
        rows.append([name, *(_difference(at[length]) if length in at else "–" for length in lengths)])
    note = (f"AUC minus that of {facts['reference']} at the same length, paired by user and seed; bold where the interval leaves out 0. "
            f"Of {len(facts['differences'])} intervals one in twenty leaves out 0 by chance.")
    return page.section("Paired differences", page.table(["Variant", *(f"{length:,}" for length in lengths)], rows), note=note)


def _difference(row: Facts) -> Html:
    low, high = row["auc_low"], row["auc_high"]
    cell = _stacked(row, "auc", "+.4f")
    return Html(f"<b>{cell}</b>") if low is not None and high is not None and (low > 0 or high < 0) else cell


def _fits(facts: Facts) -> Html:
    if not facts["fits"]:
        return Html("")
    rows = [[_label(row), row["metric"], FIT_NAMES[row["against"]], row["num_points"], _stacked(row, "slope_per_doubling", "+.5f"),
             row["intercept"], row["r_squared"]] for row in facts["fits"]]
    headers = ["Variant", "Metric", "Against log2 of", "Points", "Slope per doubling", "Intercept", "R²"]
    note = "Least squares on the means over seeds; the interval repeats the fit on every resample of users and seeds."
    return page.section("Scaling", page.table(headers, rows), note=note)


def _runs(facts: Facts) -> Html:
    rows = [[_label(row), row["seed"], row["auc"], row["logloss"], row["calibration"], row["train_num_steps"], row["train_events_read"],
             row["mean_length"], row["train_final_loss"], row["train_seconds"]] for row in facts["runs"]]
    headers = ["Variant", "Seed", "AUC", "Log loss", "Calibration", "Steps", "Events read", "Mean length", "Last loss", "Seconds"]
    devices = ", ".join(sorted({f"{row['train_device']} {row['train_precision']}" for row in facts["runs"]}))
    failed = page.table(["Failed run", "Why"], [[row["id"], row["error"]] for row in facts["failures"]]) if facts["failures"] else Html("")
    return page.section("Runs", page.table(headers, rows), failed, note=f"Trained on {devices}. All columns are in runs.csv.")


def _made(facts: Facts) -> Html:
    text = json.dumps({name: facts[name] for name in ("base", "variants", "seeds", "train_events", "data")}, indent=2, ensure_ascii=False)
    return page.section("How it was made", page.details("Configuration (JSON)", text))


def _by_label(rows: Iterable[Facts]) -> dict[str, list[Facts]]:
    found: dict[str, list[Facts]] = {}
    for row in rows:
        found.setdefault(_label(row), []).append(row)
    return found


def _mean(rows: Sequence[Facts], name: str) -> float | None:
    return round(sum(row[name] for row in rows) / len(rows), 1) if rows else None
