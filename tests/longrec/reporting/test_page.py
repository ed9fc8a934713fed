"""Test the parts of a page: how values are written, and that text is escaped."""

from __future__ import annotations

import math

import pytest
from jinja2 import UndefinedError

from longrec.data.quality.check_report import ExpectationResult, SuiteResult
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


def check_page(text: str) -> str:
    """Return the page of a check with a failure, all of whose texts are the same."""
    result = ExpectationResult(text, text, text, text, text, text, text, False, (text,))
    return page.render(
        "check.html.jinja",
        title=text,
        subtitle=text,
        date=text,
        verdict=(False, text),
        facts={text: text},
        suites=[SuiteResult(text, [result], {text: text})],
        not_passed=[result],
        previous={"note": text, "lengths": [[text]], "shares": [[text]]},
    )


def test_text_is_escaped_everywhere() -> None:
    bad = "<b onclick='x'>&"
    parsed = Page(check_page(bad))
    assert "onclick" not in [name for name, _ in parsed.attributes]
    assert parsed.open == []
    assert "".join(parsed.text).count(bad) == 26


def test_a_name_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        page.render("model_card.md.jinja")
