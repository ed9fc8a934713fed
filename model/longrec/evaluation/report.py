"""The evaluation report: one self-contained HTML page with tables and drawn-by-hand SVG plots, made
from plain facts.

`render` takes what `longrec.evaluation.evaluate` wrote to metrics.json, so a page can be made again
from that file alone.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from longrec.reporting import page
from longrec.reporting.page import Html

Facts: TypeAlias = Mapping[str, Any]
Point: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 560.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 26.0, 14.0, 44.0
MAX_CURVE_POINTS = 300
SERIES = ("s1", "s2", "s3")
TRAINING = {
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
"""Facts of the training that are shown, and how."""
COLUMNS = (
    ("auc", "AUC"),
    ("gauc", "GAUC"),
    ("logloss", "Log loss"),
    ("ne", "NE"),
    ("calibration", "Calibration"),
    ("ece", "ECE"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot.

    Args:
        low, high: ends, in the values of the data.
        ticks: values with a mark and a text.
        label: under or beside the axis.
        scale: monotone map of values, for a logarithmic axis.
        text: how a tick is written.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    scale: Callable[[float], float] = float
    text: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """Returns where a value lies, 0 at the low end and 1 at the high end."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low) if high > low else 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """A frame with two axes that turns series of points into SVG."""

    x: Axis
    y: Axis
    title: str

    def at(self, point: Point) -> tuple[float, float]:
        """Returns the place of a point in the drawing."""
        across = LEFT + self.x.share(point[0]) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - self.y.share(point[1]) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[Point], style: str) -> str:
        """Returns a line through points."""
        return (
            f'<polyline class="line {style}" points="{self._path(points)}"/>'
            if len(points) > 1
            else ""
        )

    def band(self, lows: Sequence[Point], highs: Sequence[Point]) -> str:
        """Returns the area between two lines over the same x values."""
        return (
            f'<polygon class="band" points="{self._path([*lows, *reversed(highs)])}"/>'
            if len(lows) > 1
            else ""
        )

    def dots(
        self, points: Sequence[Point], style: str, texts: Sequence[str], radius: float = 3.6
    ) -> str:
        """Returns a dot per point, with a text that shows when the mouse rests on it."""
        places = [(*self.at(point), text) for point, text in zip(points, texts, strict=True)]
        return "".join(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{html.escape(text)}</title></circle>'
            for x, y, text in places
        )

    def draw(self, *shapes: str) -> Html:
        """Returns the SVG of the frame and the shapes in it."""
        return Html(
            f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(self.title, quote=True)}">'
            f"{self._frame()}{''.join(shapes)}</svg>"
        )

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))

    def _frame(self) -> str:
        parts, floor, last = [], HEIGHT - BOTTOM, -math.inf
        for tick in self.y.ticks:
            level = self.at((self.x.low, tick))[1]
            parts.append(
                f'<line class="axis" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{level:.1f}" y2="{level:.1f}"/>'
                f'<text x="{LEFT - 8:g}" y="{level + 4:.1f}" text-anchor="end">{html.escape(self.y.text(tick))}</text>'
            )
        for tick in self.x.ticks:
            across = self.at((tick, self.y.low))[0]
            if across - last < 34:
                continue
            last = across
            parts.append(
                f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="{floor:g}" y2="{floor + 5:g}"/>'
                f'<text x="{across:.1f}" y="{floor + 18:g}" text-anchor="middle">{html.escape(self.x.text(tick))}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{middle:g}" y="{HEIGHT - 6:g}" text-anchor="middle">{html.escape(self.x.label)}</text>'
        )
        across, level = 13.0, (TOP + floor) / 2
        parts.append(
            f'<text x="{across:g}" y="{level:g}" text-anchor="middle" transform="rotate(-90 {across:g} {level:g})">'
            f"{html.escape(self.y.label)}</text>"
        )
        return "".join(parts)


def render(facts: Facts) -> str:
    """Returns the page of an evaluation.

    Args:
        facts: `EvaluationReport.to_dict()` with `calibration_bins`, `training`, `training_curve`,
            `data`, `config`, `versions`.
    """
    verdict, bundle = facts["gate"], facts.get("bundle", {})
    subtitle = (
        f"{facts['num_targets']:,} targets of {facts['num_requests']:,} later requests by {facts['num_users']:,} users, "
        f"served length {facts['served_length']:,}, model version {bundle.get('version', 'unknown')}"
    )
    plots = Html(f'<div class="grid">{_length_section(facts)}{_calibration_section(facts)}</div>')
    lower = Html(
        f'<div class="grid">{_training_section(facts)}<div>{_data_section(facts)}{_made_section(facts)}</div></div>'
    )
    upper = _gate_section(verdict) + _headline_section(facts) + _serving_section(facts)
    body = Html(upper + plots + _lengths_table(facts) + _slices_section(facts) + lower)
    words = "gate passed" if verdict["passed"] else "gate refused"
    return page.page(
        f"Evaluation of {facts.get('name', 'the ranker')}",
        subtitle,
        body,
        (verdict["passed"], words),
    )


def card(facts: Facts) -> str:
    """Returns the card of a model as Markdown: what it is, on what it was measured, what it
    reached, where it is weak, how it was made.

    Args:
        facts: as for `render`.
    """
    bundle, training, verdict, data = (
        facts["bundle"],
        facts["training"],
        facts["gate"],
        facts["data"],
    )
    version, words = bundle["version"], "passed" if verdict["passed"] else "refused"
    rows = [
        f"| {task} | {_span_of(row, 'auc')} | {_span_of(row, 'gauc')} | {interval(row['logloss'], None, None)} | "
        f"{interval(row['ne'], None, None)} | {interval(row['calibration'], None, None, 3)} | {interval(row['ece'], None, None, 3)} | "
        f"{interval(facts['popularity'][task]['auc'], None, None)} |"
        for task, row in facts["metrics"].items()
    ]
    model = ", ".join(f"{name} {value}" for name, value in bundle["model"].items())
    made = ", ".join(f"{name} {training[name]}" for name in TRAINING if name in training)
    extra = facts["extrapolation"]
    longer = (
        [
            f"- Served at {facts['served_length']:,} instead of the trained mean of {extra['trained_length']:,} events: AUC "
            f"{interval(extra['value'], extra['low'], extra['high'])} more, {extra['cost']:.2f} times the events."
        ]
        if extra
        else []
    )
    return "\n".join(
        [
            f"# Ranker {version}",
            "",
            f"Trained on {facts['name']} (data {facts.get('data_version') or 'unknown'}, schema {bundle['schema_fingerprint']}), served at "
            f"{facts['served_length']:,} events; the gate {words} it.",
            "",
            "## Measured",
            f"{facts['num_targets']:,} targets of {facts['num_requests']:,} requests by {facts['num_users']:,} users, from "
            f"{data['evaluated from']} to {data['last request']}; 95 % intervals resample users.",
            "",
            "| task | AUC | GAUC | log loss | NE | calibration | ECE | popularity AUC |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *longer,
            f"- One request of the longest histories: {facts['latency_ms']['p50']:.1f} ms, p95 "
            f"{facts['latency_ms']['p95']:.1f} ms where it was evaluated.",
            "",
            "## Gate",
            *(f"- {reason}" for reason in verdict["reasons"]),
            "",
            "## Limits",
            *_limits(facts),
            "",
            "## Made",
            f"- Model: {model}.",
            f"- Training: {made}.",
            f"- Command: `{facts.get('command') or 'not recorded'}`",
            f"- Seed {facts['config']['seed']}; "
            + ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
            + ".",
            "",
        ]
    )


def _span_of(row: Facts, metric: str) -> str:
    return interval(row[metric], row.get(f"{metric}_low"), row.get(f"{metric}_high"))


def _limits(facts: Facts) -> list[str]:
    """What the measurement itself says against the model."""
    served = next(row for row in facts["lengths"] if row["length"] == facts["served_length"])
    longest = facts["longest_history"]
    lines = [f"- The longest history measured has {longest:,} events; nothing is known beyond it."]
    shorter = [
        row
        for row in facts["lengths"]
        if row["auc"] is not None and row["length"] < facts["served_length"]
    ]
    if (
        served["auc"] is not None
        and shorter
        and (best := max(shorter, key=lambda row: row["auc"]))["auc"] > served["auc"]
    ):
        lines.append(
            f"- Served at {best['length']:,} events the AUC is {best['auc']:.4f}, higher than at {facts['served_length']:,}."
        )
    for row in facts["slices"]:
        if (
            row["auc"] is not None
            and row["popularity_auc"] is not None
            and row["auc"] < row["popularity_auc"]
        ):
            lines.append(
                f"- Popularity is better where {row['family']} {row['name']} ({row['num_targets']:,} targets): "
                f"{row['popularity_auc']:.4f} against {row['auc']:.4f}."
            )
    undefined = [
        f"- {task}: {metric} is not defined: {reason}."
        for task, metrics in facts["metrics"].items()
        for metric, reason in metrics["undefined"].items()
    ]
    return [
        *lines,
        *undefined,
        "- Offline, on logged requests: what the served ranking itself would have changed is not in it.",
    ]


def interval(
    value: float | None,
    low: float | None,
    high: float | None,
    digits: int = 4,
) -> str:
    """Returns a value and its interval as text; a dash where it is not defined."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (
        f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None and high is not None else ""
    )


