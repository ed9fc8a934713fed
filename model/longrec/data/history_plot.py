"""A history for people: JSON rows, a text table, and a plot."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import files, history
from longrec.data.columns import Int64
from longrec.errors import DataError
from longrec.reporting import page
from longrec.reporting.charts import Labels, lane_chart
from longrec.schema import TIMESTAMP
from longrec.times import EPOCH, MILLISECOND, datetime_to_ms

NUM_TIME_BINS = 200
MAX_LANES = 12
MAX_LABEL_LENGTH = 24
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
    plot = render_svg(events, title)
    if not plot:
        raise DataError("a plot needs matplotlib", fix='Run: pip install "longrec[report]"')
    text = plot
    if path.suffix == ".html":
        text = page.render(
            "history.html.jinja",
            title=title,
            subtitle=f"{events.num_rows:,} events",
            date=page.current_minute(),
            plot=plot,
        )
    with files.atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_svg(events: pa.RecordBatch, title: str) -> str:
    """Return a plot with time to the right, one lane per kind of event, and bars of counts.

    The kind is the first text feature of the events, if there is one. The rarest kinds share a
    lane. The plot is empty without matplotlib.
    """
    lane_of_event, names = _lanes(events)
    counts = np.zeros((len(names), NUM_TIME_BINS), np.int64)
    if not events.num_rows:
        return lane_chart(names, counts, Labels(f"{title}: no events", "time (UTC)", ""), ("", ""))
    times = history.timestamps(events)
    first = int(times[0])
    last = int(times[-1])
    bins = (times - first) * (NUM_TIME_BINS - 1) // max(last - first, 1)
    np.add.at(counts, (lane_of_event, bins), 1)
    labels = Labels(f"{title}: {events.num_rows:,} events", "time (UTC)", "")
    shown = [_shorten(name) for name in names]
    return lane_chart(shown, counts, labels, (format_time(first), format_time(last)))


def _shorten(name: str) -> str:
    """Return a name of at most MAX_LABEL_LENGTH letters."""
    if len(name) <= MAX_LABEL_LENGTH:
        return name
    return f"{name[: MAX_LABEL_LENGTH - 1]}…"


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
