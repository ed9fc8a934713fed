"""A history for people: JSON rows, a text table, and a self-contained SVG plot."""

from __future__ import annotations

import datetime
import html
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import files, history
from longrec.data.columns import Int64
from longrec.errors import DataError
from longrec.schema import TIMESTAMP
from longrec.times import EPOCH, MILLISECOND, datetime_to_ms

WIDTH = 960
LEFT_MARGIN = 150
RIGHT_MARGIN = 30
TOP_MARGIN = 56
BOTTOM_MARGIN = 40
LANE_HEIGHT = 46
MIN_BAR_HEIGHT = 2
MAX_BAR_HEIGHT = 34
NUM_TIME_BINS = 200
MAX_LANES = 12
MAX_LABEL_LENGTH = 16
COLORS = (
    "#3366aa",
    "#cc6633",
    "#33996b",
    "#996699",
    "#b8942b",
    "#5b6b7a",
)
OTHERS = "all others"
"""Name of the lane that the rarest kinds share."""
SUFFIXES = (".svg", ".html")


def parse_time_ms(text: str) -> int:
    """Return a time as ms since 1970 UTC.

    Args:
        text: ISO 8601 (UTC if it names no zone), or the number itself.

    Raises:
        DataError: it is neither.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            "the time cannot be read",
            found=repr(text),
            expected="ISO 8601 such as 2022-05-01T12:00:00, or ms",
        ) from error
    return datetime_to_ms(time)


def format_time(time_ms: int) -> str:
    """Return a time as ISO 8601, UTC; the number itself if the year is beyond 9999."""
    try:
        time = EPOCH + time_ms * MILLISECOND
    except OverflowError:
        return str(time_ms)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_rows(events: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return events as JSON values, oldest first, with a readable `time`; NaN becomes null."""
    rows = []
    for event in events.to_pylist():
        row = {"time": format_time(event[TIMESTAMP])}
        for name, value in event.items():
            row[name] = _json_value(value)
        rows.append(row)
    return rows