def nice_ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Returns about `num` round values that span [low, high]."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _gate_section(verdict: Facts) -> Html:
    rows = [
        [page.mark(entry["passed"], "held" if entry["passed"] else "broken"), entry["sentence"]]
        for entry in verdict["criteria"]
    ]
    return page.section(
        "Promotion gate",
        page.table(
            ["", "Criterion, at the served length"],
            rows,
            ["" if entry["passed"] else "bad" for entry in verdict["criteria"]],
        ),
    )


def _headline_section(facts: Facts) -> Html:
    headers = ["Task", "Rate", *(title for _, title in COLUMNS), "Popularity", "AUC gain"]
    rows = []
    for task, metrics in facts["metrics"].items():
        popularity, gain = facts["popularity"][task], facts["gain"][task]
        values = [
            _stacked(metrics[name], metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))
            for name, _ in COLUMNS
        ]
        rate = metrics["num_positives"] / metrics["num_targets"] if metrics["num_targets"] else None
        rows.append(
            [
                task,
                "–" if rate is None else f"{rate:.2%}",
                *values,
                Html(
                    f"{interval(popularity['auc'], None, None)}<br><span class=soft>{popularity['name']}</span>"
                ),
                _stacked(gain["value"], gain["low"], gain["high"], "+.4f"),
            ]
        )
    reasons = [
        f"{task}: {name}: {reason}"
        for task, metrics in facts["metrics"].items()
        for name, reason in metrics["undefined"].items()
    ]
    left_out = (
        Html(f"<ul>{''.join(f'<li>{html.escape(reason)}</li>' for reason in reasons)}</ul>")
        if reasons
        else Html("")
    )
    note = (
        "95 % intervals resample users. GAUC: AUC within users, weighted by their targets. NE: log loss over the entropy of the "
        "mean label (below 1 beats the mean). Calibration: mean score over mean label. Popularity: the better AUC of the items' "
        "earlier rates and event counts; gain: over it, paired."
    )
    return page.section(
        "Metrics at the served length", page.table(headers, rows), left_out, note=note
    )


