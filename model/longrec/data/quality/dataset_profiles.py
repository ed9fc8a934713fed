"""Profiles of a dataset, or of one shard of it: events, targets, items and users.

DuckDB aggregates the columns. The parts are read one at a time, so the memory is one part and
one row per user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from longrec.data.columns import Int64
from longrec.data.quality.column_profiles import (
    MAX_EXAMPLES,
    ExpectedColumn,
    TableView,
    file_mismatches,
)
from longrec.data.quality.expectations import column_expectations
from longrec.data.quality.table_profile import TableProfile
from longrec.data.quality.user_profiles import UserProfile, profile_users, to_int64
from longrec.data.shards import WHOLE_DATASET, Shard, part_name
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    ITEM_ID,
    REQUEST_ID,
    TIMESTAMP,
    USER_ID,
    Schema,
)
from longrec.times import EARLIEST_MS, END_MS

REQUESTS_QUERY = """(
    select
        request_id,
        min(user_id) as first_user,
        max(user_id) as last_user,
        min(timestamp) as first_time,
        max(timestamp) as last_time
    from {targets} group by request_id
)"""
MIXED_REQUESTS = {
    "num_requests_with_many_users": "first_user <> last_user",
    "num_requests_with_many_times": "first_time <> last_time",
}
"""Count of requests -> SQL predicate of the requests that it counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class KnownIds:
    """Ids of the item table and of the user table, sorted, int64."""

    items: Int64
    users: Int64


def profile_dataset(
    directory: Path,
    metadata: Mapping[str, Any],
    connection: Any,
    *,
    shard: Shard = WHOLE_DATASET,
    previous_items: Int64 | None = None,
) -> dict[str, TableProfile]:
    """Return the profiles of the tables of a dataset.

    Args:
        directory: the dataset.
        metadata: content of its dataset.json.
        connection: a DuckDB connection.
        shard: the shard of events and targets; items and users come with the first shard.
        previous_items: sorted item ids of the previous version; None without one.

    Raises:
        DataError: a file is missing or not Parquet.
    """
    schema = Schema.from_dict(metadata["schema"])
    items_path = directory / "items.parquet"
    users_path = directory / "users.parquet"
    profiler = _Profiler(
        connection,
        metadata,
        known=KnownIds(known_ids(items_path, ITEM_ID), known_ids(users_path, USER_ID)),
    )
    event_parts = _part_paths(directory / "events", metadata, shard)
    target_parts = _part_paths(directory / "targets", metadata, shard)
    profiles = {
        "events": profiler.profile_events(event_parts),
        "targets": profiler.profile_targets(target_parts, previous_items),
    }
    if shard.index == 0:
        items = item_columns(schema)
        users = user_columns(schema)
        profiles["items"] = profile_entities(
            connection,
            items_path,
            items,
            ITEM_ID,
        )
        profiles["users"] = profile_entities(
            connection,
            users_path,
            users,
            USER_ID,
        )
    return profiles


def profile_entities(
    connection: Any,
    path: Path,
    columns: tuple[ExpectedColumn, ...],
    key: str,
) -> TableProfile:
    """Return the profile of a table with one row per id.

    Args:
        connection: a DuckDB connection.
        path: the Parquet file.
        columns: columns that it must have.
        key: the column of ids.
    """
    mismatches = _mismatches([path], columns)
    if mismatches:
        return TableProfile(mismatches=mismatches)
    view = TableView.create(
        connection,
        path.stem,
        [path],
        columns=columns,
        key=key,
    )
    profile = _profile_columns(view)
    ids = to_int64(pq.read_table(path, columns=[key])[key])
    num_known = len(np.unique(ids))
    id_counts = {
        "num_unsorted": int((np.diff(ids) <= 0).sum()),
        "num_repeated": len(ids) - num_known,
        "num_known": num_known,
    }
    return dataclasses.replace(profile, counts={**profile.counts, **id_counts})


