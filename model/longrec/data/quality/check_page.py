"""Check page: the HTML report of a check.

It is made from the JSON results. The page of Great Expectations loads styles and scripts from the
network; this one needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longrec.data.quality.check_report import ExpectationResult, SuiteResult, all_results
from longrec.data.quality.validation import format_minute, great_expectations_version
from longrec.reporting import page

TIME_FACTS = ("first event", "last event", "first request", "last request")
NO_SECTION = page.Html("")
WARNING_BADGE = page.Html('<span class="badge warn">warning</span>')
HEADERS = ("Expectation", "Column", "Observed", "Bound", "Severity")


def render_check_page(
    title: str,
    facts: Mapping[str, Any],
    suites: Sequence[SuiteResult],
    *,
    seconds: float,
    extra_section: page.Html = NO_SECTION,
) -> str:
    """Return the page.

    Args:
        title: its headline.
        facts: name -> value, at the head of the page; times in ms.
        suites: the results.
        seconds: wall time of the check.
        extra_section: a section after those of the suites.
    """
    results = all_results(suites)
    num_failed = sum(result.is_failure for result in results)
    num_warnings = sum(result.is_warning for result in results)
    sections = [page.section("Data", page.tiles(_format_times(facts)))]
    if num_failed or num_warnings:
        not_passed = [result for result in results if not result.passed]
        sections.append(page.section("Failed expectations", _result_table(not_passed)))
    for suite in suites:
        sections.append(page.section(suite.name.capitalize(), _suite_table(suite.results)))
    sections.append(extra_section)
    sections.append(_raw_results(suites))
    subtitle = (
        f"{len(results)} expectations, {num_failed} failed, {num_warnings} warnings, "
        f"{seconds:.1f} s, Great Expectations {great_expectations_version()}"
    )
    verdict = (False, f"{num_failed} failed") if num_failed else (True, "passed")
    return page.document(title, subtitle, page.Html("".join(sections)), verdict)


def _format_times(facts: Mapping[str, Any]) -> dict[str, Any]:
    formatted = dict(facts)
    for name in TIME_FACTS:
        if name in facts:
            formatted[name] = format_minute(facts[name])
    return formatted


def _raw_results(suites: Sequence[SuiteResult]) -> page.Html:
    content = json.dumps([suite.json for suite in suites], indent=1)
    return page.details("Results of Great Expectations (JSON)", content)


def _suite_table(results: Sequence[ExpectationResult]) -> page.Html:
    rows = [[_badge(result), *_cells(result)] for result in results]
    classes = [_row_class(result) for result in results]
    return page.table(["", *HEADERS], rows, classes)


def _result_table(results: Sequence[ExpectationResult]) -> page.Html:
    """Return a table of results of several suites."""
    rows = [[_badge(result), result.suite, *_cells(result)] for result in results]
    classes = [_row_class(result) for result in results]
    return page.table(["", "Suite", *HEADERS], rows, classes)


def _cells(result: ExpectationResult) -> list[str]:
    return [
        _description(result),
        result.column,
        result.observed,
        result.bound,
        result.severity,
    ]


def _description(result: ExpectationResult) -> str:
    if not result.failed_rows:
        return result.description
    rows = page.escape(", ".join(result.failed_rows))
    return page.Html(f"{page.escape(result.description)}<br><span class=soft>{rows}</span>")


def _badge(result: ExpectationResult) -> page.Html:
    if result.is_warning:
        return WARNING_BADGE
    return page.badge(result.passed, "passed" if result.passed else "failed")


def _row_class(result: ExpectationResult) -> str:
    if result.passed:
        return ""
    return "bad" if result.is_failure else "warn"