def _stacked(
    value: float | None,
    low: float | None,
    high: float | None,
    form: str = ".4f",
) -> Html:
    """A value with its interval under it."""
    if value is None:
        return Html("–")
    join = " to " if form.startswith("+") else "–"
    under = (
        f'<br><span class="soft keep">{low:{form}}{join}{high:{form}}</span>'
        if low is not None and high is not None
        else ""
    )
    return Html(f"{value:{form}}{under}")


def _length_section(facts: Facts) -> Html:
    task = next(iter(facts["metrics"]))
    rows = [row for row in facts["lengths"] if row["auc"] is not None]
    if not rows:
        return page.section("History length", note="The AUC is not defined on this sample.")
    best_possible: list[Point] = [
        (row["length"], row["auc"]) for row in facts.get("best_possible", [])
    ]
    popularity = facts["popularity"][task]["auc"]
    points: list[Point] = [(row["length"], row["auc"]) for row in rows]
    banded = [row for row in rows if row["auc_low"] is not None]
    lows, highs = (
        [(row["length"], row["auc_low"]) for row in banded],
        [(row["length"], row["auc_high"]) for row in banded],
    )
    levels = [value for _, value in (*points, *lows, *highs, *best_possible)] + (
        [popularity] if popularity is not None else []
    )
    lengths = sorted({length for length, _ in (*points, *best_possible)})
    ticks = nice_ticks(min(levels), max(levels))
    unit = next(
        (length for length in lengths if length), 1
    )  # 0 events lie one doubling below the shortest length
    plot = Plot(
        Axis(
            lengths[0],
            lengths[-1],
            lengths,
            "events served, most recent (log scale)",
            lambda length: math.log(max(length, unit / 2)),
            short,
        ),
        Axis(ticks[0], ticks[-1], ticks, f"AUC of {task}"),
        "AUC by served history length",
    )
    texts = [
        f"{row['length']:,} events: AUC {interval(row['auc'], row['auc_low'], row['auc_high'])}"
        for row in rows
    ]
    level = [(lengths[0], popularity), (lengths[-1], popularity)] if popularity is not None else []
    drawing = plot.draw(
        plot.band(lows, highs),
        plot.line(level, "s3 dash"),
        plot.line(best_possible, "s2 dash"),
        plot.line(points, "s1"),
        plot.dots(
            best_possible,
            "f2",
            [f"{length:,.0f} events: best possible {auc:.4f}" for length, auc in best_possible],
            2.6,
        ),
        plot.dots(points, "f1", texts),
    )
    entries = [("s1", "ranker, 95 % interval")] + (
        [("s2 dash", "best possible (Bayes)")] if best_possible else []
    )
    entries += (
        [("s3 dash", f"popularity ({facts['popularity'][task]['name']})")]
        if popularity is not None
        else []
    )
    longest = facts["longest_history"]
    note = f"One model, the same requests at every length. The longest history of the sample has {longest:,} events."
    return page.section("History length", drawing, legend(entries), note=note)


