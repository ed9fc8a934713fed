"""Drift: how far a new version of the data lies from the version before. A profile of each, a few numbers between the two, a suite.

    dataset --profile()--> histogram of history lengths, label counts, id coverage --> manifest of the feature tables
                                       \\------- suite() <------- the published version before ------/

`psi` knows nothing of data sets: any two histograms over the same bins will do, for example of scores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data.dataset import Dataset, by_known_time, group_starts, history_lengths, int64_of
from longrec.data.quality.profiles import MAX_NAMED, Int, UserFacts, unknown
from longrec.data.quality.suites import Row, Severity, Suite
from longrec.errors import DataError
from longrec.reporting import page
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

LENGTH_EDGES = np.array([0, *(1 << power for power in range(21))], np.float64) + 0.5
"""Bins of history lengths: 0, 1, 2, 3 to 4, 5 to 8, ... up to 2**20, more."""
NOISE_ERRORS = 3.0
"""Standard errors that a rate may move by chance before its change counts."""

Counts = npt.NDArray[np.int64]


def psi(expected: npt.ArrayLike, observed: npt.ArrayLike) -> float:
    """Returns the population stability index of two histograms over the same bins: the sum of (o -
    e) ln(o / e) over their shares.

    0 for equal shares. By custom, below 0.1 nothing happened and above 0.25 much did. A bin that is
    empty on one side counts there as half
    a row, or as the other side's share where that is less, so that the index is finite; two empty
    histograms are equal.

    Args:
        expected, observed: counts per bin, not negative, of equal length.

    Raises:
        DataError: the lengths differ, a count is negative, or one histogram is empty and the other
            is not.
    """
    sides = [np.asarray(side, np.float64) for side in (expected, observed)]
    totals = [side.sum() for side in sides]
    if (
        sides[0].shape != sides[1].shape
        or any((side < 0).any() for side in sides)
        or (totals[0] == 0) != (totals[1] == 0)
    ):
        raise DataError(
            "two histograms cannot be compared",
            found=f"{sides[0].shape}, {sides[1].shape} bins, {totals} rows",
            expected="counts of some rows over the same bins",
        )
    used = (sides[0] > 0) | (sides[1] > 0)
    if not used.any():
        return 0.0
    e, o = (side[used] / total for side, total in zip(sides, totals, strict=True))
    e, o = (
        np.where(mine > 0, mine, np.minimum(0.5 / total, other))
        for mine, other, total in ((e, o, totals[0]), (o, e, totals[1]))
    )
    return float(((o - e) * np.log(o / e)).sum())


def psi_noise(expected: npt.ArrayLike, observed: npt.ArrayLike) -> float:
    """Returns the index that two samples of these sizes from one distribution have on average:
    (used bins - 1) (1/n + 1/m).
    """
    sides = [np.asarray(side, np.float64) for side in (expected, observed)]
    bins = int(((sides[0] > 0) | (sides[1] > 0)).sum())
    return float(max(bins - 1, 0) * sum(1 / max(side.sum(), 1) for side in sides))


def histogram(values: npt.ArrayLike, edges: npt.ArrayLike) -> Counts:
    """Returns the counts of values below the first edge, between each two, and from the last one
    on, int64 [len(edges) + 1].
    """
    places = np.searchsorted(np.asarray(edges), np.asarray(values), side="right")
    return np.bincount(places, minlength=len(np.asarray(edges)) + 1).astype(np.int64)


def quantile_edges(values: npt.ArrayLike, num_bins: int = 10) -> npt.NDArray[np.float64]:
    """Returns the inner edges of bins that hold about equally many values; fewer where values
    repeat.
    """
    return np.unique(np.quantile(np.asarray(values, np.float64), np.arange(1, num_bins) / num_bins))


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """What is compared between versions; it lies in the manifest of the feature tables.

    Args:
        lengths: requests by the length of their history, over the bins of `LENGTH_EDGES`.
        labels: task -> (positive targets, targets).
        coverage: `events`, `targets` -> (those with an item of the item table, all).
    """

    lengths: tuple[int, ...]
    labels: dict[str, tuple[int, int]]
    coverage: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, source: Dataset) -> Profile:
        """Returns the profile of a dataset, read one part at a time."""
        items, tasks = int64_of(source.items(), ITEM_ID), source.schema.task_names
        lengths, labels = np.zeros(len(LENGTH_EDGES) + 1, np.int64), np.zeros(len(tasks), np.int64)
        known, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
        for part in source.parts:
            events, targets = source.events(part), source.targets(part)
            for row, table in enumerate((events, targets)):
                total[row] += table.num_rows
                known[row] += table.num_rows - int(unknown(int64_of(table, ITEM_ID), items).sum())
            labels += [int(int64_of(targets, task).sum()) for task in tasks]
            lengths += histogram(_lengths(events, targets), LENGTH_EDGES)
        counts = {
            task: (int(positives), int(total[1]))
            for task, positives in zip(tasks, labels, strict=True)
        }
        return cls(
            tuple(lengths.tolist()),
            counts,
            {
                name: (int(known[row]), int(total[row]))
                for row, name in enumerate(("events", "targets"))
            },
        )

    @classmethod
    def merged(cls, shards: Sequence[Profile]) -> Profile:
        """Returns the profile of all shards of a dataset."""

        def total(pairs: Sequence[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
            return {
                name: (sum(each[name][0] for each in pairs), sum(each[name][1] for each in pairs))
                for name in pairs[0]
            }

        lengths = np.sum([shard.lengths for shard in shards], axis=0)
        return cls(
            tuple(lengths.tolist()),
            total([shard.labels for shard in shards]),
            total([shard.coverage for shard in shards]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Profile:
        """Returns the profile whose `to_dict()` is `value`."""
        pairs = [
            {name: (int(low), int(high)) for name, (low, high) in value[key].items()}
            for key in ("labels", "coverage")
        ]
        return cls(tuple(value["lengths"]), *pairs)


@dataclasses.dataclass(frozen=True, slots=True)
class Before:
    """The version before: its feature tables, their name for people, and their profile."""

    tables: Path
    name: str
    profile: Profile

    def items(self) -> Int:
        """Returns the sorted ids of its items."""
        return np.unique(
            int64_of(
                pq.read_table(self.tables / "item_features.parquet", columns=[ITEM_ID]), ITEM_ID
            )
        )


def suite(
    now: Profile, events: UserFacts, targets: UserFacts, before: Before, checks: ChecksConfig
) -> Suite:
    """Returns the suite that holds a dataset to the version before.

    Args:
        now: profile of the dataset.
        events, targets: what was measured of its users (`profiles.user_facts`), with the labels,
            and with the items of the version before.
        before: what it is compared with.
        checks: bounds; a break is critical unless `checks.check_drift` is off. What chance alone
            would do is added to a bound.
    """
    severity: Severity = "critical" if checks.check_drift else "warning"
    row, then = Row(), before.profile
    row.add(
        "history lengths: PSI",
        "the lengths of the histories are distributed as in the version before",
        psi(then.lengths, now.lengths),
        maximum=checks.max_psi + psi_noise(then.lengths, now.lengths),
        severity=severity,
        culprits=lambda: _resized(events, before),
    )
    for task, counts in now.labels.items():
        change, noise = _rate_change(then.labels[task], counts)
        row.add(
            f"{task}: change of the rate",
            f"the rate of {task} is about that of the version before, {_rate(then.labels[task]):.4g}",
            change,
            maximum=checks.max_rate_change + noise,
            severity=severity,
            culprits=functools.partial(
                _shifted, targets, task, then.labels[task], now.labels[task]
            ),
        )
    for name, counts in now.coverage.items():
        says = f"as many of the {name} have an item of the item table as in the version before, {100 * _rate(then.coverage[name]):.4g} %"
        strangers = events if name == "events" else targets
        row.add(
            f"{name} with a known item: lost share",
            says,
            _rate(then.coverage[name]) - _rate(counts),
            maximum=checks.max_coverage_loss,
            severity=severity,
            culprits=functools.partial(strangers.worst, "num_unknown_items"),
        )
    share = targets.total("num_new_items") / max(now.coverage["targets"][1], 1)
    row.add(
        "new items: share",
        "few of the targets have an item that the version before did not know",
        share,
        maximum=checks.max_new_item_share,
        severity=severity,
        culprits=lambda: targets.worst("num_new_items"),
    )
    return row.suite("drift")


def section(now: Profile, before: Before | None, why: str) -> page.Html:
    """Returns the part of the report that shows both versions side by side; `why` there is nothing
    to compare with.
    """
    if before is None:
        return page.section("Version before", note=why)
    totals = [max(sum(side.lengths), 1) for side in (before.profile, now)]
    bounds = ["0", *(f"{1 << power:,}" for power in range(21)), f"more than {1 << 20:,}"]
    lengths = [
        [
            bound,
            *(f"{100 * count / total:.2f} %" for count, total in zip(counts, totals, strict=True)),
        ]
        for bound, *counts in zip(bounds, before.profile.lengths, now.lengths, strict=True)
        if any(counts)
    ]
    shares = [
        [
            f"{name} {kind}",
            *(f"{100 * _rate(getattr(side, group)[name]):.4g} %" for side in (before.profile, now)),
        ]
        for group, kind in (("labels", "positive"), ("coverage", "with a known item"))
        for name in getattr(now, group)
    ]
    headers = ["before", "now"]
    return page.section(
        "Version before",
        page.table(["Requests with a history of up to", *headers], lengths),
        page.table(["Share of", *headers], shares),
        note=f"Compared with {before.name}.",
    )


def _lengths(events: pa.Table, targets: pa.Table) -> Int:
    """Returns the events before each request of a part, int64 [R]."""
    starts = group_starts(*(int64_of(targets, name) for name in (USER_ID, REQUEST_ID)))
    owners, request_times = (int64_of(targets, name)[starts] for name in (USER_ID, TIMESTAMP))
    return history_lengths(*by_known_time(events), owners, request_times)


def _rate(counts: tuple[int, int]) -> float:
    return counts[0] / max(counts[1], 1)


def _rate_change(then: tuple[int, int], now: tuple[int, int]) -> tuple[float, float]:
    """Returns |difference of two rates| as a share of the rarer outcome of the first one, and what
    of it may be chance.
    """
    rate = _rate(then)
    rarer = max(min(rate, 1 - rate), 1 / max(then[1], 1))
    error = np.sqrt(
        max(rate * (1 - rate), rarer / max(then[1], 1)) * (1 / max(then[1], 1) + 1 / max(now[1], 1))
    )
    return abs(_rate(now) - rate) / rarer, float(NOISE_ERRORS * error / rarer)


def _resized(events: UserFacts, before: Before) -> list[str]:
    """Names the users whose timelines grew or shrank most, by the ratio."""
    then = pq.read_table(before.tables / "user_history", columns=[USER_ID, "history_length"])
    _, left, right = np.intersect1d(
        int64_of(then, USER_ID), events.columns[USER_ID], return_indices=True
    )
    old, new = int64_of(then, "history_length")[left], events.columns["num_rows"][right]
    order = np.argsort(-np.abs(np.log((new + 1) / (old + 1))), kind="stable")[:MAX_NAMED]
    named = zip(order.tolist(), events.names(right[order]), strict=True)
    return [
        f"{user}: {old[row]:,} events before, {new[row]:,} now"
        for row, user in named
        if old[row] != new[row]
    ]


def _shifted(
    targets: UserFacts, task: str, then: tuple[int, int], now: tuple[int, int]
) -> list[str]:
    """Names the users who have most of the surplus (or lack) of positives."""
    sign = 1 if _rate(now) > _rate(then) else -1
    return targets.most(
        sign * (targets.columns[f"positives {task}"] - _rate(then) * targets.columns["num_rows"])
    )