def text_table(events: pa.RecordBatch, num_rows: int) -> list[str]:
    """Return the lines of a table of the most recent events, oldest first."""
    rows = json_rows(history.most_recent(events, num_rows))
    if not rows:
        return ["no events"]
    names = [name for name in rows[0] if name != TIMESTAMP]
    cells = [names]
    for row in rows:
        values = [row[name] for name in names]
        cells.append([_cell_text(value) for value in values])
    columns = zip(*cells, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for line in cells:
        padded = map(str.ljust, line, widths)
        lines.append("  ".join(padded).rstrip())
    num_older = events.num_rows - len(rows)
    if num_older:
        lines.insert(1, f"... {num_older} older events")
    return lines


def check_plot_path(path: Path) -> None:
    """Check that a plot can be written to a path.

    Raises:
        DataError: the file has another suffix than .svg and .html, or its folder is missing.
        OSError: the folder cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path} is of no known kind",
            found=path.suffix or "no suffix",
            expected=", ".join(SUFFIXES),
        )
    files.check_output_file(path)


def write_plot(
    events: pa.RecordBatch,
    path: Path,
    title: str,
) -> None:
    """Write the plot of a timeline to an .svg or .html file.

    Raises:
        DataError, OSError: as for `check_plot_path`.
    """
    check_plot_path(path)
    text = render_svg(events, title)
    if path.suffix == ".html":
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>{html.escape(title)}</title><body>{text}</body></html>\n"
        )
    with files.atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_svg(events: pa.RecordBatch, title: str) -> str:
    """Return a plot with time to the right, one lane per kind of event, and bars of counts.

    The kind is the first text feature of the events, if there is one. The rarest kinds share a
    lane.
    """
    lane_of_event, names = _lanes(events)
    num_lanes = max(len(names), 1)
    height = TOP_MARGIN + LANE_HEIGHT * num_lanes + BOTTOM_MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{html.escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(
            LEFT_MARGIN,
            24,
            f"{title}: {events.num_rows} events",
            size=15,
        ),
    ]
    if events.num_rows:
        parts += _plot_area(history.timestamps(events), lane_of_event, names)
    else:
        parts.append(_text(LEFT_MARGIN, TOP_MARGIN + 20, "no events"))
    return "".join([*parts, "</svg>\n"])


def _plot_area(
    times: Int64,
    lane_of_event: Int64,
    names: list[str],
) -> list[str]:
    first = int(times[0])
    last = int(times[-1])
    span = max(last - first, 1)
    bins = (times - first) * (NUM_TIME_BINS - 1) // span
    counts = np.zeros((len(names), NUM_TIME_BINS), np.int64)
    np.add.at(counts, (lane_of_event, bins), 1)
    highest = int(counts.max())
    parts = []
    for lane, name in enumerate(names):
        parts.append(_lane(lane, name, counts[lane], highest))
    bottom = TOP_MARGIN + LANE_HEIGHT * len(names) + 20
    right = WIDTH - RIGHT_MARGIN
    parts.append(_text(LEFT_MARGIN, bottom, format_time(first)))
    parts.append(
        _text(
            right,
            bottom,
            format_time(last),
            anchor="end",
        )
    )
    return parts


def _lane(
    lane: int,
    name: str,
    counts: Int64,
    highest: int,
) -> str:
    base = TOP_MARGIN + LANE_HEIGHT * (lane + 1) - 6
    right = WIDTH - RIGHT_MARGIN
    step = (right - LEFT_MARGIN) / NUM_TIME_BINS
    width = max(step - 0.5, 1)
    bars = []
    for time_bin in np.flatnonzero(counts).tolist():
        x = LEFT_MARGIN + time_bin * step
        share = int(counts[time_bin]) / highest
        height = max(MIN_BAR_HEIGHT, MAX_BAR_HEIGHT * share)
        bars.append(
            f'<rect x="{x:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        )
    total = int(counts.sum())
    label = name
    if len(name) > MAX_LABEL_LENGTH:
        label = f"{name[: MAX_LABEL_LENGTH - 1]}…"
    color = COLORS[lane % len(COLORS)]
    parts = [
        f'<line x1="{LEFT_MARGIN}" x2="{right}" y1="{base}" y2="{base}" stroke="#bbb"/>',
        f'<g fill="{color}"><title>{html.escape(name)}: {total} events</title>',
        *bars,
        "</g>",
        _text(
            LEFT_MARGIN - 10,
            base - 4,
            f"{label} {total}",
            anchor="end",
        ),
    ]
    return "".join(parts)


def _lanes(events: pa.RecordBatch) -> tuple[Int64, list[str]]:
    """Return the lane of each event, and the names of the lanes, the most frequent kind first."""
    text_name = _first_text_column(events)
    if text_name is None:
        names = ["events"] if events.num_rows else []
        return np.zeros(events.num_rows, np.int64), names
    texts = events.column(text_name).to_pylist()
    values = ["missing" if text is None else text for text in texts]
    kinds, kind_of_event, counts = np.unique(
        np.array(values, dtype=str),
        return_inverse=True,
        return_counts=True,
    )
    order = np.lexsort((kinds, -counts))
    lane_of_kind = np.empty(len(kinds), np.int64)
    ranks = np.arange(len(kinds))
    lane_of_kind[order] = np.minimum(ranks, MAX_LANES - 1)
    names = kinds[order].tolist()
    if len(names) > MAX_LANES:
        names = [*names[: MAX_LANES - 1], OTHERS]
    return lane_of_kind[kind_of_event], names


def _first_text_column(events: pa.RecordBatch) -> str | None:
    for field in events.schema:
        if pa.types.is_dictionary(field.type):
            return str(field.name)
    return None


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="#222">'
        f"{html.escape(text)}</text>"
    )
