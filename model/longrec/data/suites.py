"""Suites: what must hold of a dataset, made from its schema; a small profile table and bounds on its columns each.

Every rule bounds one column of a profile (`longrec.data.profiles`), so all of them are the same kind of expectation and read
alike in the report. Nothing here judges: `longrec.data.checks` does, with Great Expectations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data.history import LATEST_MS
from longrec.data.profiles import Column, ColumnFacts, Int, UserFacts, column_facts, integers, misfits, parts, quantiles, user_facts
from longrec.schema import BASKET_ID, CREATED, EVENT_SEQ, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

Severity: TypeAlias = Literal["critical", "warning"]
Culprits: TypeAlias = Callable[[], Sequence[str]]

MAX_CULPRITS = 10
EARLIEST_LIKELY_MS = 631_152_000_000
"""1990-01-01: logs before it exist, but seconds that were taken for milliseconds are likelier."""
MAX_REPEAT_SHARE = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One expectation: every value of one column of the profile lies within [minimum, maximum].

    Args:
        column: column of the suite's table.
        says: the rule in words.
        minimum, maximum: bounds; None for no bound.
        severity: whether a break stops the pipeline or is only reported.
        culprits: names at most ten rows to look at; called only when the rule is broken.
    """

    column: str
    says: str
    minimum: float | None = None
    maximum: float | None = None
    severity: Severity = "critical"
    culprits: Culprits | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Suite:
    """Rules on one profile table.

    Args:
        name: of the suite.
        table: columns of equal length; one row, or one row per user.
        rules: expectations on the columns.
        key: the column that names a row (`user_id`), or empty when there is one row.
    """

    name: str
    table: Mapping[str, Any]
    rules: Sequence[Rule]
    key: str = ""


