"""Suites of a dataset: expectations that follow from its schema, on its profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from longrec.config import ChecksConfig
from longrec.data.quality.column_profiles import ExpectedColumn
from longrec.data.quality.dataset_profiles import (
    event_columns,
    item_columns,
    target_columns,
    user_columns,
)
from longrec.data.quality.expectations import (
    Expectation,
    Severity,
    Suite,
    SuiteBuilder,
    column_expectations,
    mismatch_suite,
)
from longrec.data.quality.table_profile import TableProfile
from longrec.data.quality.user_profiles import UserProfile, quantiles_in_words
from longrec.schema import ITEM_ID, TIMESTAMP, USER_ID, Schema

EARLIEST_LIKELY_MS = 631_152_000_000
"""1990-01-01 UTC. An earlier first event hints at seconds that were read as milliseconds."""
MAX_REPEAT_SHARE = 0.01
"""Largest share of repeated rows without a warning."""


def suites_of_dataset(
    profiles: Mapping[str, TableProfile],
    metadata: Mapping[str, Any],
    checks: ChecksConfig,
) -> tuple[list[Suite], dict[str, Any]]:
    """Return the suites of a dataset and the facts at the head of the report.

    Args:
        profiles: table -> its profile, merged from all shards.
        metadata: content of its dataset.json.
        checks: bounds.
    """
    schema = Schema.from_dict(metadata["schema"])
    suites = _DatasetSuites(schema, metadata, checks)
    events, event_facts = suites.event_suites(profiles["events"])
    targets, target_facts = suites.target_suites(profiles["targets"], profiles["events"])
    items = entity_suite(
        "items",
        profiles["items"],
        item_columns(schema),
        sorted_id_check(ITEM_ID),
    )
    users = entity_suite(
        "users",
        profiles["users"],
        user_columns(schema),
        sorted_id_check(USER_ID),
    )
    facts = {
        **event_facts,
        **target_facts,
        "items": profiles["items"].counts.get("num_known", 0),
        "user rows": profiles["users"].counts.get("num_known", 0),
    }
    return [*events, *targets, items, users], facts


class IdCheck(NamedTuple):
    """A check of the ids of a table with one row per id.

    Args:
        column: count of a profile that must be 0: the ids that fail the check.
        description: the check in words.
    """

    column: str
    description: str


def sorted_id_check(key: str) -> IdCheck:
    """Return the check of a table that is sorted by its id."""
    return IdCheck("num_unsorted", f"{key} rises from row to row, without repetition")


def unique_id_check(key: str) -> IdCheck:
    """Return the check of a table with different ids in any order."""
    return IdCheck("num_repeated", f"every {key} occurs once")


def entity_suite(
    name: str,
    profile: TableProfile,
    columns: Sequence[ExpectedColumn],
    id_check: IdCheck,
) -> Suite:
    """Return the suite of a table with one row per id.

    Args:
        name: name of the table.
        profile: its profile.
        columns: columns that it must have.
        id_check: the check of its ids.
    """
    if profile.mismatches:
        return mismatch_suite(name, profile.mismatches)
    suite = SuiteBuilder()
    _expect_columns(suite, profile, columns)
    suite.expect_none(
        id_check.column,
        id_check.description,
        profile.counts[id_check.column],
    )
    return suite.build(name)


def expect_label_rates(
    suite: SuiteBuilder,
    schema: Schema,
    checks: ChecksConfig,
    rates: Sequence[float | None],
    *,
    split: str = "",
) -> None:
    """Add the bounds of the mean label of each task.

    Args:
        suite: receives the expectations.
        schema: the tasks and their bounds.
        checks: decides about the severity.
        rates: mean label of each task; None for a task without targets.
        split: split of the targets; empty for all targets.
    """
    where = f" in {split}" if split else ""
    severity: Severity = "critical" if checks.check_label_rates else "warning"
    for task, rate in zip(schema.tasks, rates, strict=True):
        expectation = Expectation(
            f"{task.name}: rate{where}",
            f"the rate of {task.name}{where} is within the bounds of the task",
            minimum=task.min_rate,
            maximum=task.max_rate,
            severity=severity,
        )
        suite.add(expectation, rate)


class _DatasetSuites:
    """Suites of events and targets.

    Args:
        schema: features and tasks.
        metadata: content of dataset.json.
        checks: bounds.
    """

    def __init__(
        self,
        schema: Schema,
        metadata: Mapping[str, Any],
        checks: ChecksConfig,
    ) -> None:
        self.schema = schema
        self.metadata = metadata
        self.facts = metadata.get("facts", {})
        self.checks = checks

    def event_suites(self, profile: TableProfile) -> tuple[list[Suite], dict[str, Any]]:
        """Return the suites of the events and their facts."""
        if profile.mismatches:
            return [mismatch_suite("events", profile.mismatches)], {}
        users = profile.users
        suite = SuiteBuilder()
        columns = event_columns(self.metadata)
        _expect_columns(
            suite,
            profile,
            columns,
            self.facts.get("num_events"),
        )
        self._expect_event_shares(suite, users)
        _expect_user_rows(suite, profile)
        _expect_likely_time(suite, profile)
        times = profile.columns[TIMESTAMP]
        facts = {
            "events": profile.counts["num_rows"],
            "users": len(users),
            "first event": times.minimum,
            "last event": times.maximum,
            "events per user": quantiles_in_words(users.columns.get("num_rows", np.zeros(0))),
        }
        order = _order_suite(
            "event timelines",
            users,
            has_baskets=self.schema.has_baskets,
        )
        return [suite.build("events"), order], facts

    def target_suites(
        self,
        profile: TableProfile,
        events: TableProfile,
    ) -> tuple[list[Suite], dict[str, Any]]:
        """Return the suites of the targets and their facts."""
        if profile.mismatches:
            return [mismatch_suite("targets", profile.mismatches)], {}
        users = profile.users
        suite = SuiteBuilder()
        columns = target_columns(self.schema)
        _expect_columns(
            suite,
            profile,
            columns,
            self.facts.get("num_targets"),
        )
        _expect_whole_requests(suite, profile)
        rates = [_label_rate(profile, task) for task in self.schema.task_names]
        expect_label_rates(
            suite,
            self.schema,
            self.checks,
            rates,
        )
        self._expect_target_shares(suite, users)
        _expect_user_rows(suite, profile)
        if not events.mismatches:
            suite.expect_none(
                "num_moved_users",
                "events and targets of a user are in parts of the same number",
                _num_users_in_other_parts(events.users, users),
            )
        facts: dict[str, Any] = {
            "requests": profile.counts["num_requests"],
            "targets": profile.counts["num_rows"],
        }
        for task, rate in zip(self.schema.task_names, rates, strict=True):
            facts[f"rate of {task}"] = rate
        order = _order_suite("target order", users, has_baskets=False)
        return [suite.build("targets"), order], facts

    def _expect_event_shares(self, suite: SuiteBuilder, users: UserProfile) -> None:
        # A duplicate is the same event twice: its sequence number is equal too. A repeat differs in
        # the sequence number only, which may be genuine.
        suite.expect_share(
            users,
            "num_duplicates",
            "events equal another one of the user in item, time and sequence",
            maximum=self.checks.max_duplicate_share,
        )
        suite.expect_share(
            users,
            "num_repeats",
            "events repeat item and time of another one of the user",
            maximum=MAX_REPEAT_SHARE,
            severity="warning",
        )
        suite.expect_share(
            users,
            "num_unknown_items",
            "events have an item that is not in the item table",
            maximum=self.checks.max_unknown_item_share,
        )

    def _expect_target_shares(self, suite: SuiteBuilder, users: UserProfile) -> None:
        suite.expect_share(
            users,
            "num_unknown_items",
            "targets have an item that is not in the item table",
            maximum=self.checks.max_unknown_item_share,
        )
        suite.expect_share(
            users,
            "num_duplicates",
            "targets repeat an item of their request",
            maximum=MAX_REPEAT_SHARE,
            severity="warning",
        )


def _order_suite(
    name: str,
    users: UserProfile,
    *,
    has_baskets: bool,
) -> Suite:
    expectations = [
        Expectation(
            "num_disordered",
            "rows of a user never go back in time or sequence",
            maximum=0,
        ),
        Expectation(
            "num_runs",
            "the rows of a user are together in one part",
            maximum=1,
        ),
    ]
    if has_baskets:
        expectations.append(
            Expectation(
                "num_split_baskets",
                "a basket has a single time",
                maximum=0,
            )
        )
    return Suite(
        name,
        dict(users.columns),
        tuple(expectations),
        USER_ID,
    )


def _expect_columns(
    suite: SuiteBuilder,
    profile: TableProfile,
    columns: Sequence[ExpectedColumn],
    num_expected_rows: int | None = None,
) -> None:
    """Add the expectations on the number of rows and on each column."""
    minimum = 1
    description = "the table has rows"
    if num_expected_rows is not None:
        minimum = max(1, num_expected_rows)
        description = "the table has the rows that were counted when it was written"
    num_rows = Expectation(
        "num_rows",
        description,
        minimum=minimum,
        maximum=num_expected_rows,
    )
    suite.add(num_rows, profile.counts["num_rows"])
    for column in columns:
        for found in column_expectations(column, profile.columns[column.name]):
            suite.add(_with_failed_rows(found.expectation, profile), found.value)


def _with_failed_rows(expectation: Expectation, profile: TableProfile) -> Expectation:
    return dataclasses.replace(
        expectation,
        failed_rows=lambda: profile.describe_failed_rows(expectation.column),
    )


def _expect_whole_requests(suite: SuiteBuilder, profile: TableProfile) -> None:
    """Add the expectations that a request has one user and one time."""
    nouns = {
        "num_requests_with_many_users": "user",
        "num_requests_with_many_times": "time",
    }
    for column, noun in nouns.items():
        expectation = Expectation(
            column,
            f"all targets of a request have the same {noun}",
            maximum=0,
        )
        suite.add(_with_failed_rows(expectation, profile), profile.counts[column])


def _expect_likely_time(suite: SuiteBuilder, profile: TableProfile) -> None:
    expectation = Expectation(
        "first event: time (ms)",
        "the first event is after 1990; an earlier one hints at seconds read as ms",
        minimum=EARLIEST_LIKELY_MS,
        severity="warning",
        unit="ms",
    )
    suite.add(expectation, profile.columns[TIMESTAMP].minimum)


def _expect_user_rows(suite: SuiteBuilder, profile: TableProfile) -> None:
    column = "num_users_without_row"
    expectation = Expectation(
        column,
        "every user has a row in the user table",
        maximum=0,
        severity="warning",
    )
    suite.add(_with_failed_rows(expectation, profile), profile.counts[column])


def _label_rate(profile: TableProfile, task: str) -> float | None:
    num_labels = profile.counts[f"labels {task}"]
    if not num_labels:
        return None
    return profile.counts[f"positives {task}"] / num_labels


def _num_users_in_other_parts(events: UserProfile, targets: UserProfile) -> int:
    """Return the number of users with targets in another part than their events."""
    _, event_rows, target_rows = np.intersect1d(
        events.columns[USER_ID],
        targets.columns[USER_ID],
        return_indices=True,
    )
    if not len(event_rows):
        return 0
    event_parts = events.columns["part"][event_rows]
    target_parts = targets.columns["part"][target_rows]
    return int((event_parts != target_parts).sum())
