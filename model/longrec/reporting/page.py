"""One self-contained HTML page: no script, font, style or image from anywhere; the page's own
policy forbids them too.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def page(
    title: str,
    subtitle: str,
    body: Html,
    verdict: tuple[bool, str] | None = None,
) -> str:
    """Returns the whole page.

    Args:
        title: headline and document title.
        subtitle: one line under it.
        body: sections.
        verdict: whether it went well, and in which words; a badge beside the headline.
    """
    badge = mark(*verdict) if verdict else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{html.escape(title)} {badge}</h1><p>{html.escape(subtitle)}</p></header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> Html:
    """Returns a headed section of parts, with a note under the headline."""
    under = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Html(
        f"<section><h2>{html.escape(title)}</h2>{under}{''.join(escape(part) for part in parts)}</section>\n"
    )


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], classes: Iterable[str] | None = None
) -> Html:
    """Returns a table; columns of numbers are right-aligned, `classes` gives each row its class."""
    rows = list(rows)
    names = list(classes) if classes is not None else [""] * len(rows)
    numeric = [
        all(_is_number(row[place]) or row[place] in ("", "–", None) for row in rows)
        and any(_is_number(row[place]) for row in rows)
        for place in range(len(headers))
    ]
    head = "".join(
        f"<th{_right(right)}>{escape(name)}</th>"
        for name, right in zip(headers, numeric, strict=True)
    )
    lines = [
        "".join(
            f"<td{_right(right)}>{escape(show(value))}</td>"
            for value, right in zip(row, numeric, strict=True)
        )
        for row in rows
    ]
    body = "".join(
        f'<tr class="{name}">{line}</tr>' if name else f"<tr>{line}</tr>"
        for name, line in zip(names, lines, strict=True)
    )
    return Html(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(values: Mapping[str, object]) -> Html:
    """Returns names and values as a row of tiles."""
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(show(value))}</dd></div>"
        for name, value in values.items()
    )
    return Html(f'<dl class="facts">{tiles}</dl>')


def details(summary: str, content: str) -> Html:
    """Returns a folded block of preformatted text."""
    return Html(
        f"<details><summary>{html.escape(summary)}</summary><pre>{escape(content)}</pre></details>"
    )


def drawing(svg: Html) -> str:
    """Returns a drawing of a page as an SVG file of its own."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )


def mark(good: bool, words: str) -> Html:
    """Returns a green or red badge."""
    return Html(f'<span class="badge {"good" if good else "bad"}">{html.escape(words)}</span>')


def escape(value: object) -> Html:
    """Returns HTML as it is and everything else escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def show(value: object) -> str | Html:
    """Returns a value for people: thousands parted, floats with up to five significant digits, None
    as a dash.
    """
    if value is None:
        return "–"
    if isinstance(value, (bool, str)):
        return value if isinstance(value, str) else ("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 or value.is_integer() else f"{value:.5g}"
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _right(right: bool) -> str:
    return " class=n" if right else ""


STYLE = """
:root { color-scheme: light dark; --ink:#1c2430; --soft:#5b6675; --line:#d9dee5; --back:#f6f7f9; --card:#fff;
 --good:#12703c; --goodback:#dff3e6; --bad:#a61b1b; --badback:#fbe3e3; --warn:#7a5200; --warnback:#fdf0d3;
 --series1:#2158c7; --series2:#b4540a; --series3:#5b6675; --series4:#12803c; --series5:#8a2be2; --series6:#b3175f; --series7:#0a8a8a;
 --series8:#8a6d00; --band:#2158c7; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa5b4; --line:#333c49; --back:#12161c; --card:#1a2029;
 --good:#7ddba2; --goodback:#15382480; --bad:#ff9c9c; --badback:#4a1c1c80; --warn:#f0c36a; --warnback:#40300c80;
 --series1:#7aa8ff; --series2:#f0a35e; --series3:#9aa5b4; --series4:#6fd39a; --series5:#c39bff; --series6:#ff8fc0; --series7:#5fd6d6;
 --series8:#e0c84a; --band:#7aa8ff; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--back); color:var(--ink); font:15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1180px; margin:0 auto; padding:28px 24px 56px; }
header h1 { font-size:26px; line-height:1.25; margin:0; font-weight:650; }
header p { margin:4px 0 20px; color:var(--soft); }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:18px 22px 20px; margin:0 0 18px; }
h2 { font-size:17px; margin:0 0 10px; font-weight:650; }
h3 { font-size:14px; margin:16px 0 6px; font-weight:650; }
.note { margin:-6px 0 12px; color:var(--soft); font-size:13.5px; max-width:110ch; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:600; color:var(--soft); padding:5px 10px; border-bottom:2px solid var(--line); white-space:nowrap; }
td { padding:5px 10px; border-bottom:1px solid var(--line); vertical-align:top; }
tr:last-child td { border-bottom:0; }
td.n, th.n { text-align:right; white-space:nowrap; }
.keep { white-space:nowrap; }
tr.bad td { background:var(--badback); }
tr.warn td { background:var(--warnback); }
.badge { display:inline-block; padding:2px 10px; border-radius:999px; font-size:12.5px; font-weight:650; vertical-align:middle;
 white-space:nowrap; }
