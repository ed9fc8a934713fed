"""Check page: the HTML report of a check.

It is made from the JSON results. The page of Great Expectations loads styles and scripts from the
network; this one needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrec.data.quality.check_report import SuiteResult, all_results
from longrec.data.quality.validation import format_minute, great_expectations_version
from longrec.reporting import page

TIME_FACTS = ("first event", "last event", "first request", "last request")


def render_check_page(
    title: str,
    facts: Mapping[str, Any],
    suites: Sequence[SuiteResult],
    *,
    seconds: float,
    previous: Mapping[str, Any] | None = None,
) -> str:
    """Return the page.

    Args:
        title: its headline.
        facts: name -> value, at the head of the page; times in ms.
        suites: the results.
        seconds: wall time of the check.
        previous: `drift.compare_versions`, for a section after those of the suites.
    """
    results = all_results(suites)
    num_failed = sum(result.is_failure for result in results)
    num_warnings = sum(result.is_warning for result in results)
    subtitle = (
        f"{len(results)} expectations, {num_failed} failed, {num_warnings} warnings, "
        f"{seconds:.1f} s, Great Expectations {great_expectations_version()}"
    )
    return page.render(
        "check.html.jinja",
        title=title,
        subtitle=subtitle,
        date=page.current_minute(),
        verdict=(False, f"{num_failed} failed") if num_failed else (True, "passed"),
        facts=_format_times(facts),
        suites=suites,
        not_passed=[result for result in results if not result.passed],
        previous=previous,
    )


def _format_times(facts: Mapping[str, Any]) -> dict[str, Any]:
    formatted = dict(facts)
    for name in TIME_FACTS:
        if name in facts:
            formatted[name] = format_minute(facts[name])
    return formatted