class Row:
    """A one-row profile and its rules, while they are collected."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.rules: list[Rule] = []

    def add(self, column: str, says: str, value: Any, *, minimum: float | None = None, maximum: float | None = None,
            severity: Severity = "critical", culprits: Culprits | None = None) -> None:
        """Adds one value and its bounds."""
        self.values[column] = value
        self.rules.append(Rule(column, says, minimum, maximum, severity, culprits))

    def share(self, users: UserFacts, count: str, says: str, bound: float, severity: Severity = "critical") -> None:
        """Bounds the share of a per-user count in all rows; the users with the largest counts are the culprits."""
        column, value = count.removeprefix("num_").replace("_", " ") + ": share", users.total(count) / max(1, users.total("num_rows"))
        self.add(column, f"{'none' if not bound else 'few'} of the {says}", value, maximum=bound, severity=severity,
                 culprits=lambda: [f"user {user}" for user in users.worst(count, MAX_CULPRITS)])

    def suite(self, name: str) -> Suite:
        """Returns the suite."""
        return Suite(name, {column: [value] for column, value in self.values.items()}, tuple(self.rules))


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A table on disk that DuckDB sees as a view, and the column that names its rows."""

    connection: Any
    view: str
    columns: tuple[Column, ...]
    key: str

    @classmethod
    def of(cls, connection: Any, view: str, files: Path, columns: tuple[Column, ...], key: str) -> Source:
        """Returns the view on one or more Parquet files."""
        path = str(files).replace("'", "''")
        connection.execute(f"create or replace view {view} as select * from read_parquet('{path}')")  # noqa: S608
        return cls(connection, view, columns, key)

    def fetch(self, what: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Returns the rows of a query on the view; all names in it are ours or the schema's."""
        rows: list[tuple[Any, ...]] = self.connection.execute(f"select {what} from {self.view} {rest}").fetchall()  # noqa: S608
        return rows

    def culprits(self, predicate: str) -> Culprits:
        """Returns a call that names the first rows (by their key) for which a predicate holds."""
        name = self.key.removesuffix("_id")
        rest = f"where {predicate} order by 1 limit {MAX_CULPRITS}"
        return lambda: [f"{name} {row[0]}" for row in self.fetch(f"distinct {self.key}", rest) if row[0] is not None]


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """Sorted ids of the item table and of the user table, int64."""

    items: Int
    users: Int


def dataset_suites(dataset_dir: Path, head: Mapping[str, Any], checks: ChecksConfig, connection: Any) -> tuple[list[Suite], dict[str, Any]]:
    """Returns the suites of a dataset and the facts that head the report.

    Args:
        dataset_dir: the dataset.
        head: content of its dataset.json.
        checks: bounds.
        connection: DuckDB.

    Raises:
        DataError: a file is missing or not Parquet.
    """
    schema = Schema.from_dict(head["schema"])
    items = table_suite(connection, "items", dataset_dir / "items.parquet", item_columns(schema), ITEM_ID)
    users = table_suite(connection, "users", dataset_dir / "users.parquet", user_columns(schema), USER_ID)
    known = Known(known_ids(dataset_dir / "items.parquet", ITEM_ID), known_ids(dataset_dir / "users.parquet", USER_ID))
    events, event_users, event_facts = _event_suites(connection, dataset_dir / "events", head, checks, known)
    targets, target_facts = _target_suites(connection, dataset_dir / "targets", head, checks, known, event_users)
    facts = {**event_facts, **target_facts, "items": len(known.items), "user rows": len(known.users)}
    return [*events, *targets, items, users], facts


def table_suite(connection: Any, name: str, path: Path, columns: tuple[Column, ...], key: str) -> Suite:
    """Returns the suite of a table with one row per id."""
    if broken := _misfit_suite(name, [path], columns):
        return broken
    row, _ = _column_rules(Source.of(connection, name, path, columns, key))
    ids = integers(pq.read_table(path, columns=[key])[key])
    row.add("num_unsorted", f"{key} rises from row to row, each once", int((np.diff(ids) <= 0).sum()), maximum=0)
    return row.suite(name)


def label_rules(row: Row, schema: Schema, checks: ChecksConfig, rates: Sequence[float | None], where: str = "") -> None:
    """Adds the bounds of each task's mean label; None for a task without targets."""
    severity: Severity = "critical" if checks.check_label_rates else "warning"
    for task, rate in zip(schema.tasks, rates, strict=True):
        says = f"the rate of {task.name}{where} lies within the bounds of the task"
        row.add(f"{task.name}: rate{where}", says, rate, minimum=task.min_rate, maximum=task.max_rate, severity=severity)


def known_ids(path: Path, key: str) -> Int:
    """Returns the sorted distinct ids of a table, int64; none when it has no such column (its own suite says so)."""
    if misfits(path, [Column(key, "int64")]):
        return np.zeros(0, np.int64)
    return np.unique(integers(pq.read_table(path, columns=[key])[key]))


def spread(values: npt.NDArray[Any]) -> str | None:
    """Returns the quantiles of some counts as text."""
    return " · ".join(f"{name} {value:,.0f}" for name, value in quantiles(values).items()) or None


def item_columns(schema: Schema) -> tuple[Column, ...]:
    """Returns the columns of the item table."""
    return Column(ITEM_ID, "int64", 0.0, 0), *(Column.of(feature) for feature in schema.item[1:])


def user_columns(schema: Schema) -> tuple[Column, ...]:
    """Returns the columns of the user table."""
    return Column(USER_ID, "int64", 0.0, 0), *(Column.of(feature) for feature in schema.user if feature.name != USER_ID)


def _event_suites(connection: Any, directory: Path, head: Mapping[str, Any], checks: ChecksConfig,
                  known: Known) -> tuple[list[Suite], UserFacts | None, dict[str, Any]]:
    schema = Schema.from_dict(head["schema"])
    labels = tuple(Column(name, "int8", 1.0, 0, 1) for name in head.get("event_labels", ()))
    baskets = (Column(BASKET_ID, "int64"),) if schema.has_baskets else ()
    created = (Column(CREATED, "time", 0.0, 0, LATEST_MS),) if head.get("has_created") else ()
    columns = (*_moment_columns(EVENT_SEQ), *baskets, *created, *map(Column.of, schema.event), *labels)
    if broken := _misfit_suite("events", parts(directory), columns):
        return [broken], None, {}
    source = Source.of(connection, "events", directory / "*.parquet", columns, USER_ID)
    users = user_facts(parts(directory), EVENT_SEQ, known.items, has_baskets=schema.has_baskets)
    row, facts = _column_rules(source, head.get("facts", {}).get("num_events"))
    row.share(users, "num_duplicates", "events equal another one of the user in item, time and sequence", checks.max_duplicate_share)
    row.share(users, "num_repeats", "events repeat item and time of another one of the user", MAX_REPEAT_SHARE, "warning")
    row.share(users, "num_unknown_items", "events have an item that is not in the item table", checks.max_unknown_item_share)
    _user_row_rule(row, users, known)
    first, last = facts[TIMESTAMP].minimum, facts[TIMESTAMP].maximum
    row.add("first event: time (ms)", "the first event is after 1990; earlier ones hint at seconds taken for ms", first,
            minimum=EARLIEST_LIKELY_MS, severity="warning")
    about = {"events": row.values["num_rows"], "users": len(users), "first event": first, "last event": last,
             "events per user": spread(users.columns.get("num_rows", np.zeros(0)))}
    return [row.suite("events"), _timeline_suite("event timelines", users, schema.has_baskets)], users, about


def _target_suites(connection: Any, directory: Path, head: Mapping[str, Any], checks: ChecksConfig, known: Known,
                   event_users: UserFacts | None) -> tuple[list[Suite], dict[str, Any]]:
    schema = Schema.from_dict(head["schema"])
    columns = (*_moment_columns(REQUEST_ID), *(Column(task, "int8", 0.0, 0, 1) for task in schema.task_names))
    if broken := _misfit_suite("targets", parts(directory), columns):
        return [broken], {}
    source = Source.of(connection, "targets", directory / "*.parquet", columns, USER_ID)
    users = user_facts(parts(directory), REQUEST_ID, known.items)
    row, _ = _column_rules(source, head.get("facts", {}).get("num_targets"))
    num_requests = _request_rules(source, row)
    rates = source.fetch(", ".join(f'avg("{task}")' for task in schema.task_names))[0]
    label_rules(row, schema, checks, rates)
    row.share(users, "num_unknown_items", "targets have an item that is not in the item table", checks.max_unknown_item_share)
    row.share(users, "num_duplicates", "targets repeat an item of their request", MAX_REPEAT_SHARE, "warning")
    _user_row_rule(row, users, known)
    if event_users is not None:
        row.add("num_moved_users", "events and targets of a user lie in parts of one number", _num_moved(event_users, users), maximum=0)
    about = {"requests": num_requests, "targets": row.values["num_rows"],
             **{f"rate of {task}": rate for task, rate in zip(schema.task_names, rates, strict=True)}}
    return [row.suite("targets"), _timeline_suite("target order", users, False)], about


def _timeline_suite(name: str, users: UserFacts, has_baskets: bool) -> Suite:
    rules = [Rule("num_disordered", "rows of a user never go back in time or sequence", maximum=0),
             Rule("num_runs", "the rows of a user lie together in one part", maximum=1)]
    if has_baskets:
        rules.append(Rule("num_split_baskets", "a basket has a single time", maximum=0))
    return Suite(name, dict(users.columns), tuple(rules), USER_ID)


def _column_rules(source: Source, expected_rows: int | None = None) -> tuple[Row, dict[str, ColumnFacts]]:
    """The one-row profile of a table's columns and its rules: rows (as many as expected), null shares, bounds."""
    num_rows, facts = column_facts(source.connection, source.view, source.columns)
    row = Row()
    says = "the table has rows" if expected_rows is None else "the table has the rows that were counted when it was written"
    row.add("num_rows", says, num_rows, minimum=max(1, expected_rows or 1), maximum=expected_rows)
    for column in source.columns:
        _null_rule(row, source, column, facts[column.name])
        _bound_rules(row, source, column, facts[column.name])
    return row, facts


def _null_rule(row: Row, source: Source, column: Column, facts: ColumnFacts) -> None:
    if column.max_null_share >= 1:
        return
    null = f'"{column.name}" is null' + (f' or isnan("{column.name}")' if column.dtype == "float64" else "")
    says = f"{column.name} is {'never' if not column.max_null_share else 'seldom'} null"
    row.add(f"{column.name}: null share", says, facts.null_share, maximum=column.max_null_share, culprits=source.culprits(null))


def _bound_rules(row: Row, source: Source, column: Column, facts: ColumnFacts) -> None:
    value, unit = (f'epoch_ms("{column.name}")', " (ms)") if column.dtype == "time" else (f'"{column.name}"', "")
    if column.minimum is not None:
        row.add(f"{column.name}: least{unit}", f"{column.name} is never below its bound", facts.minimum, minimum=column.minimum,
                culprits=source.culprits(f"{value} < {column.minimum}"))
    if column.maximum is not None:
        row.add(f"{column.name}: largest{unit}", f"{column.name} is never above its bound", facts.maximum, maximum=column.maximum,
                culprits=source.culprits(f"{value} > {column.maximum}"))


def _request_rules(source: Source, row: Row) -> int:
    """Adds that a request has one user and one moment; returns the number of requests."""
    grouped = f"(select request_id, min(user_id) u, max(user_id) v, min(timestamp) t, max(timestamp) w from {source.view} group by 1)"  # noqa: S608
    requests = dataclasses.replace(source, view=grouped)
    num_requests = int(requests.fetch("count(*)")[0][0])
    for column, what, differs in (("num_mixed_requests", "user", "u <> v"), ("num_wide_requests", "moment", "t <> w")):
        def culprits(differs: str = differs) -> list[str]:
            rows = requests.fetch("request_id, u", f"where {differs} order by 1 limit {MAX_CULPRITS}")
            return [f"request {request} of user {user}" for request, user in rows]

        found = int(requests.fetch(f"count(*) filter ({differs})")[0][0])
        row.add(column, f"all targets of a request have the same {what}", found, maximum=0, culprits=culprits)
    return num_requests


def _user_row_rule(row: Row, users: UserFacts, known: Known) -> None:
    absent = np.setdiff1d(users.columns[USER_ID], known.users)
    row.add("num_users_without_row", "every user has a row in the user table", len(absent), maximum=0, severity="warning",
            culprits=lambda: [f"user {user}" for user in absent[:MAX_CULPRITS]])


def _misfit_suite(name: str, paths: Sequence[Path], columns: Sequence[Column]) -> Suite | None:
    """A suite that fails when a file lacks a column or holds it in another type; None when all fit."""
    lines = [f"{path.name}: {line}" for path in paths for line in misfits(path, columns)]
    if not lines:
        return None
    row = Row()
    row.add("num_misfits", "every file has the columns of the schema, in their types", len(lines), maximum=0,
            culprits=lambda: lines[:MAX_CULPRITS])
    return row.suite(name)


def _num_moved(events: UserFacts, targets: UserFacts) -> int:
    _, left, right = np.intersect1d(events.columns[USER_ID], targets.columns[USER_ID], return_indices=True)
    return int((events.columns["part"][left] != targets.columns["part"][right]).sum()) if len(left) else 0


def _moment_columns(order: str) -> tuple[Column, ...]:
    return (Column(USER_ID, "int64", 0.0, 0), Column(ITEM_ID, "int64", 0.0, 0), Column(TIMESTAMP, "time", 0.0, 0, LATEST_MS),
            Column(order, "int64", 0.0, 0))
