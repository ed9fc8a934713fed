"""Drift: how far a new version of the data is from the published one.

dataset -> DriftProfile -> manifest of the feature tables
              |                       |
          new version         PreviousVersion (published)
              +------- drift_suite ---+
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data import files
from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import Dataset
from longrec.data.quality.column_profiles import MAX_EXAMPLES
from longrec.data.quality.expectations import Expectation, Severity, Suite, SuiteBuilder
from longrec.data.quality.psi import histogram, psi, psi_noise
from longrec.data.quality.user_profiles import UserProfile, is_unknown
from longrec.data.timelines import group_starts, history_lengths, sorted_known_times
from longrec.reporting.evidently_report import Quantity, write_evidently
from longrec.reporting.page import format_percent
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

MAX_LENGTH_POWER = 20
LARGEST_LENGTHS = (0, *(2**power for power in range(MAX_LENGTH_POWER + 1)))
"""Largest length of each bin but the last one: 0, 1, 2, 4, 8, ... 2**20."""
LENGTH_EDGES = np.array(LARGEST_LENGTHS) + 0.5
"""Edges between the bins of history lengths: 0, 1, 2, 3 to 4, 5 to 8, ... up to 2**20, more."""
NUM_STANDARD_ERRORS = 3.0
"""Number of standard errors by which a rate may change by chance."""
COVERED_TABLES = ("events", "targets")


@dataclasses.dataclass(frozen=True, slots=True)
class DriftProfile:
    """Statistics that are compared between versions; part of the feature tables' manifest.

    Args:
        lengths: number of requests by history length, over the bins of `LENGTH_EDGES`.
        labels: task -> (number of positives, number of targets).
        coverage: `events`, `targets` -> (number with an item of the item table, number of all).
    """

    lengths: tuple[int, ...]
    labels: dict[str, tuple[int, int]]
    coverage: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, source: Dataset) -> DriftProfile:
        """Return the profile of a dataset, read one part at a time."""
        items = int64_column(source.items(), ITEM_ID)
        lengths = np.zeros(len(LENGTH_EDGES) + 1, np.int64)
        positives = dict.fromkeys(source.schema.task_names, 0)
        num_known = dict.fromkeys(COVERED_TABLES, 0)
        num_rows = dict.fromkeys(COVERED_TABLES, 0)
        for part in source.parts:
            tables = {"events": source.events(part), "targets": source.targets(part)}
            for name, table in tables.items():
                is_known = ~is_unknown(int64_column(table, ITEM_ID), items)
                num_known[name] += int(is_known.sum())
                num_rows[name] += table.num_rows
            for task in positives:
                positives[task] += int(int64_column(tables["targets"], task).sum())
            part_lengths = _history_lengths(tables["events"], tables["targets"])
            lengths += histogram(part_lengths, LENGTH_EDGES)
        num_targets = num_rows["targets"]
        return cls(
            lengths=tuple(lengths.tolist()),
            labels={task: (count, num_targets) for task, count in positives.items()},
            coverage={name: (num_known[name], num_rows[name]) for name in COVERED_TABLES},
        )

    @classmethod
    def merged(cls, shards: Sequence[DriftProfile]) -> DriftProfile:
        """Return the profile of all shards of a dataset."""
        lengths = np.sum([shard.lengths for shard in shards], axis=0)
        return cls(
            lengths=tuple(lengths.tolist()),
            labels=_sum_pairs([shard.labels for shard in shards]),
            coverage=_sum_pairs([shard.coverage for shard in shards]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DriftProfile:
        """Return the profile of a JSON form."""
        return cls(
            lengths=tuple(value["lengths"]),
            labels=_to_pairs(value["labels"]),
            coverage=_to_pairs(value["coverage"]),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PreviousVersion:
    """The published version of the same data.

    Args:
        tables: directory of its feature tables.
        name: its name for people.
        profile: its profile.
    """

    tables: Path
    name: str
    profile: DriftProfile

    def items(self) -> Int64:
        """Return its item ids, sorted, int64."""
        table = pq.read_table(self.tables / "item_features.parquet", columns=[ITEM_ID])
        return np.unique(int64_column(table, ITEM_ID))


def drift_suite(
    profile: DriftProfile,
    previous: PreviousVersion,
    checks: ChecksConfig,
    *,
    events: UserProfile,
    targets: UserProfile,
) -> Suite:
    """Return the suite that compares a dataset with the previous version.

    The change that chance alone would cause is added to the bounds.

    Args:
        profile: profile of the dataset.
        previous: the version that it is compared with.
        checks: bounds. Drift is critical unless `check_drift` is off.
        events, targets: user profiles of the dataset; that of the targets counts labels and new
            items.
    """
    comparison = _Comparison(
        profile,
        previous,
        checks,
        events=events,
        targets=targets,
    )
    suite = SuiteBuilder()
    comparison.expect_lengths(suite)
    comparison.expect_label_rates(suite)
    comparison.expect_coverage(suite)
    comparison.expect_known_items(suite)
    return suite.build("drift")


@dataclasses.dataclass(frozen=True, slots=True)
class _Comparison:
    """A dataset and the previous version; see `drift_suite`."""

    profile: DriftProfile
    previous: PreviousVersion
    checks: ChecksConfig
    events: UserProfile
    targets: UserProfile

    @property
    def severity(self) -> Severity:
        """Severity of all expectations."""
        return "critical" if self.checks.check_drift else "warning"

    def expect_lengths(self, suite: SuiteBuilder) -> None:
        """Add the distance of the distributions of history lengths."""
        old = self.previous.profile.lengths
        new = self.profile.lengths
        expectation = Expectation(
            "history lengths: PSI",
            "the lengths of the histories are distributed as in the previous version",
            maximum=self.checks.max_psi + psi_noise(old, new),
            severity=self.severity,
            failed_rows=lambda: _describe_changed_lengths(self.events, self.previous),
        )
        suite.add(expectation, psi(old, new))

    def expect_label_rates(self, suite: SuiteBuilder) -> None:
        """Add the change of the rate of each task."""
        for task, new in self.profile.labels.items():
            old = self.previous.profile.labels[task]
            change, noise = _rate_change(old, new)
            expectation = Expectation(
                f"{task}: change of the rate",
                f"the rate of {task} is about that of the previous version, {_rate(old):.4g}",
                maximum=self.checks.max_rate_change + noise,
                severity=self.severity,
                failed_rows=functools.partial(  # a lambda would see the last task of the loop
                    _describe_changed_rates,
                    self.targets,
                    task,
                    old,
                    new,
                ),
            )
            suite.add(expectation, change)

    def expect_coverage(self, suite: SuiteBuilder) -> None:
        """Add the lost share of events and targets with a known item."""
        users = {"events": self.events, "targets": self.targets}
        for name, new in self.profile.coverage.items():
            old_share = _rate(self.previous.profile.coverage[name])
            expectation = Expectation(
                f"{name} with a known item: lost share",
                f"as many of the {name} have an item of the item table as in the previous "
                f"version, {100 * old_share:.4g} %",
                maximum=self.checks.max_coverage_loss,
                severity=self.severity,
                unit="share",
                failed_rows=functools.partial(users[name].with_largest, "num_unknown_items"),
            )
            suite.add(expectation, old_share - _rate(new))

    def expect_known_items(self, suite: SuiteBuilder) -> None:
        """Add the share of targets with an item that the previous version did not know."""
        expectation = Expectation(
            "new items: share",
            "few of the targets have an item that the previous version did not know",
            maximum=self.checks.max_new_item_share,
            severity=self.severity,
            failed_rows=lambda: self.targets.with_largest("num_new_items"),
            unit="share",
        )
        _, num_targets = self.profile.coverage["targets"]
        num_new = self.targets.total("num_new_items")
        suite.add(expectation, num_new / max(num_targets, 1))


def compare_versions(
    profile: DriftProfile,
    previous: PreviousVersion | None,
    reason: str,
) -> dict[str, Any]:
    """Return what the report shows of both versions: a note and the rows of two tables.

    Args:
        profile: profile of the dataset.
        previous: the version that it is compared with; None when there is none.
        reason: why there is nothing to compare with.
    """
    if previous is None:
        return {"note": reason, "lengths": [], "shares": []}
    versions = (previous.profile, profile)
    return {
        "note": f"Compared with {previous.name}.",
        "lengths": _length_rows(versions),
        "shares": _share_rows(versions),
    }


def write_evidently_of_versions(
    folder: Path,
    profile: DriftProfile,
    previous: PreviousVersion,
    checks: ChecksConfig,
) -> None:
    """Write data.html and data.json of Evidently.

    Args:
        folder: for both files.
        profile: profile of the dataset.
        previous: the version that it is compared with.
        checks: bound of the history lengths.
    """
    with (
        files.atomic_replace(folder / "data.html") as html,
        files.atomic_replace(folder / "data.json") as json,
    ):
        write_evidently(
            _quantities(previous.profile, profile, checks),
            html,
            json,
            index=psi,
            name="Drift from the published version of the data",
            metadata={"published_version": previous.name},
        )


def _quantities(old: DriftProfile, new: DriftProfile, checks: ChecksConfig) -> list[Quantity]:
    """Return the columns of the report; shares have bounds of another kind, and so no verdict."""
    bound = checks.max_psi + psi_noise(old.lengths, new.lengths)
    bins = (*(f"up to {length:,}" for length in LARGEST_LENGTHS), "more")
    quantities = [Quantity("history length", bins, old.lengths, new.lengths, bound)]
    for task, counts in new.labels.items():
        columns = (_yes_and_no(old.labels[task]), _yes_and_no(counts))
        quantities.append(Quantity(task, ("no", "yes"), *columns, bound=None))
    for table, counts in new.coverage.items():
        columns = (_yes_and_no(old.coverage[table]), _yes_and_no(counts))
        name = f"{table} with a known item"
        quantities.append(Quantity(name, ("no", "yes"), *columns, bound=None))
    return quantities


def _yes_and_no(counts: tuple[int, int]) -> tuple[int, int]:
    """Return (no, yes) of (yes, all)."""
    num_yes, num_rows = counts
    return num_rows - num_yes, num_yes


def _length_rows(versions: Sequence[DriftProfile]) -> list[list[object]]:
    """Return the share of requests in each bin of history lengths, by version."""
    totals = [max(sum(version.lengths), 1) for version in versions]
    bins = [f"{length:,}" for length in LARGEST_LENGTHS]
    bins.append(f"more than {LARGEST_LENGTHS[-1]:,}")
    rows: list[list[object]] = []
    for index, name in enumerate(bins):
        counts = [version.lengths[index] for version in versions]
        if any(counts):
            shares = [count / total for count, total in zip(counts, totals, strict=True)]
            rows.append([name, *map(format_percent, shares)])
    return rows


def _share_rows(versions: Sequence[DriftProfile]) -> list[list[object]]:
    """Return the share of positives and of known items, by version."""
    new = versions[-1]
    rows: list[list[object]] = []
    for task in new.labels:
        counts = [version.labels[task] for version in versions]
        rows.append([f"{task} positive", *_percentages(counts)])
    for name in new.coverage:
        counts = [version.coverage[name] for version in versions]
        rows.append([f"{name} with a known item", *_percentages(counts)])
    return rows


def _percentages(counts: Sequence[tuple[int, int]]) -> list[str]:
    return [format_percent(_rate(pair), ".4g") for pair in counts]


def _history_lengths(events: pa.Table, targets: pa.Table) -> Int64:
    """Return the number of events before each request of a part, int64 [R]."""
    users = int64_column(targets, USER_ID)
    times = int64_column(targets, TIMESTAMP)
    starts = group_starts(users, int64_column(targets, REQUEST_ID))
    event_users, event_times = sorted_known_times(events)
    return history_lengths(
        event_users,
        event_times,
        users[starts],
        times[starts],
    )


def _sum_pairs(shards: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    sums = {}
    for name in shards[0]:
        first = sum(shard[name][0] for shard in shards)
        second = sum(shard[name][1] for shard in shards)
        sums[name] = (first, second)
    return sums


def _to_pairs(value: Mapping[str, Sequence[Any]]) -> dict[str, tuple[int, int]]:
    pairs = {}
    for name, (first, second) in value.items():
        pairs[name] = (int(first), int(second))
    return pairs


def _rate(counts: tuple[int, int]) -> float:
    return counts[0] / max(counts[1], 1)


def _rate_change(old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float]:
    """Return the change of a rate and the change that chance may cause.

    Both are relative to the rarer outcome of the old rate.
    """
    rate = _rate(old)
    num_old = max(old[1], 1)
    num_new = max(new[1], 1)
    # A rate of 0 or 1 counts as one row of the other outcome, so that nothing divides by 0 and
    # the variance is not 0.
    rarer = max(min(rate, 1 - rate), 1 / num_old)
    variance = max(rate * (1 - rate), rarer / num_old)
    standard_error = np.sqrt(variance * (1 / num_old + 1 / num_new))
    noise = float(NUM_STANDARD_ERRORS * standard_error / rarer)
    return abs(_rate(new) - rate) / rarer, noise


def _describe_changed_lengths(events: UserProfile, previous: PreviousVersion) -> list[str]:
    """Name the users with the largest growth or loss of their timelines, by ratio."""
    table = pq.read_table(previous.tables / "user_history", columns=[USER_ID, "history_length"])
    _, old_rows, new_rows = np.intersect1d(
        int64_column(table, USER_ID),
        events.columns[USER_ID],
        return_indices=True,
    )
    old = int64_column(table, "history_length")[old_rows]
    new = events.columns["num_rows"][new_rows]
    ratios = np.abs(np.log((new + 1) / (old + 1)))
    rows = np.argsort(-ratios, kind="stable")[:MAX_EXAMPLES]
    users = events.describe(new_rows[rows])
    return [
        f"{user}: {old[row]:,} events before, {new[row]:,} now"
        for row, user in zip(rows.tolist(), users, strict=True)
        if old[row] != new[row]
    ]


def _describe_changed_rates(
    targets: UserProfile,
    task: str,
    old: tuple[int, int],
    new: tuple[int, int],
) -> list[str]:
    """Name the users with most of the surplus, or lack, of positives."""
    sign = 1 if _rate(new) > _rate(old) else -1
    expected = _rate(old) * targets.columns["num_rows"]
    surplus = targets.columns[f"positives {task}"] - expected
    return targets.with_largest_weight(sign * surplus)
