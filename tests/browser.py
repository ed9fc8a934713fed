"""A real browser for tests of pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

WIDE_ELEMENTS = """() => [...document.querySelectorAll(":not(input)")]
  .filter(element => element.clientWidth && element.scrollWidth > element.clientWidth + 1)
  .map(({ tagName, id, className, scrollWidth }) => [tagName, id, className, scrollWidth])"""
"""Elements that scroll horizontally or hide a part of what they hold; inputs may do so."""


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a Chromium driven by Playwright; skip the test without one of them."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def note_errors(page: Any) -> list[str]:
    """Return a list that takes the errors of scripts and of the content policy."""
    errors: list[str] = []

    def note_policy_error(message: Any) -> None:
        if "Content Security" in message.text:
            errors.append(message.text)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", note_policy_error)
    return errors


def assert_fits(page: Any) -> None:
    """Assert that nothing on the page needs horizontal scrolling."""
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(WIDE_ELEMENTS)
    assert not wide, wide
