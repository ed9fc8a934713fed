"""Check report: the results of all expectations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class ExpectationResult:
    """An expectation and its result.

    Args:
        suite: name of the suite.
        expectation_type: type in Great Expectations.
        column: column of the suite's table.
        description: the expectation in words.
        observed, bound: value that was found and values that are allowed, as text.
        severity: `critical` or `warning`.
        passed: whether the expectation passed.
        failed_rows: at most ten failed rows in words.
    """

    suite: str
    expectation_type: str
    column: str
    description: str
    observed: str
    bound: str
    severity: str
    passed: bool
    failed_rows: tuple[str, ...] = ()

    @property
    def is_failure(self) -> bool:
        """Whether the expectation did not pass and fails the check."""
        if self.passed:
            return False
        return self.severity == "critical"

    @property
    def is_warning(self) -> bool:
        """Whether the expectation did not pass and is only reported."""
        if self.passed:
            return False
        return self.severity != "critical"

    def sentence(self) -> str:
        """Return the failed expectation in one line."""
        rows = ""
        if self.failed_rows:
            rows = f" ({', '.join(self.failed_rows)})"
        return (
            f"{self.suite}, {self.expectation_type} {self.column}: "
            f"expected that {self.description} "
            f"({self.bound}), found {self.observed}{rows}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class SuiteResult:
    """The results of one suite.

    Args:
        name: name of the suite.
        results: one per expectation.
        json: the result of Great Expectations.
    """

    name: str
    results: list[ExpectationResult]
    json: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class CheckReport:
    """Results of a check.

    Args:
        passed: whether every critical expectation passed. It is true in every report that is
            returned; a failed check raises CheckFailed.
        num_expectations, num_warnings: numbers of expectations and of warnings.
        failures, warnings: failed expectations, a sentence each.
        seconds: wall time.
        path: the HTML page.
    """

    passed: bool
    num_expectations: int
    num_warnings: int
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    path: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def all_results(suites: Sequence[SuiteResult]) -> list[ExpectationResult]:
    """Return the results of all suites."""
    return [result for suite in suites for result in suite.results]
