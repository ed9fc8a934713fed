"""Build one self-contained HTML page without scripts, fonts or links to other hosts.

The page's content security policy forbids them too.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
DASH = "–"
"""Text of a value that is not defined; also between the ends of an interval."""


class Html(str):
    """Text that is HTML already: `escape` leaves it as it is, and escapes all other text."""

    __slots__ = ()


def document(
    title: str,
    subtitle: str,
    body: Html,
    verdict: tuple[bool, str] | None = None,
) -> str:
    """Return the whole page.

    Args:
        title: headline and document title.
        subtitle: one line under the headline.
        body: sections.
        verdict: whether the result is good, and the text of the badge beside the headline.
    """
    status = badge(*verdict) if verdict else ""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        "<header>",
        f"<h1>{html.escape(title)} {status}</h1>",
        f"<p>{html.escape(subtitle)}</p>",
        "</header>",
        body,
        "</main>",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)


def section(title: str, *parts: str, note: str = "") -> Html:
    """Return a section: a heading, a note under it, then the parts."""
    lines = [f"<h2>{html.escape(title)}</h2>"]
    if note:
        lines.append(f'<p class="note">{html.escape(note)}</p>')
    lines += [escape(part) for part in parts]
    return Html(f"<section>{''.join(lines)}</section>\n")


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    classes: Iterable[str] | None = None,
) -> Html:
    """Return a table; columns of numbers are right-aligned.

    Args:
        headers: titles of the columns.
        rows: one value per column each.
        classes: CSS class of each row; empty for none.
    """
    rows = list(rows)
    row_classes = [""] * len(rows) if classes is None else list(classes)
    columns = range(len(headers))
    numeric = [_is_numeric([row[column] for row in rows]) for column in columns]
    header_row = _row("th", headers, numeric)
    lines = []
    for row, row_class in zip(rows, row_classes, strict=True):
        cells = [format_value(value) for value in row]
        lines.append(_row("td", cells, numeric, row_class))
    body = f"<thead>{header_row}</thead><tbody>{''.join(lines)}</tbody>"
    return Html(f'<div class="scroll"><table>{body}</table></div>')


def tiles(values: Mapping[str, object]) -> Html:
    """Return names and values as a row of tiles."""
    parts = []
    for name, value in values.items():
        shown = escape(format_value(value))
        parts.append(f"<div><dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return Html(f'<dl class="tiles">{"".join(parts)}</dl>')


def details(summary: str, content: str) -> Html:
    """Return a folded block of preformatted text."""
    title = f"<summary>{html.escape(summary)}</summary>"
    return Html(f"<details>{title}<pre>{escape(content)}</pre></details>")


def standalone_svg(svg: Html) -> str:
    """Return a chart of a page as the content of an SVG file."""
    named = svg.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" ',
        1,
    )
    # The first ">" ends the <svg> tag: `element` escapes those in its attributes.
    return named.replace(">", f"><style>{STYLE}</style>", 1)


def badge(is_good: bool, text: str) -> Html:
    """Return a green or a red badge."""
    color = "good" if is_good else "bad"
    return Html(f'<span class="badge {color}">{html.escape(text)}</span>')


def escape(value: object) -> Html:
    """Return HTML as it is and everything else escaped."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value)))


def format_value(value: object) -> str | Html:
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