def _calibration_section(facts: Facts) -> Html:
    bins: Mapping[str, Sequence[Facts]] = facts["calibration_bins"]
    shown = {task: rows for task, rows in list(bins.items())[: len(SERIES)] if rows}
    if not shown:
        return page.section("Calibration", note="There are no scores to show.")
    top = max(max(row["score"], row["rate"]) for rows in shown.values() for row in rows)
    ticks = nice_ticks(0, min(1.0, top * 1.05) or 1)
    plot = Plot(
        Axis(0, ticks[-1], ticks, "mean score"),
        Axis(0, ticks[-1], ticks, "share of positives"),
        "Calibration",
    )
    shapes = [plot.line([(0, 0), (ticks[-1], ticks[-1])], "axis dash")]
    for style, (task, rows) in zip(SERIES, shown.items(), strict=False):
        points = [(row["score"], row["rate"]) for row in rows]
        texts = [
            f"{task}: score {row['score']:.4f}, rate {row['rate']:.4f}, {row['num_targets']:,} targets"
            for row in rows
        ]
        shapes += [plot.line(points, style), plot.dots(points, style.replace("s", "f"), texts, 3)]
    note = "Bins of equal numbers of targets by rising score; on the diagonal, scores are probabilities."
    return page.section(
        "Calibration", plot.draw(*shapes), legend(list(zip(SERIES, shown, strict=False))), note=note
    )


def _lengths_table(facts: Facts) -> Html:
    headers = ["Served length", "Mean events", "AUC", "Log loss", "Seconds", "Best possible AUC"]
    best = {row["length"]: row["auc"] for row in facts.get("best_possible", [])}
    rows = [
        [
            row["length"],
            round(row["mean_events"], 1),
            interval(row["auc"], row["auc_low"], row["auc_high"]),
            interval(row["logloss"], None, None),
            f"{row['seconds']:.2f}" if row["same_as"] is None else f"as {row['same_as']:,}",
            f"{best[row['length']]:.4f}" if row["length"] in best else "–",
        ]
        for row in facts["lengths"]
    ]
    if not best:
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    note = "A length that cuts no history shorter than the one before has the same scores and is not computed again."
    return page.section("Served lengths", page.table(headers, rows), note=note)


