"""Render pages from the templates beside this module.

A page is one file without scripts, fonts or links to other hosts. Its content security policy
forbids them too.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
DASH = "–"
"""Text of a value that is not defined; also between the ends of an interval."""
NO_CHART = Markup('<p class="note">Charts need matplotlib: pip install "longrec[report]"</p>')


def render(template: str, **values: Any) -> str:
    """Return a page or a text.

    Args:
        template: name of the file; values are escaped if it is HTML.
        values: names that the template uses.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "percent": format_percent,
        "metric": format_metric,
        "listed": format_listed,
        "inline": inline,
        "dump": functools.partial(json.dumps, indent=2, ensure_ascii=False),
    }
    environment.globals |= {
        "cell": interval_cell,
        "interval": row_interval,
        "two_lines": two_lines,
    }
    return environment


def current_minute() -> str:
    """Return the time as a text, UTC."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def inline(svg: str) -> Markup:
    """Return a chart as a part of a page; a note if it could not be drawn."""
    if not svg:
        return NO_CHART
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg))  # noqa: S704, longrec.reporting.charts


def format_value(value: object) -> str:
    """Return a value as text for a reader.

    Thousands are separated, floats have up to five significant digits, None is a dash.
    """
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1e4 or value.is_integer():
        return f"{value:,.0f}"
    return f"{value:.5g}"


def format_percent(share: float | None, form: str = ".2f") -> str:
    """Return a share in percent; a dash if it is not defined."""
    return DASH if share is None else f"{100 * share:{form}} %"


def format_listed(values: Mapping[str, object]) -> str:
    """Return names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def format_metric(value: float | None, form: str = ".4f") -> str:
    """Return a value with four decimals; a dash if it is not defined."""
    return DASH if value is None else format(value, form)


def format_interval(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    form: str = ".4f",
) -> str:
    """Return a value and its interval on one line; a dash if the value is not defined."""
    text = format_metric(value, form)
    if low is None or high is None:
        return text
    return f"{text} ({low:{form}} to {high:{form}})"


def row_interval(row: Mapping[str, Any], name: str, form: str = ".4f") -> str:
    """Return a value of a row with the interval that the row holds, on one line."""
    return format_interval(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), form)


def interval_cell(row: Mapping[str, Any], name: str, form: str = ".4f") -> Markup:
    """Return a value of a row with its interval on the line below; a dash if it is not defined."""
    value, _, ends = row_interval(row, name, form).partition(" (")
    if not ends:
        return Markup.escape(value)
    ends = ends.rstrip(")")
    return two_lines(value, ends if form.startswith("+") else ends.replace(" to ", DASH))


def two_lines(first: str, second: str) -> Markup:
    """Return a text with a paler one on the line below."""
    return Markup('{}<br><span class="soft">{}</span>').format(first, second)