def format_interval(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    digits: int = 4,
) -> str:
    """Return a value and its interval on one line; a dash if the value is not defined."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    if low is None or high is None:
        return text
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def interval_cell(
    value: float | None,
    low: float | None,
    high: float | None,
    form: str = ".4f",
) -> Html:
    """Return a value with its interval on the line below; a dash if it is not defined.

    Args:
        value, low, high: the estimate and the ends of its interval.
        form: format specification; signed values are joined by "to", others by a dash.
    """
    if value is None:
        return Html(DASH)
    shown = format(value, form)
    if low is None or high is None:
        return Html(shown)
    join = " to " if form.startswith("+") else DASH
    ends = format(low, form) + join + format(high, form)
    return Html(f'{shown}<br><span class="soft nowrap">{ends}</span>')


def _row(
    tag: str,
    cells: Sequence[object],
    numeric: Sequence[bool],
    row_class: str = "",
) -> str:
    parts = []
    for cell, is_number in zip(cells, numeric, strict=True):
        align = " class=n" if is_number else ""
        parts.append(f"<{tag}{align}>{escape(cell)}</{tag}>")
    opening_tag = f'<tr class="{row_class}">' if row_class else "<tr>"
    return f"{opening_tag}{''.join(parts)}</tr>"


def _is_numeric(column: Sequence[object]) -> bool:
    """Return whether a column holds numbers and otherwise only empty cells."""
    others = [value for value in column if not _is_number(value)]
    has_number = len(others) < len(column)
    return has_number and all(value in ("", DASH, None) for value in others)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


STYLE = """
:root { color-scheme: light dark;
 --ink:#1c2430; --soft:#5b6675; --line:#d9dee5; --back:#f6f7f9; --card:#fff;
 --good:#12703c; --goodback:#dff3e6; --bad:#a61b1b; --badback:#fbe3e3;
 --warn:#7a5200; --warnback:#fdf0d3; --band:#2158c7;
 --series1:#2158c7; --series2:#b4540a; --series3:#5b6675; --series4:#12803c;
 --series5:#8a2be2; --series6:#b3175f; --series7:#0a8a8a; --series8:#8a6d00; }
@media (prefers-color-scheme: dark) { :root {
 --ink:#e6e9ee; --soft:#9aa5b4; --line:#333c49; --back:#12161c; --card:#1a2029;
 --good:#7ddba2; --goodback:#15382480; --bad:#ff9c9c; --badback:#4a1c1c80;
 --warn:#f0c36a; --warnback:#40300c80; --band:#7aa8ff;
 --series1:#7aa8ff; --series2:#f0a35e; --series3:#9aa5b4; --series4:#6fd39a;
 --series5:#c39bff; --series6:#ff8fc0; --series7:#5fd6d6; --series8:#e0c84a; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--back); color:var(--ink);
 font:15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 24px 56px; }
header h1 { font-size:26px; line-height:1.25; margin:0; font-weight:650; }
header p { margin:4px 0 20px; color:var(--soft); }
section { background:var(--card); border:1px solid var(--line); border-radius:10px;
 padding:18px 22px 20px; margin:0 0 18px; }
h2 { font-size:17px; margin:0 0 10px; font-weight:650; }
h3 { font-size:14px; margin:16px 0 6px; font-weight:650; }
.note { margin:-6px 0 12px; color:var(--soft); font-size:13.5px; max-width:110ch; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:600; color:var(--soft); padding:5px 10px;
 border-bottom:2px solid var(--line); white-space:nowrap; }
td { padding:5px 10px; border-bottom:1px solid var(--line); vertical-align:top; }
tr:last-child td { border-bottom:0; }
td.n, th.n { text-align:right; white-space:nowrap; }
.nowrap { white-space:nowrap; }
tr.bad td { background:var(--badback); }
tr.warn td { background:var(--warnback); }
.badge { display:inline-block; padding:2px 10px; border-radius:999px; font-size:12.5px;
 font-weight:650; vertical-align:middle; white-space:nowrap; }
.good { color:var(--good); background:var(--goodback); }
.bad:not(tr) { color:var(--bad); background:var(--badback); }
.warn:not(tr) { color:var(--warn); background:var(--warnback); }
.soft { color:var(--soft); }
.tiles { display:flex; flex-wrap:wrap; gap:10px 32px; margin:12px 0 0; }
.tiles dt { color:var(--soft); font-size:12.5px; }
.tiles dd { margin:0; font-size:17px; font-weight:600; font-variant-numeric:tabular-nums; }
.grid { display:grid; grid-template-columns:repeat(auto-fit, minmax(440px, 1fr)); gap:18px; }
.grid > * { min-width:0; }
.grid > section, .grid > div > section:last-child { margin-bottom:0; }
.grid { margin:0 0 18px; }
ul { margin:6px 0 0; padding-left:20px; }
details { margin-top:12px; }
summary { cursor:pointer; color:var(--soft); font-size:13px; }
pre { overflow:auto; max-height:420px; font-size:12px; line-height:1.45; background:var(--back);
 padding:12px; border-radius:8px; }
svg { display:block; width:100%; height:auto; }
svg text { fill:var(--soft); font:12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg .axis { stroke:var(--line); stroke-width:1; }
svg .s1 { stroke:var(--series1); } svg .s2 { stroke:var(--series2); }
svg .s3 { stroke:var(--series3); } svg .s4 { stroke:var(--series4); }
svg .s5 { stroke:var(--series5); } svg .s6 { stroke:var(--series6); }
svg .s7 { stroke:var(--series7); } svg .s8 { stroke:var(--series8); }
svg .line { fill:none; stroke-width:2.2; }
svg .dash { stroke-dasharray:6 5; }
svg .f1 { fill:var(--series1); } svg .f2 { fill:var(--series2); }
svg .f3 { fill:var(--series3); } svg .f4 { fill:var(--series4); }
svg .f5 { fill:var(--series5); } svg .f6 { fill:var(--series6); }
svg .f7 { fill:var(--series7); } svg .f8 { fill:var(--series8); }
svg .band { fill:var(--band); opacity:.16; }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:12.5px; color:var(--soft);
 margin-top:6px; }
.legend i { display:inline-block; width:20px; height:0; border-top:2.5px solid;
 vertical-align:middle; margin-right:6px; }
.legend .s1 { border-color:var(--series1); } .legend .s2 { border-color:var(--series2); }
.legend .s3 { border-color:var(--series3); } .legend .s4 { border-color:var(--series4); }
.legend .s5 { border-color:var(--series5); } .legend .s6 { border-color:var(--series6); }
.legend .s7 { border-color:var(--series7); } .legend .s8 { border-color:var(--series8); }
.legend .dash { border-top-style:dashed; }
@media (max-width:540px) { main { padding:18px 10px; } .grid { grid-template-columns:1fr; } }
@media print { body { background:#fff; } section { break-inside:avoid; } }
"""
