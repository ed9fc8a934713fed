"""Draw charts with matplotlib, as SVG files.

`page.inline` puts such a chart into a page. There its colors follow those of the page.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

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
    "text.parse_math": False,
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
TOOLTIP_ID = re.compile(rf"<g id=([\"']){TOOLTIP}(.*?)\1>")
INTERVAL_TEXT = "{}: {:+.4f} ({:+.4f} to {:+.4f})"


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
        series: at least one, each with points.
        labels: texts of the chart.
        is_log: whether the horizontal axis is logarithmic; 0 then lies one doubling below the
            smallest other value.
        marked: place on the horizontal axis with a vertical line, and its text.
    """
    xs = np.unique([x for line in series for x, _ in line.points])
    least = _least(xs) if is_log else -np.inf

    def draw(axes: Axes) -> None:
        for line in series:
            _draw_series(axes, line, least)
        if marked:
            place, text = marked
            axes.axvline(max(place, least), color=SOFT, linestyle=":", label=text)
        if is_log:
            _log_axis(axes, xs, least)
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,g}")
        axes.ticklabel_format(axis="y", useOffset=False)
        if axes.get_legend_handles_labels()[0]:
            axes.figure.legend(loc="outside lower left", ncols=2)

    return _svg(labels, HEIGHT_INCHES, draw)


def _least(values: npt.NDArray[Any]) -> float:
    """Return where 0 lies on a logarithmic axis."""
    positive = values[values > 0]
    return float(positive[0]) / 2 if len(positive) else 0.5


def interval_chart(intervals: Sequence[Interval], labels: Labels) -> str:
    """Return the SVG of a row per interval, green above zero and red below.

    Args:
        intervals: from top to bottom.
        labels: texts of the chart.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=SOFT, linestyle="--")
        names = []
        for row, interval in enumerate(intervals):
            name, value, low, high = interval
            names.append(name)
            color = _sign_color(low, high)
            text = TOOLTIP + INTERVAL_TEXT.format(*interval)
            axes.plot([low, high], [row, row], color=color)
            axes.plot([value], [row], "o", color=color, gid=text)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)

    return _svg(labels, 0.7 + ROW_INCHES * len(intervals), draw)


def _sign_color(low: float, high: float) -> str:
    if low > 0:
        return GREEN
    return RED if high < 0 else SOFT


def lane_chart(
    names: Sequence[str],
    counts: npt.NDArray[Any],
    labels: Labels,
    ends: tuple[str, str],
) -> str:
    """Return the SVG of lanes of bars over one axis, which all have one scale.

    Args:
        names: of the lanes, from top to bottom.
        counts: int [lanes, bins].
        labels: texts of the chart; its title is drawn.
        ends: texts of the first and the last bin.
    """
    totals = counts.sum(axis=1).tolist()
    heights = MIN_BAR + LANE_BAR * counts / counts.max(initial=1)

    def draw(axes: Axes) -> None:
        for row, name in enumerate(names):
            bins = np.flatnonzero(counts[row])
            tops = heights[row, bins] - row
            color = COLORS[row % len(COLORS)]
            text = f"{TOOLTIP}{name}: {totals[row]} events"
            axes.vlines(bins, -row, tops, color=color, clip_on=False, gid=text)
        lane_names = [f"{name} {total:,}" for name, total in zip(names, totals, strict=True)]
        axes.set_title(labels.title)
        axes.set_yticks(-np.arange(len(names)), lane_names)
        axes.set_xticks([0, counts.shape[1] - 1], ends)
        axes.tick_params(length=0)

    return _svg(labels, 0.9 + 1.5 * ROW_INCHES * len(names), draw)


def _draw_series(axes: Axes, line: Series, least: float) -> None:
    if line.band:
        xs, lows, highs = np.transpose(line.band)
        shown = np.maximum(xs, least)
        axes.fill_between(shown, lows, highs, color=line.color, alpha=0.16, linewidth=0)
    xs, ys = np.transpose(line.points)
    shown = np.maximum(xs, least)
    (drawn,) = axes.plot(shown, ys, line.style, color=line.color, clip_on=False)
    if line.name:
        # matplotlib leaves names out that begin with an underscore.
        drawn.set_label(line.name if line.name[0] != "_" else f" {line.name}")
    for x, y, text in zip(shown, ys, line.texts, strict=False):
        axes.plot([x], [y], "o", color=line.color, clip_on=False, gid=TOOLTIP + text)


def _log_axis(axes: Axes, values: npt.NDArray[Any], least: float) -> None:
    """Make the horizontal axis logarithmic, with the values as labels if they are few."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > MAX_TICKS or values[-1] >= MAX_TICK:
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=MAX_TICKS))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        return
    shown = np.maximum(values, least)
    places = np.log(shown / shown[0])
    is_far = np.diff(places, prepend=-np.inf) > MIN_TICK_DISTANCE * places[-1]
    texts = [f"{value:,g}" for value in values[is_far]]
    axes.set_xticks(shown[is_far], texts)


def _svg(labels: Labels, height: float, draw: Callable[[Axes], Any]) -> str:
    """Return the SVG of what a function draws on axes; empty without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The file holds the texts: a letter that this font lacks is drawn by the browser.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=labels.x, ylabel=labels.y)
        draw(axes)
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
    _, start, drawing = stream.getvalue().partition("<svg ")
    title = html.escape(labels.title)
    titled = TOOLTIP_ID.sub(r"<g><title>\2</title>", drawing)
    return f'{start}role="img" aria-label="{title}" {titled}'
