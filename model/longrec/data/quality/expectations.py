"""Expectations: bounds on the columns of a profile, collected in suites.

Every expectation bounds one column. All of them are therefore the same type of Great
Expectations, and they read alike in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from longrec.data.quality.column_profiles import (
    MAX_EXAMPLES,
    ColumnProfile,
    ExpectedColumn,
    sql_usable,
    sql_value,
)
from longrec.data.quality.user_profiles import UserProfile
from longrec.schema import TIMESTAMP

Severity: TypeAlias = Literal["critical", "warning"]
Unit: TypeAlias = Literal["", "share", "ms"]
"""Unit of a value: a share is shown in percent, ms since 1970 UTC as a date."""
FailedRows: TypeAlias = Callable[[], Sequence[str]]
"""Returns examples of failed rows in words; called only when an expectation failed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Expectation:
    """Every value of one column of a profile is within [minimum, maximum].

    Args:
        column: column of the suite's table.
        description: the expectation in words.
        minimum, maximum: bounds; None for no bound.
        severity: `critical` fails the check, `warning` is only reported.
        failed_rows: names at most ten failed rows; None when there is nothing to name.
        unit: how the report shows values and bounds; empty for plain numbers.
    """

    column: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    severity: Severity = "critical"
    failed_rows: FailedRows | None = None
    unit: Unit = ""

    def is_met_by(self, value: float | None) -> bool:
        """Return whether a value is within the bounds; None always is."""
        if value is None:
            return True
        if self.minimum is not None and value < self.minimum:
            return False
        return self.maximum is None or value <= self.maximum


@dataclasses.dataclass(frozen=True, slots=True)
class Suite:
    """Expectations on one profile.

    Args:
        name: name of the suite.
        table: columns of equal length, with one row or one row per user.
        expectations: expectations on the columns.
        key: column that identifies a row (`user_id`); empty for a profile of one row.
    """

    name: str
    table: Mapping[str, Any]
    expectations: Sequence[Expectation]
    key: str = ""


class SuiteBuilder:
    """Builder of a suite on a profile of one row."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.expectations: list[Expectation] = []

    def add(self, expectation: Expectation, value: Any) -> None:
        """Add a value and the expectation on it."""
        self.values[expectation.column] = value
        self.expectations.append(expectation)

    def expect_none(
        self,
        column: str,
        description: str,
        count: int,
        *,
        severity: Severity = "critical",
        failed_rows: FailedRows | None = None,
    ) -> None:
        """Add a count that must be 0."""
        expectation = Expectation(
            column,
            description,
            maximum=0,
            severity=severity,
            failed_rows=failed_rows,
        )
        self.add(expectation, count)

    def expect_share(
        self,
        users: UserProfile,
        count: str,
        description: str,
        *,
        maximum: float,
        severity: Severity = "critical",
    ) -> None:
        """Add the share of a per-user count in all rows; it must not be above `maximum`.

        For the count `num_repeats` and a maximum of 0.01, the column is `repeats: share` and the
        description "few of the events repeat an item".

        Args:
            users: one row per user, with the column `num_rows`.
            count: column of the count; users with the largest counts are the failed rows.
            description: predicate of the counted rows, such as "events repeat an item".
            maximum: largest share.
            severity: severity of the expectation.
        """
        name = count.removeprefix("num_").replace("_", " ")
        quantifier = "few" if maximum else "none"
        expectation = Expectation(
            f"{name}: share",
            f"{quantifier} of the {description}",
            maximum=maximum,
            severity=severity,
            failed_rows=lambda: users.with_largest(count),
            unit="share",
        )
        num_rows = max(1, users.total("num_rows"))
        self.add(expectation, users.total(count) / num_rows)

    def build(self, name: str) -> Suite:
        """Return the suite."""
        table = {column: [value] for column, value in self.values.items()}
        return Suite(name, table, tuple(self.expectations))


def mismatch_suite(name: str, mismatches: Sequence[str]) -> Suite:
    """Return a suite that fails: columns are missing or have another type.

    Args:
        name: name of the suite.
        mismatches: one line per column.
    """
    suite = SuiteBuilder()
    suite.expect_none(
        "num_mismatches",
        "every file has the columns of the schema with their types",
        len(mismatches),
        failed_rows=lambda: mismatches[:MAX_EXAMPLES],
    )
    return suite.build(name)


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnExpectation:
    """An expectation on a column of a table, with the value that it is about.

    Args:
        expectation: the expectation.
        value: null share, minimum or maximum of the column.
        failed_predicate: SQL predicate of the rows that fail it.
    """

    expectation: Expectation
    value: float | None
    failed_predicate: str


def column_expectations(
    column: ExpectedColumn, profile: ColumnProfile
) -> Iterator[ColumnExpectation]:
    """Yield the expectations on the nulls and the range of a column."""
    if column.max_null_share < 1:
        yield _null_expectation(column, profile)
    if column.minimum is not None:
        yield _minimum_expectation(column, profile)
    if column.maximum is not None:
        yield _maximum_expectation(column, profile)


def _null_expectation(column: ExpectedColumn, profile: ColumnProfile) -> ColumnExpectation:
    frequency = "seldom" if column.max_null_share else "never"
    expectation = Expectation(
        f"{column.name}: null share",
        f"{column.name} is {frequency} null",
        maximum=column.max_null_share,
        unit="share",
    )
    return ColumnExpectation(
        expectation,
        value=profile.null_share,
        failed_predicate=f"not ({sql_usable(column)})",
    )


def _minimum_expectation(column: ExpectedColumn, profile: ColumnProfile) -> ColumnExpectation:
    expectation = Expectation(
        f"{column.name}: minimum{_name_suffix(column)}",
        f"{column.name} is never below its bound",
        minimum=column.minimum,
        unit=_unit(column),
    )
    return ColumnExpectation(
        expectation,
        value=profile.minimum,
        failed_predicate=f"{sql_value(column)} < {column.minimum}",
    )


def _maximum_expectation(column: ExpectedColumn, profile: ColumnProfile) -> ColumnExpectation:
    expectation = Expectation(
        f"{column.name}: maximum{_name_suffix(column)}",
        f"{column.name} is never above its bound",
        maximum=column.maximum,
        unit=_unit(column),
    )
    return ColumnExpectation(
        expectation,
        value=profile.maximum,
        failed_predicate=f"{sql_value(column)} > {column.maximum}",
    )


def _unit(column: ExpectedColumn) -> Unit:
    # In timelines the timestamp is an int64 column.
    is_time = column.dtype == "time" or column.name == TIMESTAMP
    return "ms" if is_time else ""


def _name_suffix(column: ExpectedColumn) -> str:
    unit = _unit(column)
    return f" ({unit})" if unit else ""
