"""Draw charts with matplotlib, as SVG files.

`page.inline` puts such a chart into a page. There its colors follow those of the page.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point: TypeAlias = tuple[float, float]
Interval: TypeAlias = tuple[str, float, float, float]
"""Name, value, low end and high end."""

BLUE = "#2158c7"
ORANGE = "#b4540a"
GREEN = "#12803c"
RED = "#b3175f"
SOFT = "#5b6675"
LINE = "#d9dee5"
COLORS = (BLUE, ORANGE, GREEN, "#8a2be2", RED, "#0a8a8a", "#8a6d00")
"""Colors of the series of a chart."""
MAX_TICKS = 10
MAX_TICK = 100_000
"""Largest value with a label of its own on a logarithmic axis, beside MAX_TICKS."""
MIN_TICK_DISTANCE = 0.08
"""Share of a logarithmic axis between two labels; closer ones are left out."""
WIDTH_INCHES = 5.6
HEIGHT_INCHES = 3.3
ROW_INCHES = 0.27
LANE_BAR = 0.75
MIN_BAR = 0.05
"""Heights of the highest and the lowest bar of a lane, as shares of the lane."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longrec",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""Equal charts are equal files."""
TOOLTIP = "tooltip: "
"""Begins the id of a dot with a text; the text becomes its title, which browsers show."""


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """The texts of a chart.

    Args:
        title: for screen readers.
        x, y: of the axes, with units.
    """

    title: str
    x: str
    y: str


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Args:
        points: in the order of the line.
        color: one of COLORS.
        name: text of the legend; empty for none.
        texts: one per point, which then has a dot that shows it; empty for a line without dots.
        band: (x, low, high) of the interval around the line; empty for none.
        style: of the line, in the notation of matplotlib.
    """

    points: Sequence[Point]
    color: str = BLUE
    name: str = ""
    texts: Sequence[str] = ()
    band: Sequence[tuple[float, float, float]] = ()
    style: str = "-"


def line_chart(
    series: Sequence[Series],
    labels: Labels,
    *,
    is_log: bool = False,
    marked: tuple[float, str] | None = None,
) -> str:
    """Return the SVG of lines over one horizontal axis.

    Args:
        series: at least one with points.
        labels: texts of the chart.
        is_log: whether the horizontal axis is logarithmic; 0 then lies one doubling below the
            smallest other value.
        marked: place on the horizontal axis with a vertical line, and its text.
    """
    xs = sorted({x for line in series for x, _ in line.points})
    least = next((x for x in xs if x > 0), 1.0) / 2 if is_log else -math.inf

    def draw(axes: Axes) -> None:
        for line in series:
            _draw_series(axes, line, least)
        if marked:
            axes.axvline(max(marked[0], least), color=SOFT, linestyle=":", label=marked[1])
        if is_log:
            _log_axis(axes, xs, least)
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,g}")
        axes.ticklabel_format(axis="y", useOffset=False)
        if marked or any(line.name for line in series):
            axes.figure.legend(loc="outside lower left", ncols=2)

    return _svg(labels, HEIGHT_INCHES, draw)


def interval_chart(intervals: Sequence[Interval], labels: Labels) -> str:
    """Return the SVG of a row per interval, green above zero and red below.

    Args:
        intervals: from top to bottom.
        labels: texts of the chart.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=SOFT, linestyle="--")
        for row, (name, value, low, high) in enumerate(intervals):
            color = _sign_color(low, high)
            text = f"{name}: {value:+.4f} ({low:+.4f} to {high:+.4f})"
            axes.plot([low, high], [row, row], color=color)
            axes.plot([value], [row], "o", color=color, gid=TOOLTIP + text)
        axes.set_yticks(range(len(intervals)), [name for name, *_ in intervals])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)

    return _svg(labels, 0.7 + ROW_INCHES * len(intervals), draw)


def lane_chart(
    lanes: Sequence[tuple[str, Sequence[int]]], labels: Labels, ends: tuple[str, str]
) -> str:
    """Return the SVG of lanes of bars over one axis, which all have one scale.

    Args:
        lanes: name and counts of each lane, from top to bottom.
        labels: texts of the chart; its title is drawn.
        ends: texts of the first and the last bin.
    """

    def draw(axes: Axes) -> None:
        names = []
        highest = max((max(counts) for _, counts in lanes), default=1)
        for row, (name, counts) in enumerate(lanes):
            bins = [place for place, count in enumerate(counts) if count]
            tops = [MIN_BAR - row + LANE_BAR * counts[place] / highest for place in bins]
            text = f"{name}: {sum(counts)} events"
            color = COLORS[row % len(COLORS)]
            axes.vlines(bins, -row, tops, color=color, clip_on=False, gid=TOOLTIP + text)
            names.append(f"{name} {sum(counts):,}")
        axes.set_title(labels.title)
        axes.set_yticks(range(0, -len(lanes), -1), names)
        axes.set_xticks([0, max(len(lanes[0][1]) - 1, 1)] if lanes else [], ends if lanes else [])
        axes.tick_params(length=0)

    return _svg(labels, 0.9 + 1.5 * ROW_INCHES * len(lanes), draw)


def _sign_color(low: float, high: float) -> str:
    if low > 0:
        return GREEN
    return RED if high < 0 else SOFT


def _draw_series(axes: Axes, line: Series, least: float) -> None:
    if line.band:
        xs, lows, highs = zip(*line.band, strict=True)
        shown_xs = [max(x, least) for x in xs]
        axes.fill_between(shown_xs, lows, highs, color=line.color, alpha=0.16, linewidth=0)
    points = [(max(x, least), y) for x, y in line.points]
    xs, ys = zip(*points, strict=True)
    label = line.name or None
    axes.plot(xs, ys, line.style, color=line.color, label=label, clip_on=False)
    for (x, y), text in zip(points, line.texts, strict=False):
        axes.plot([x], [y], "o", color=line.color, clip_on=False, gid=TOOLTIP + text)


def _log_axis(axes: Axes, values: Sequence[float], least: float) -> None:
    """Make the horizontal axis logarithmic, with the values as labels if they are few."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > MAX_TICKS or max(values) >= MAX_TICK:
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=MAX_TICKS))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        return
    span = math.log(max(values[-1], least) / max(values[0], least)) or 1.0
    ticks: list[float] = []
    for value in values:
        last = max(ticks[-1], least) if ticks else 0.0
        if not last or math.log(value / last) > MIN_TICK_DISTANCE * span:
            ticks.append(value)
    axes.set_xticks([max(tick, least) for tick in ticks], [f"{tick:,g}" for tick in ticks])


def _svg(labels: Labels, height: float, draw: Callable[[Axes], Any]) -> str:
    """Return the SVG of what a function draws on axes; empty without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=labels.x, ylabel=labels.y)
        draw(axes)
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
    _, start, drawing = stream.getvalue().partition("<svg ")
    titled = re.sub(rf"<g id=([\"']){TOOLTIP}(.*?)\1>", r"<g><title>\2</title>", drawing)
    return f'{start}role="img" aria-label="{html.escape(labels.title)}" {titled}'
