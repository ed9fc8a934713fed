"""A history for people: as rows, as a text table, and as a picture that needs nothing from the
network.
"""

from __future__ import annotations

import datetime
import html
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import files, history
from longrec.errors import DataError
from longrec.schema import TIMESTAMP

WIDTH, LEFT, RIGHT, LANE, TOP, BINS = 960, 150, 30, 46, 56, 200
MAX_LANES = 12
COLORS = ("#3366aa", "#cc6633", "#33996b", "#996699", "#b8942b", "#5b6b7a")
OTHERS = "all others"


def request_time_ms(text: str) -> int:
    """Returns a moment as ms since 1970 UTC: ISO 8601 (UTC where it names no zone), or the number
    itself.

    Raises:
        DataError: it is neither.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        request_time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            "the moment cannot be read",
            found=repr(text),
            expected="ISO 8601 such as 2022-05-01T12:00:00, or ms",
        ) from error
    request_time = (
        request_time if request_time.tzinfo else request_time.replace(tzinfo=datetime.UTC)
    )
    since = request_time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(milliseconds=1)


def words(time_ms: int) -> str:
    """Returns a moment as ISO 8601, UTC, with milliseconds; the number itself where no calendar
    reaches it.
    """
    try:
        request_time = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
            milliseconds=time_ms
        )
    except OverflowError:
        return str(time_ms)
    return request_time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rows(events: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the events as JSON values, oldest first; NaN as null, the time also in words."""
    return [
        {
            "time": words(row[TIMESTAMP]),
            **{
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            },
        }
        for row in events.to_pylist()
    ]


def table(events: pa.RecordBatch, last: int) -> list[str]:
    """Returns the lines of a table of the most recent events, oldest first."""
    shown = rows(history.most_recent(events, last))
    if not shown:
        return ["no events"]
    names = ["time", *(name for name in events.schema.names if name != TIMESTAMP)]
    trials = [
        names,
        *(["" if row[name] is None else str(row[name]) for name in names] for row in shown),
    ]
    widths = [max(len(line[place]) for line in trials) for place in range(len(names))]
    lines = [
        "  ".join(trial.ljust(width) for trial, width in zip(line, widths, strict=True)).rstrip()
        for line in trials
    ]
    skipped = events.num_rows - len(shown)
    return [lines[0], *([f"... {skipped} older events"] if skipped else []), *lines[1:]]


def draw(events: pa.RecordBatch, path: Path, title: str) -> None:
    """Writes the picture of a timeline to an .svg or .html file.

    Raises:
        DataError: the file has another suffix.
    """
    if path.suffix not in (".svg", ".html"):
        raise DataError(
            f"{path} is of no known kind", found=path.suffix or "no suffix", expected=".svg, .html"
        )
    picture = svg(events, title)
    if path.suffix == ".html":
        picture = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><body>{picture}</body></html>\n'
    with files.replacing(path) as temporary:
        temporary.write_text(picture, encoding="utf-8")


def svg(events: pa.RecordBatch, title: str) -> str:
    """Returns a picture: time to the right, one lane per kind of event, in each lane bars as high
    as the events of a time bin.

    The kind is the first text feature of the events, where there is one; the rarest kinds share a
    lane.
    """
    kinds, names = _kinds(events)
    height = TOP + LANE * max(len(names), 1) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{html.escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>',
        _text(LEFT, 24, f"{title}: {events.num_rows} events", size=15),
    ]
    if not events.num_rows:
        return "".join([*parts, _text(LEFT, TOP + 20, "no events"), "</svg>\n"])
    times = history.timestamps(events)
    first, span = int(times[0]), max(int(times[-1] - times[0]), 1)
    bins = ((times - first) * (BINS - 1) // span).astype(np.int64)
    counts = np.zeros((len(names), BINS), np.int64)
    np.add.at(counts, (kinds, bins), 1)
    parts += [
        _lane(number, name, counts[number], int(counts.max())) for number, name in enumerate(names)
    ]
    bottom = TOP + LANE * len(names)
    parts += [
        _text(LEFT, bottom + 20, words(first)),
        _text(WIDTH - RIGHT, bottom + 20, words(int(times[-1])), anchor="end"),
    ]
    return "".join([*parts, "</svg>\n"])


def _lane(
    number: int,
    name: str,
    counts: np.ndarray,
    highest: int,
) -> str:
    base, step = TOP + LANE * (number + 1) - 6, (WIDTH - LEFT - RIGHT) / BINS
    color = COLORS[number % len(COLORS)]
    bars = []
    for place in np.flatnonzero(counts).tolist():
        tall = max(2.0, (LANE - 12) * int(counts[place]) / highest)
        bars.append(
            f'<rect x="{LEFT + place * step:.1f}" y="{base - tall:.1f}" width="{max(step - 0.5, 1):.1f}" height="{tall:.1f}"/>'
        )
    label = name if len(name) <= 16 else f"{name[:15]}…"
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="#bbb"/>'
    group = f'<g fill="{color}"><title>{html.escape(name)}: {int(counts.sum())} events</title>{"".join(bars)}</g>'
    return line + group + _text(LEFT - 10, base - 4, f"{label} {int(counts.sum())}", anchor="end")


def _kinds(events: pa.RecordBatch) -> tuple[np.ndarray, list[str]]:
    """Returns the lane of each event, and the names of the lanes, the most frequent first."""
    texts = [field.name for field in events.schema if pa.types.is_dictionary(field.type)]
    if not texts:
        return np.zeros(events.num_rows, np.int64), ["events"] if events.num_rows else []
    values = [
        "missing" if value is None else str(value) for value in events.column(texts[0]).to_pylist()
    ]
    found, kinds, counts = np.unique(
        np.array(values, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    order = np.lexsort((found, -counts))
    lanes = np.empty(len(found), np.int64)
    lanes[order] = np.minimum(np.arange(len(found)), MAX_LANES - 1)
    names = [str(found[place]) for place in order]
    return lanes[kinds], names if len(names) <= MAX_LANES else [*names[: MAX_LANES - 1], OTHERS]


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="#222">{html.escape(text)}</text>'