.good { color:var(--good); background:var(--goodback); }
.bad:not(tr) { color:var(--bad); background:var(--badback); }
.warn:not(tr) { color:var(--warn); background:var(--warnback); }
.soft { color:var(--soft); }
.facts { display:flex; flex-wrap:wrap; gap:10px 32px; margin:12px 0 0; }
.facts dt { color:var(--soft); font-size:12.5px; }
.facts dd { margin:0; font-size:17px; font-weight:600; font-variant-numeric:tabular-nums; }
.grid { display:grid; grid-template-columns:repeat(auto-fit, minmax(440px, 1fr)); gap:18px; }
.grid > * { min-width:0; }
.grid > section, .grid > div > section:last-child { margin-bottom:0; }
.grid { margin:0 0 18px; }
ul { margin:6px 0 0; padding-left:20px; }
details { margin-top:12px; }
summary { cursor:pointer; color:var(--soft); font-size:13px; }
pre { overflow:auto; max-height:420px; font-size:12px; line-height:1.45; background:var(--back); padding:12px; border-radius:8px; }
svg { display:block; width:100%; height:auto; }
svg text { fill:var(--soft); font:12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg .axis { stroke:var(--line); stroke-width:1; }
svg .s1 { stroke:var(--series1); } svg .s2 { stroke:var(--series2); } svg .s3 { stroke:var(--series3); } svg .s4 { stroke:var(--series4); }
svg .s5 { stroke:var(--series5); } svg .s6 { stroke:var(--series6); } svg .s7 { stroke:var(--series7); } svg .s8 { stroke:var(--series8); }
svg .line { fill:none; stroke-width:2.2; }
svg .dash { stroke-dasharray:6 5; }
svg .f1 { fill:var(--series1); } svg .f2 { fill:var(--series2); } svg .f3 { fill:var(--series3); } svg .f4 { fill:var(--series4); }
svg .f5 { fill:var(--series5); } svg .f6 { fill:var(--series6); } svg .f7 { fill:var(--series7); } svg .f8 { fill:var(--series8); }
svg .band { fill:var(--band); opacity:.16; }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; font-size:12.5px; color:var(--soft); margin-top:6px; }
.legend i { display:inline-block; width:20px; height:0; border-top:2.5px solid; vertical-align:middle; margin-right:6px; }
.legend .s1 { border-color:var(--series1); } .legend .s2 { border-color:var(--series2); } .legend .s3 { border-color:var(--series3); }
.legend .s4 { border-color:var(--series4); } .legend .s5 { border-color:var(--series5); } .legend .s6 { border-color:var(--series6); }
.legend .s7 { border-color:var(--series7); } .legend .s8 { border-color:var(--series8); }
.legend .dash { border-top-style:dashed; }
@media (max-width:540px) { main { padding:18px 10px; } .grid { grid-template-columns:1fr; } }
@media print { body { background:#fff; } section { break-inside:avoid; } }
"""