def known_ids(path: Path, key: str) -> Int64:
    """Return the different ids of a table, sorted, int64.

    There are none when the table has no such column; its own suite reports that.
    """
    if file_mismatches(path, [ExpectedColumn(key, "int64")]):
        return np.zeros(0, np.int64)
    return np.unique(to_int64(pq.read_table(path, columns=[key])[key]))


def list_parts(directory: Path) -> list[Path]:
    """Return the Parquet parts in a directory, sorted by name.

    Raises:
        DataError: there are none.
    """
    paths = sorted(directory.glob("*.parquet"))
    if not paths:
        raise DataError(
            f"{directory} holds no table",
            expected="part-00000.parquet",
            fix="Run the import again.",
        )
    return paths


def item_columns(schema: Schema) -> tuple[ExpectedColumn, ...]:
    """Return the columns of the item table."""
    features = [ExpectedColumn.of(feature) for feature in schema.item[1:]]
    return ExpectedColumn(ITEM_ID, "int64", minimum=0), *features


def user_columns(schema: Schema) -> tuple[ExpectedColumn, ...]:
    """Return the columns of the user table."""
    features = [feature for feature in schema.user if feature.name != USER_ID]
    columns = [ExpectedColumn.of(feature) for feature in features]
    return (ExpectedColumn(USER_ID, "int64", minimum=0), *columns)


def event_columns(metadata: Mapping[str, Any]) -> tuple[ExpectedColumn, ...]:
    """Return the columns of events/."""
    schema = Schema.from_dict(metadata["schema"])
    columns = list(_key_columns(EVENT_SEQ))
    if schema.has_baskets:
        columns.append(ExpectedColumn(BASKET_ID, "int64"))
    if metadata.get("has_created"):
        columns.append(_time_column(CREATED))
    columns += [ExpectedColumn.of(feature) for feature in schema.event]
    for name in metadata.get("event_labels", ()):
        columns.append(
            ExpectedColumn(
                name,
                "int8",
                max_null_share=1.0,
                minimum=0,
                maximum=1,
            )
        )
    return tuple(columns)


def target_columns(schema: Schema) -> tuple[ExpectedColumn, ...]:
    """Return the columns of targets/."""
    labels = [ExpectedColumn(task, "int8", minimum=0, maximum=1) for task in schema.task_names]
    return (*_key_columns(REQUEST_ID), *labels)


def _key_columns(order_column: str) -> tuple[ExpectedColumn, ...]:
    return (
        ExpectedColumn(USER_ID, "int64", minimum=0),
        ExpectedColumn(ITEM_ID, "int64", minimum=0),
        _time_column(TIMESTAMP),
        ExpectedColumn(order_column, "int64", minimum=0),
    )


def _time_column(name: str) -> ExpectedColumn:
    return ExpectedColumn(
        name,
        "time",
        minimum=EARLIEST_MS,
        maximum=END_MS - 1,
    )


