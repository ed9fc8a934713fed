"""Test the parts of a page: how values are written, and that text is escaped."""

from __future__ import annotations

import math

import pytest

from longrec.reporting import page
from tests.longrec.pages import Page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12_345, "12,345"),
        (0.123456789, "0.12346"),
        (1016.0, "1,016"),
        (123_456.7, "123,457"),
        ("x", "x"),
        (1e-7, "1e-07"),
        (math.inf, "inf"),
    ],
)
def test_values_are_written_for_readers(value: object, text: str) -> None:
    assert page.format_value(value) == text


def test_text_is_escaped_everywhere() -> None:
    bad = '<b onclick="x">&'
    table = page.table([bad], [[bad]], [""])
    section = page.section(bad, table, page.tiles({bad: bad}), note=bad)
    body = page.Html(section + page.details(bad, bad))
    parsed = Page(page.document(bad, bad, body, (False, bad)))
    assert "onclick" not in [name for name, _ in parsed.attributes]
    assert parsed.open == []
    # Title, headline, subtitle, badge, section, note, th, td, dt, dd, summary and pre.
    assert "".join(parsed.text).count(bad) == 12