def _slices_section(facts: Facts) -> Html:
    task = next(iter(facts["metrics"]))
    compared = any("difference" in row for row in facts["slices"])
    rows = [
        [
            row["family"],
            row["name"],
            row["num_requests"],
            row["num_targets"],
            "–" if row["rate"] is None else f"{row['rate']:.2%}",
            _stacked(row["auc"], row["auc_low"], row["auc_high"]),
            interval(row["popularity_auc"], None, None),
            interval(row["calibration"], None, None, 3),
            interval(row["ece"], None, None, 3),
            *(
                [
                    _stacked(
                        row.get("difference"),
                        row.get("difference_low"),
                        row.get("difference_high"),
                        "+.4f",
                    )
                ]
                if compared
                else []
            ),
            row["reason"],
        ]
        for row in facts["slices"]
    ]
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
        *(["AUC minus champion"] if compared else []),
        "",
    ]
    note = "At the served length. Item age: since its first event in the histories. Activity: events of the user in the 28 days before."
    return page.section("Slices", page.table(headers, rows), note=note)


def _serving_section(facts: Facts) -> Html:
    extra, champion, latency = facts["extrapolation"], facts["champion"], facts["latency_ms"]
    tiles = {
        "one request, p50 ms": f"{latency['p50']:.1f}",
        "p95 ms": f"{latency['p95']:.1f}",
        "targets of unknown items": f"{facts['unknown_item_share']:.2%}",
    }
    if extra:
        gain = interval(extra["value"], extra["low"], extra["high"])
        tiles[
            f"AUC at {facts['served_length']:,} minus at the trained mean of {extra['trained_length']:,}"
        ] = gain
        tiles["events served over that"] = f"{extra['cost']:.2f} times"
    for task, row in champion.get("differences", {}).items():
        name = f"{champion['metric'].upper()} of {task} minus champion {champion['version']}"
        tiles[name] = interval(row["value"], row["low"], row["high"])
    return page.section("Served", page.facts(tiles))


def _training_section(facts: Facts) -> Html:
    curve: Sequence[Facts] = facts.get("training_curve", [])
    training = facts.get("training", {})
    trained = {text: training[name] for name, text in TRAINING.items() if name in training}
    below = page.facts(trained) if trained else Html("")
    if len(curve) < 2:
        return page.section("Training", below, note="There is no training curve.")
    rows = _thinned([(row["step"], row["loss"]) for row in curve])
    levels, steps = (
        nice_ticks(min(y for _, y in rows), max(y for _, y in rows)),
        nice_ticks(0, rows[-1][0]),
    )
    plot = Plot(
        Axis(0, steps[-1], steps, "optimizer step", text=short),
        Axis(levels[0], levels[-1], levels, "training loss"),
        "Training loss by step",
    )
    drawing = plot.draw(
        plot.line(rows, "s1"),
        plot.dots(rows[-1:], "f1", [f"step {rows[-1][0]:,.0f}: loss {rows[-1][1]:.4f}"]),
    )
    return page.section("Training", drawing, below)


def _data_section(facts: Facts) -> Html:
    return page.section("Data", page.facts(facts["data"]))


def _made_section(facts: Facts) -> Html:
    text = json.dumps(
        {"bundle": facts.get("bundle", {}), **facts["config"]}, indent=2, ensure_ascii=False
    )
    return page.section(
        "How it was made", page.facts(facts["versions"]), page.details("Configuration (JSON)", text)
    )


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Returns the legend of a plot: (style, text) each."""
    shown = "".join(
        f'<span><i class="{style}"></i>{html.escape(text)}</span>' for style, text in entries
    )
    return Html(f'<div class="legend">{shown}</div>')


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_CURVE_POINTS points: means of neighbours."""
    size = -(-len(points) // MAX_CURVE_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def short(value: float) -> str:
    """Returns the text of a tick: thousands as K from 10K on."""
    return f"{value / 1000:g}K" if value >= 10_000 and not value % 100 else f"{value:,g}"
