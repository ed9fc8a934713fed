"""Draw line charts as SVG for a self-contained page.

A chart is 560 by 320 drawing units. The margins hold the tick labels and the axis labels. Styles
are classes of `page.STYLE`: s1 to s8 stroke and f1 to f8 fill with the color of series 1 to 8.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from longrec.reporting.page import Html

Point: TypeAlias = tuple[float, float]

WIDTH = 560.0
HEIGHT = 320.0
LEFT = 66.0
RIGHT = 26.0
TOP = 14.0
BOTTOM = 44.0
LABEL_X = 13.0
"""Middle of the label of the vertical axis, from the left edge."""
MIN_TICK_DISTANCE = 34.0
"""Drawing units between two labels of the horizontal axis; closer ones are left out."""
ROUND_STEPS = (1, 2, 2.5, 5, 10)


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a chart.

    Args:
        low, high: ends, in the values of the data.
        ticks: values with a mark and a label.
        label: text under or beside the axis.
        scale: increasing function of values, for a logarithmic axis.
        tick_text: function that writes the label of a tick.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    scale: Callable[[float], float] = float
    tick_text: Callable[[float], str] = "{:g}".format

    def fraction(self, value: float) -> float:
        """Return the position of a value: 0 at the low end, 1 at the high end."""
        low = self.scale(self.low)
        high = self.scale(self.high)
        if high <= low:
            return 0.5
        return (self.scale(value) - low) / (high - low)


@dataclasses.dataclass(frozen=True, slots=True)
class LineChart:
    """A frame with two axes that turns series of points into SVG.

    Args:
        x: the horizontal axis.
        y: the vertical axis.
        title: text for screen readers.
    """

    x: Axis
    y: Axis
    title: str

    def coordinates(self, point: Point) -> tuple[float, float]:
        """Return the drawing coordinates of a point, from the upper left corner."""
        x_value, y_value = point
        width = WIDTH - LEFT - RIGHT
        height = HEIGHT - TOP - BOTTOM
        x = LEFT + self.x.fraction(x_value) * width
        y = HEIGHT - BOTTOM - self.y.fraction(y_value) * height
        return x, y

    def line(self, points: Sequence[Point], style: str) -> str:
        """Return a line through the points; empty for fewer than two."""
        if len(points) < 2:
            return ""
        return element(
            "polyline",
            class_=f"line {style}",
            points=self._coordinates_text(points),
        )

    def band(self, lows: Sequence[Point], highs: Sequence[Point]) -> str:
        """Return the area between two lines over the same x values."""
        if len(lows) < 2:
            return ""
        outline = [*lows, *reversed(highs)]
        return element(
            "polygon",
            class_="band",
            points=self._coordinates_text(outline),
        )

    def dots(
        self,
        points: Sequence[Point],
        style: str,
        texts: Sequence[str],
        radius: float = 3.6,
    ) -> str:
        """Return one dot per point; its text shows when the mouse rests on it."""
        shapes = []
        for point, text in zip(points, texts, strict=True):
            x, y = self.coordinates(point)
            title = element("title", html.escape(text))
            shapes.append(
                element(
                    "circle",
                    title,
                    class_=style,
                    cx=x,
                    cy=y,
                    r=radius,
                )
            )
        return "".join(shapes)

    def draw(self, *shapes: str) -> Html:
        """Return the SVG of the frame and of the shapes in it."""
        content = self._y_axis() + self._x_axis() + "".join(shapes)
        return Html(
            element(
                "svg",
                content,
                viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
                role="img",
                aria_label=html.escape(self.title, quote=True),
            )
        )

    def _coordinates_text(self, points: Sequence[Point]) -> str:
        pairs = [self.coordinates(point) for point in points]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)

    def _y_axis(self) -> str:
        parts = []
        right = WIDTH - RIGHT
        for tick in self.y.ticks:
            _, y = self.coordinates((self.x.low, tick))
            text = html.escape(self.y.tick_text(tick))
            line = element(
                "line",
                class_="axis",
                x1=LEFT,
                x2=right,
                y1=y,
                y2=y,
            )
            parts.append(line)
            parts.append(_text(text, LEFT - 8, y + 4, "end"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        label = html.escape(self.y.label)
        turned = f"rotate(-90 {LABEL_X:g} {middle:g})"
        parts.append(
            _text(
                label,
                LABEL_X,
                middle,
                "middle",
                transform=turned,
            )
        )
        return "".join(parts)

    def _x_axis(self) -> str:
        parts = []
        bottom = HEIGHT - BOTTOM
        last_x = -math.inf
        for tick in self.x.ticks:
            x, _ = self.coordinates((tick, self.y.low))
            if x - last_x < MIN_TICK_DISTANCE:
                continue
            last_x = x
            text = html.escape(self.x.tick_text(tick))
            line = element(
                "line",
                class_="axis",
                x1=x,
                x2=x,
                y1=bottom,
                y2=bottom + 5,
            )
            parts.append(line)
            parts.append(_text(text, x, bottom + 18, "middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        label = html.escape(self.x.label)
        parts.append(_text(label, middle, HEIGHT - 6, "middle"))
        return "".join(parts)


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """Return an SVG element.

    Args:
        tag: name of the element.
        content: SVG inside the element; its text is escaped already.
        attributes: values by name; `class_` is written `class`, `text_anchor` is `text-anchor`.
    """
    parts = [tag]
    for name, value in attributes.items():
        key = name.rstrip("_").replace("_", "-")
        shown = value if isinstance(value, str) else f"{round(value, 1):g}"
        parts.append(f'{key}="{shown}"')
    head = " ".join(parts)
    return f"<{head}>{content}</{tag}>" if content else f"<{head}/>"


def _text(
    content: str,
    x: float,
    y: float,
    anchor: str,
    **attributes: str | float,
) -> str:
    return element(
        "text",
        content,
        x=x,
        y=y,
        text_anchor=anchor,
        **attributes,
    )


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Return the legend of a chart.

    Args:
        entries: style and text of each series.
    """
    items = []
    for style, text in entries:
        items.append(f'<span><i class="{style}"></i>{html.escape(text)}</span>')
    return Html(f'<div class="legend">{"".join(items)}</div>')