class _Profiler:
    """Profiler of the parts of events and targets.

    Args:
        connection: a DuckDB connection.
        metadata: content of dataset.json.
        known: ids of the item and user tables.
    """

    def __init__(
        self,
        connection: Any,
        metadata: Mapping[str, Any],
        *,
        known: KnownIds,
    ) -> None:
        self.connection = connection
        self.metadata = metadata
        self.schema = Schema.from_dict(metadata["schema"])
        self.known = known

    def profile_events(self, paths: Mapping[int, Path]) -> TableProfile:
        """Return the profile of the events in some parts, by number."""
        columns = event_columns(self.metadata)
        mismatches = _mismatches(list(paths.values()), columns)
        if mismatches or not paths:
            return TableProfile(mismatches=mismatches)
        view = self._view("events", paths, columns)
        users = profile_users(
            paths,
            EVENT_SEQ,
            self.known.items,
            has_baskets=self.schema.has_baskets,
        )
        return self._with_users(_profile_columns(view), users)

    def profile_targets(
        self,
        paths: Mapping[int, Path],
        previous_items: Int64 | None,
    ) -> TableProfile:
        """Return the profile of the targets in some parts, by number."""
        columns = target_columns(self.schema)
        mismatches = _mismatches(list(paths.values()), columns)
        if mismatches or not paths:
            return TableProfile(mismatches=mismatches)
        view = self._view("targets", paths, columns)
        profile = _profile_columns(view)
        request_counts, mixed_requests = _profile_requests(view)
        profile = dataclasses.replace(
            profile,
            counts={
                **profile.counts,
                **request_counts,
                **_count_labels(view, self.schema.task_names),
            },
            failed_rows={**profile.failed_rows, **mixed_requests},
        )
        users = profile_users(
            paths,
            REQUEST_ID,
            self.known.items,
            labels=self.schema.task_names,
            previous_items=previous_items,
        )
        return self._with_users(profile, users)

    def _view(
        self,
        name: str,
        paths: Mapping[int, Path],
        columns: tuple[ExpectedColumn, ...],
    ) -> TableView:
        return TableView.create(
            self.connection,
            name,
            list(paths.values()),
            columns=columns,
            key=USER_ID,
        )

    def _with_users(self, profile: TableProfile, users: UserProfile) -> TableProfile:
        """Return the profile with its users; count those that the user table lacks."""
        absent = np.setdiff1d(users.columns[USER_ID], self.known.users)
        examples = [(user, f"user {user}") for user in absent[:MAX_EXAMPLES].tolist()]
        column = "num_users_without_row"
        return dataclasses.replace(
            profile,
            counts={**profile.counts, column: len(absent)},
            failed_rows={**profile.failed_rows, column: examples},
            users=users,
        )


def _profile_columns(view: TableView) -> TableProfile:
    """Return rows and columns of a table, and failed rows of each failed expectation."""
    num_rows, profiles = view.profile_columns()
    failed_rows = {}
    for column in view.columns:
        for found in column_expectations(column, profiles[column.name]):
            if not found.expectation.is_met_by(found.value):
                rows = view.failed_rows(found.failed_predicate)
                failed_rows[found.expectation.column] = rows
    return TableProfile(
        profiles,
        {"num_rows": num_rows},
        failed_rows,
    )


def _count_labels(targets: TableView, tasks: Sequence[str]) -> dict[str, int]:
    """Return `positives TASK` and `labels TASK`: the positives and the labels of each task."""
    counts = {}
    for task in tasks:
        rows = targets.select(f'sum("{task}"), count("{task}")')
        num_positives, num_labels = rows[0]
        counts[f"positives {task}"] = int(num_positives or 0)  # the sum of no rows is null
        counts[f"labels {task}"] = int(num_labels)
    return counts


def _profile_requests(
    targets: TableView,
) -> tuple[dict[str, int], dict[str, list[tuple[int, str]]]]:
    """Return the number of requests and of those with several users or times, and failed rows."""
    query = REQUESTS_QUERY.format(targets=targets.name)
    requests = dataclasses.replace(targets, name=query)  # a view may be any SQL relation
    counts = {"num_requests": requests.select_count("count(*)")}
    failed_rows = {}
    for name, predicate in MIXED_REQUESTS.items():
        counts[name] = requests.select_count(f"count(*) filter ({predicate})")
        if counts[name]:
            clauses = f"where {predicate} order by 1 limit {MAX_EXAMPLES}"
            examples = requests.select("request_id, first_user", clauses)
            failed_rows[name] = [
                (request or 0, f"request {request} of user {user}")  # a null id sorts as 0
                for request, user in examples
            ]
    return counts, failed_rows


def _part_paths(
    directory: Path,
    metadata: Mapping[str, Any],
    shard: Shard,
) -> dict[int, Path]:
    """Return the parts of a shard by number.

    Of the whole dataset these are all files in the directory, even if dataset.json
    names others; expectations compare the numbers of rows.
    """
    if shard == WHOLE_DATASET:
        return dict(enumerate(list_parts(directory)))
    numbers = shard.parts(int(metadata["facts"]["num_parts"]))
    return {number: directory / part_name(number) for number in numbers}


def _mismatches(paths: Sequence[Path], columns: Sequence[ExpectedColumn]) -> list[str]:
    return [f"{path.name}: {line}" for path in paths for line in file_mismatches(path, columns)]
