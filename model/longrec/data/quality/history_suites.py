"""Suites of histories: no future, no split basket, and the expected sizes and label rates."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data.columns import Int64
from longrec.data.histories import SPLITS, SPLITS_BY_TIME
from longrec.data.quality.column_profiles import MAX_EXAMPLES
from longrec.data.quality.dataset_profiles import (
    item_columns,
    known_ids,
    profile_entities,
    user_columns,
)
from longrec.data.quality.dataset_suites import (
    entity_suite,
    expect_label_rates,
    sorted_id_check,
    unique_id_check,
)
from longrec.data.quality.expectations import (
    Expectation,
    Suite,
    SuiteBuilder,
    column_expectations,
    mismatch_suite,
)
from longrec.data.quality.history_profiles import (
    CheckedRequests,
    event_columns,
    read_timelines,
    table_mismatches,
)
from longrec.data.quality.table_profile import TableProfile
from longrec.data.quality.user_profiles import (
    NULL,
    UserProfile,
    is_unknown,
    quantiles_in_words,
    to_int64,
)
from longrec.data.timelines import Mask
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema
from longrec.times import END_MS

EVALUATED_SPLITS = ("train", "eval")
SPLIT_ORDER = tuple(itertools.combinations(SPLITS_BY_TIME, 2))
"""Pairs of splits; all requests of the first are before those of the second."""
TARGETS_PER_BATCH = 1 << 22


def suites_of_histories(
    directory: Path,
    manifest: Mapping[str, Any],
    checks: ChecksConfig,
    *,
    connection: Any,
    profiles: Mapping[str, TableProfile],
) -> tuple[list[Suite], dict[str, Any]]:
    """Return the suites of histories and the facts at the head of the report.

    Args:
        directory: the histories; their timelines are not read.
        manifest: content of its manifest.json.
        checks: bounds.
        connection: a DuckDB connection.
        profiles: table -> its profile, merged from all shards.

    Raises:
        DataError: a file is missing or unreadable.
    """
    schema = Schema.from_dict(manifest["schema"])
    events = profiles["events"]
    entities = _entity_suites(directory, schema, connection)
    num_events = events.counts["num_rows"]
    mismatches = events.mismatches or table_mismatches(directory, schema)
    if mismatches:
        return [mismatch_suite("structure", mismatches), *entities], {"events": num_events}
    users = read_timelines(directory)
    requests = CheckedRequests.read(directory / "requests.parquet", users)
    known = known_ids(directory / "items.parquet", ITEM_ID)
    targets = TargetStatistics.read(
        directory / "targets.parquet",
        schema,
        requests,
        known,
    )
    is_by_user = manifest.get("split") == "user"
    request_suite, request_facts = _request_suite(requests, targets, checks, is_by_user=is_by_user)
    suites = [
        _event_suite(schema, checks, events),
        _timeline_suite(profiles["timelines"].users),
        _history_suite(profiles["histories"].users, has_baskets=schema.has_baskets),
        request_suite,
        *entities,
    ]
    facts = {
        "events": num_events,
        "users": len(users[USER_ID]),
        "items": len(known),
        **request_facts,
    }
    return suites, facts


def _entity_suites(
    directory: Path,
    schema: Schema,
    connection: Any,
) -> list[Suite]:
    """Return the suites of items and users; users are in the order of the timelines."""
    items = item_columns(schema)
    users = user_columns(schema)
    item_profile = profile_entities(
        connection,
        directory / "items.parquet",
        items,
        ITEM_ID,
    )
    user_profile = profile_entities(
        connection,
        directory / "users.parquet",
        users,
        USER_ID,
    )
    return [
        entity_suite(
            "items",
            item_profile,
            items,
            sorted_id_check(ITEM_ID),
        ),
        entity_suite(
            "users",
            user_profile,
            users,
            unique_id_check(USER_ID),
        ),
    ]


def _event_suite(
    schema: Schema,
    checks: ChecksConfig,
    profile: TableProfile,
) -> Suite:
    suite = SuiteBuilder()
    num_events = profile.counts["num_rows"]
    suite.add(Expectation("num_rows", "there are events", minimum=1), num_events)
    for column in event_columns(schema):
        for found in column_expectations(column, profile.columns[column.name]):
            suite.add(found.expectation, found.value)
    unknown_items = Expectation(
        "unknown items: share",
        "few of the events have an item that is not in the item table",
        maximum=checks.max_unknown_item_share,
        unit="share",
    )
    suite.add(unknown_items, profile.counts["num_unknown_items"] / max(1, num_events))
    return suite.build("events in timelines")


def _timeline_suite(users: UserProfile) -> Suite:
    expectations = (
        Expectation(
            "num_outside",
            "the timeline of a user is inside the file",
            maximum=0,
        ),
        Expectation(
            "num_gaps",
            "timelines of users follow each other without gap or overlap",
            maximum=0,
        ),
        Expectation(
            "num_disordered",
            "events of a user never go back in time or sequence",
            maximum=0,
        ),
    )
    return Suite(
        "timelines",
        dict(users.columns),
        expectations,
        USER_ID,
    )


def _history_suite(users: UserProfile, *, has_baskets: bool) -> Suite:
    descriptions = {
        "num_future": "no history holds an event at or after its request time",
        "num_outside": "a history is inside the timeline of its user",
        "num_too_long": "no history is longer than max_history",
        "num_short": "a history leaves out no event just before its request",
        "num_late_starts": "a history shorter than max_history starts with the timeline",
    }
    if has_baskets:
        descriptions["num_split_baskets"] = "no request time splits a basket"
    expectations = [
        Expectation(column, description, maximum=0) for column, description in descriptions.items()
    ]
    return Suite(
        "histories",
        dict(users.columns),
        expectations,
        USER_ID,
    )


def _request_suite(
    requests: CheckedRequests,
    targets: TargetStatistics,
    checks: ChecksConfig,
    *,
    is_by_user: bool,
) -> tuple[Suite, dict[str, Any]]:
    """Return the suite of requests and targets, and their facts.

    Args:
        requests: the requests.
        targets: statistics of their targets.
        checks: bounds.
        is_by_user: whether the splits are in the order of time within each user only.
    """
    suite = SuiteBuilder()
    times = requests.columns[TIMESTAMP]
    lengths = requests.columns["event_end"] - requests.columns["event_start"]
    _expect_request_rows(suite, requests)
    longest = Expectation(
        "longest history",
        "the longest history has enough events",
        minimum=checks.min_history,
    )
    suite.add(longest, int(lengths.max(initial=0)))
    num_requests = _expect_splits(suite, requests, checks)
    owners = requests.columns["user_row"] if is_by_user else np.zeros(len(requests), np.int64)
    _expect_split_order(suite, requests, owners)
    _expect_targets(suite, requests, targets, checks)
    facts = {
        "first request": int(times.min()) if len(times) else None,
        "last request": int(times.max()) if len(times) else None,
        "history length": quantiles_in_words(lengths),
        **_split_facts(requests, num_requests, targets.totals.num_targets),
        "targets": targets.num_targets,
        **targets.rates(),
    }
    return suite.build("requests"), facts


def _expect_request_rows(suite: SuiteBuilder, requests: CheckedRequests) -> None:
    """Add the expectations on users, order and ids of the requests."""
    times = requests.columns[TIMESTAMP]
    suite.add(
        Expectation(
            "num_rows",
            "there are requests",
            minimum=1,
        ),
        len(requests),
    )
    suite.expect_none(
        "num_requests_without_user",
        "every request names a user",
        int((~requests.has_user).sum()),
    )
    suite.expect_none(
        "num_unsorted",
        "requests are in the order of time",
        int((np.diff(times) < 0).sum()),
    )
    suite.expect_none(
        "num_repeated",
        "every request_id occurs once",
        len(requests) - len(np.unique(requests.columns[REQUEST_ID])),
    )


def _expect_splits(
    suite: SuiteBuilder,
    requests: CheckedRequests,
    checks: ChecksConfig,
) -> dict[str, int]:
    """Add the expectations on the splits; return the number of requests of each."""
    counts = {split: int((requests.splits == split).sum()) for split in SPLITS}
    suite.expect_none(
        "num_unknown_splits",
        f"every split is one of {', '.join(SPLITS)}",
        len(requests) - sum(counts.values()),
    )
    for split in EVALUATED_SPLITS:
        expectation = Expectation(
            f"{split} requests",
            f"the split {split} has enough requests",
            minimum=checks.min_requests,
        )
        suite.add(expectation, counts[split])
    return counts


def _split_facts(
    requests: CheckedRequests,
    num_requests: Mapping[str, int],
    num_targets: Mapping[str, int],
) -> dict[str, int]:
    """Return the numbers of requests, targets and users of each split."""
    facts = {}
    for split in SPLITS_BY_TIME:
        users = requests.columns["user_row"][requests.splits == split]
        facts[f"{split} requests"] = num_requests[split]
        facts[f"{split} targets"] = num_targets[split]
        facts[f"{split} users"] = len(np.unique(users))
    return facts


def _expect_split_order(
    suite: SuiteBuilder,
    requests: CheckedRequests,
    owners: Int64,
) -> None:
    """Add the expectations on the times of the splits.

    Args:
        suite: gets the expectations.
        requests: the requests.
        owners: int64 [R]; only requests with equal ones are compared.
    """
    for earlier, later in SPLIT_ORDER:
        is_earlier = requests.splits == earlier
        is_later = requests.splits == later
        if not is_earlier.any() or not is_later.any():
            continue
        first_later = _first_times(requests, owners, is_later)
        gaps = first_later - requests.columns[TIMESTAMP]
        is_late = is_earlier & (gaps <= 0)
        expectation = Expectation(
            f"{earlier} to {later}: gap in ms",
            f"every {earlier} request is before the first {later} request",
            minimum=1,
            failed_rows=functools.partial(  # a lambda would see the last pair of the loop
                _describe_requests,
                requests,
                is_late,
            ),
        )
        suite.add(expectation, int(gaps[is_earlier].min()))


def _first_times(
    requests: CheckedRequests,
    owners: Int64,
    is_chosen: Mask,
) -> Int64:
    """Return the time of the owner's first chosen request, int64 [R].

    It is the largest time where an owner has none.
    """
    _, codes = np.unique(owners, return_inverse=True)
    first_times = np.full(codes.max() + 1, END_MS)
    times = requests.columns[TIMESTAMP]
    np.minimum.at(first_times, codes[is_chosen], times[is_chosen])
    return first_times[codes]


def _describe_requests(requests: CheckedRequests, mask: Mask) -> list[str]:
    ids = requests.columns[REQUEST_ID][mask][:MAX_EXAMPLES]
    return [f"request {request}" for request in ids]


def _expect_targets(
    suite: SuiteBuilder,
    requests: CheckedRequests,
    targets: TargetStatistics,
    checks: ChecksConfig,
) -> None:
    """Add the expectations on the targets."""
    totals = targets.totals
    _expect_target_spans(suite, requests, targets.num_targets)
    suite.expect_none(
        "num_null_items",
        "every target has an item",
        totals.num_null_items,
    )
    unknown_items = Expectation(
        "unknown target items: share",
        "few of the targets have an item that is not in the item table",
        maximum=checks.max_unknown_item_share,
        unit="share",
    )
    suite.add(unknown_items, totals.num_unknown_items / max(1, targets.num_targets))
    suite.expect_none(
        "num_other_labels",
        "labels are 0 or 1",
        totals.num_other_labels,
    )
    for split in EVALUATED_SPLITS:
        rates = totals.rates_in(split)
        expect_label_rates(
            suite,
            targets.schema,
            checks,
            rates,
            split=split,
        )


def _expect_target_spans(
    suite: SuiteBuilder,
    requests: CheckedRequests,
    num_targets: int,
) -> None:
    """Add the expectations on the span of targets of each request."""
    starts = requests.columns["target_start"]
    ends = requests.columns["target_end"]
    is_outside = (starts < 0) | (ends > num_targets) | (ends <= starts)
    suite.add(
        Expectation(
            "num_targets",
            "there are targets",
            minimum=1,
        ),
        num_targets,
    )
    suite.expect_none(
        "num_target_spans_outside",
        "every request has targets inside the table",
        int(is_outside.sum()),
        failed_rows=lambda: _describe_requests(requests, is_outside),
    )
    suite.expect_none(
        "num_target_gaps",
        "every target belongs to one request",
        _count_target_gaps(starts, ends, num_targets),
    )


def _count_target_gaps(
    starts: Int64,
    ends: Int64,
    num_targets: int,
) -> int:
    """Return how often the targets of two requests, sorted by start, do not follow each other.

    Targets before the first request or after the last one count as one gap each.
    """
    order = np.argsort(starts, kind="stable")
    next_starts = starts[order][1:]
    num_gaps = int((next_starts != ends[order][:-1]).sum())
    if starts.min(initial=0) != 0:
        num_gaps += 1
    if ends.max(initial=0) != num_targets:
        num_gaps += 1
    return num_gaps


@dataclasses.dataclass(slots=True)
class TargetTotals:
    """Sums over the targets.

    Args:
        num_null_items, num_unknown_items, num_other_labels: numbers of wrong values.
        num_targets: split -> number of its targets.
        num_positives: split -> number of positives of each task, int64 [K].
    """

    num_null_items: int
    num_unknown_items: int
    num_other_labels: int
    num_targets: dict[str, int]
    num_positives: dict[str, Int64]

    @classmethod
    def zero(cls, num_tasks: int) -> TargetTotals:
        """Return the totals of no targets."""
        return cls(
            num_null_items=0,
            num_unknown_items=0,
            num_other_labels=0,
            num_targets=dict.fromkeys(SPLITS, 0),
            num_positives={split: np.zeros(num_tasks, np.int64) for split in SPLITS},
        )

    def rates_in(self, split: str) -> list[float | None]:
        """Return the mean label of each task in a split; None without targets."""
        num_targets = self.num_targets[split]
        counts = self.num_positives[split].tolist()
        if not num_targets:
            return [None] * len(counts)
        return [count / num_targets for count in counts]


class TargetStatistics:
    """Statistics of the targets of all requests.

    Args:
        schema: features and tasks.
        num_targets: number of all targets.
    """

    def __init__(self, schema: Schema, num_targets: int) -> None:
        self.schema = schema
        self.num_targets = num_targets
        self.totals = TargetTotals.zero(len(schema.tasks))

    @classmethod
    def read(
        cls,
        path: Path,
        schema: Schema,
        requests: CheckedRequests,
        known_items: Int64,
    ) -> TargetStatistics:
        """Return the statistics of a file, read some rows at a time.

        Args:
            path: targets.parquet.
            schema: features and tasks.
            requests: the requests.
            known_items: sorted ids of the item table.
        """
        statistics = cls(schema, int(pq.read_metadata(path).num_rows))
        splits = _split_of_targets(requests, statistics.num_targets)
        start = 0
        with pq.ParquetFile(path) as file:
            columns = [ITEM_ID, *schema.task_names]
            for batch in file.iter_batches(TARGETS_PER_BATCH, columns=columns):
                end = start + batch.num_rows
                labels = [to_int64(batch.column(task)) for task in schema.task_names]
                items = to_int64(batch.column(ITEM_ID))
                statistics._count_items(items, known_items)
                statistics._count_labels(np.stack(labels, axis=1), splits[start:end])
                start = end
        return statistics

    def rates(self) -> dict[str, float]:
        """Return the mean label of each task over all splits, as facts of the report."""
        positives = np.sum(list(self.totals.num_positives.values()), axis=0)
        rates = positives / max(1, sum(self.totals.num_targets.values()))
        names = [f"rate of {task}" for task in self.schema.task_names]
        return dict(zip(names, rates.tolist(), strict=True))

    def _count_items(self, items: Int64, known_items: Int64) -> None:
        self.totals.num_null_items += int((items == NULL).sum())
        self.totals.num_unknown_items += int(is_unknown(items, known_items).sum())

    def _count_labels(self, labels: Int64, splits: npt.NDArray[np.int8]) -> None:
        is_other = (labels != 0) & (labels != 1)
        self.totals.num_other_labels += int(is_other.sum())
        for code, split in enumerate(SPLITS):
            labels_of_split = labels[splits == code]
            self.totals.num_targets[split] += len(labels_of_split)
            self.totals.num_positives[split] += (labels_of_split == 1).sum(axis=0)


def _split_of_targets(requests: CheckedRequests, num_targets: int) -> npt.NDArray[np.int8]:
    """Return the position in SPLITS of each target's split, int8 [P]; -1 for none."""
    starts = np.clip(
        requests.columns["target_start"],
        0,
        num_targets,
    )
    ends = np.clip(
        requests.columns["target_end"],
        0,
        num_targets,
    )
    ends = np.maximum(starts, ends)
    codes = np.full(num_targets, -1, np.int8)
    for code, split in enumerate(SPLITS):
        # +1 at each start and -1 at each end: the running sum is the number of requests of the
        # split that cover a target.
        is_in_split = requests.splits == split
        steps = np.zeros(num_targets + 1, np.int64)
        np.add.at(steps, starts[is_in_split], 1)
        np.add.at(steps, ends[is_in_split], -1)
        num_requests = np.cumsum(steps)[:-1]
        codes[num_requests > 0] = code
    return codes