def fill_style(style: str) -> str:
    """Return the style that fills with the color that a style strokes with, f1 for s1."""
    return style.replace("s", "f")


def log_axis(
    values: Sequence[float],
    label: str,
    ticks: Sequence[float] | None = None,
    tick_text: Callable[[float], str] | None = None,
) -> Axis:
    """Return a logarithmic axis over values.

    Zero has no logarithm: it is drawn one doubling below the smallest other value.

    Args:
        values: values of the data, at least one.
        label: text of the axis.
        ticks: values with a mark; None for all values.
        tick_text: function that writes the label of a tick; None for `short_number`.
    """
    ordered = sorted(set(values))
    smallest = next((value for value in ordered if value), 1.0)

    def scale(value: float) -> float:
        return math.log(max(value, smallest / 2))

    return Axis(
        ordered[0],
        ordered[-1],
        ordered if ticks is None else ticks,
        label,
        scale,
        tick_text or short_number,
    )


def nice_ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Return about `num` round values that span [low, high]."""
    if not high > low:
        low -= 0.5 * (abs(low) or 1)
        high += 0.5 * (abs(high) or 1)
    step = _round_step((high - low) / num)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _round_step(raw: float) -> float:
    """Return the smallest round step that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in ROUND_STEPS:
        if factor * power >= raw * 0.999:
            return factor * power
    return 10 * power


def short_number(value: float) -> str:
    """Return the text of a tick; from 10,000 on, thousands are written as K."""
    if value >= 10_000 and not value % 100:
        return f"{value / 1000:g}K"
    return f"{value:,g}"
