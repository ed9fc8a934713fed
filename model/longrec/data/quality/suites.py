"""Suites: what must hold of a dataset, made from its schema; a small profile table and bounds on its columns each.

    dataset, or a shard of it --measure_dataset--> a Measured per table --(shards add up)--> dataset_suites --> suites

Every rule bounds one column of a profile (`longrec.data.quality.profiles`), so all of them are the same kind of expectation and read
alike in the report. Nothing here judges: `longrec.data.quality.checks` does, with Great Expectations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data.dataset import WHOLE, Shard, part_name
from longrec.data.history import LATEST_MS
from longrec.data.quality.profiles import (
    MAX_NAMED,
    Column,
    ColumnFacts,
    Int,
    Measured,
    UserFacts,
    column_facts,
    integers,
    misfits,
    parts,
    quantiles,
    user_facts,
)
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

Severity: TypeAlias = Literal["critical", "warning"]
Culprits: TypeAlias = Callable[[], Sequence[str]]

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

    def add(
        self,
        column: str,
        says: str,
        value: Any,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        severity: Severity = "critical",
        culprits: Culprits | None = None,
    ) -> None:
        """Adds one value and its bounds."""
        self.values[column] = value
        self.rules.append(Rule(column, says, minimum, maximum, severity, culprits))

    def share(
        self, users: UserFacts, count: str, says: str, bound: float, severity: Severity = "critical"
    ) -> None:
        """Bounds the share of a per-user count in all rows; the users with the largest counts are
        the culprits.
        """
        column, value = (
            count.removeprefix("num_").replace("_", " ") + ": share",
            users.total(count) / max(1, users.total("num_rows")),
        )
        self.add(
            column,
            f"{'none' if not bound else 'few'} of the {says}",
            value,
            maximum=bound,
            severity=severity,
            culprits=lambda: users.worst(count),
        )

    def suite(self, name: str) -> Suite:
        """Returns the suite."""
        return Suite(
            name, {column: [value] for column, value in self.values.items()}, tuple(self.rules)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A table on disk that DuckDB sees as a view, and the column that names its rows."""

    connection: Any
    view: str
    columns: tuple[Column, ...]
    key: str

    @classmethod
    def of(
        cls,
        connection: Any,
        view: str,
        files: Sequence[Path],
        columns: tuple[Column, ...],
        key: str,
    ) -> Source:
        """Returns the view on one or more Parquet files."""
        paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
        connection.execute(
            f"create or replace view {view} as select * from read_parquet([{paths}])"  # noqa: S608
        )
        return cls(connection, view, columns, key)

    def fetch(self, what: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Returns the rows of a query on the view; all names in it are ours or the schema's."""
        rows: list[tuple[Any, ...]] = self.connection.execute(
            f"select {what} from {self.view} {rest}"  # noqa: S608
        ).fetchall()
        return rows

    def culprits(self, predicate: str) -> list[tuple[int, str]]:
        """Returns the keys, as such and in words, of the first rows (by their key) for which a
        predicate holds.
        """
        name = self.key.removesuffix("_id")
        found = self.fetch(
            f"distinct {self.key}", f"where {predicate} order by 1 limit {MAX_NAMED}"
        )
        return [(key, f"{name} {key}") for (key,) in found if key is not None]


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """Sorted ids of the item table and of the user table, int64."""

    items: Int
    users: Int


def measure_dataset(
    dataset_dir: Path,
    head: Mapping[str, Any],
    connection: Any,
    shard: Shard = WHOLE,
    items_before: Int | None = None,
) -> dict[str, Measured]:
    """Returns what the suites are made from: events and targets of a shard of a dataset; items and
    users with its first shard.

    Args:
        dataset_dir: the dataset.
        head: content of its dataset.json.
        connection: DuckDB.
        shard: whose parts are measured.
        items_before: sorted ids of the items of the version before.

    Raises:
        DataError: a file is missing or not Parquet.
    """
    schema, paths = (
        Schema.from_dict(head["schema"]),
        {"items": dataset_dir / "items.parquet", "users": dataset_dir / "users.parquet"},
    )
    known = Known(known_ids(paths["items"], ITEM_ID), known_ids(paths["users"], USER_ID))
    measured = {
        "events": _measure_events(
            connection, _paths(dataset_dir / "events", head, shard), head, known
        ),
        "targets": _measure_targets(
            connection, _paths(dataset_dir / "targets", head, shard), head, known, items_before
        ),
    }
    if shard.index == 0:
        measured["items"] = measure_table(
            connection, "items", paths["items"], item_columns(schema), ITEM_ID
        )
        measured["users"] = measure_table(
            connection, "users", paths["users"], user_columns(schema), USER_ID
        )
    return measured


def dataset_suites(
    measured: Mapping[str, Measured], head: Mapping[str, Any], checks: ChecksConfig
) -> tuple[list[Suite], dict[str, Any]]:
    """Returns the suites of a dataset and the facts that head the report.

    Args:
        measured: by table, what `measure_dataset` found in all of its shards.
        head: content of its dataset.json.
        checks: bounds.
    """
    schema = Schema.from_dict(head["schema"])
    items, users = (
        table_suite(name, measured[name], columns, rising(key))
        for name, columns, key in (
            ("items", item_columns(schema), ITEM_ID),
            ("users", user_columns(schema), USER_ID),
        )
    )
    events, event_facts = _event_suites(measured["events"], head, checks)
    targets, target_facts = _target_suites(measured["targets"], head, checks, measured["events"])
    num_known = {name: measured[name].counts.get("num_known", 0) for name in ("items", "users")}
    return [*events, *targets, items, users], {
        **event_facts,
        **target_facts,
        "items": num_known["items"],
        "user rows": num_known["users"],
    }


def measure_table(
    connection: Any, name: str, path: Path, columns: tuple[Column, ...], key: str
) -> Measured:
    """Returns what is measured of a table with one row per id."""
    if lines := _misfits([path], columns):
        return Measured(misfits=lines)
    found = _measure(Source.of(connection, name, [path], columns, key))
    ids = integers(pq.read_table(path, columns=[key])[key])
    num_known = len(np.unique(ids))
    found.counts.update(
        num_unsorted=int((np.diff(ids) <= 0).sum()),
        num_repeated=len(ids) - num_known,
        num_known=num_known,
    )
    return found


def table_suite(
    name: str, measured: Measured, columns: tuple[Column, ...], order: tuple[str, str]
) -> Suite:
    """Returns the suite of a table with one row per id; `order` is the count of rows that must not
    be, and what it says.
    """
    if measured.misfits:
        return misfit_suite(name, measured.misfits)
    row = _column_rules(measured, columns)
    row.add(order[0], order[1], measured.counts[order[0]], maximum=0)
    return row.suite(name)


def rising(key: str) -> tuple[str, str]:
    """Returns the `order` of a table that is sorted by its id."""
    return "num_unsorted", f"{key} rises from row to row, each once"


def label_rules(
    row: Row, schema: Schema, checks: ChecksConfig, rates: Sequence[float | None], where: str = ""
) -> None:
    """Adds the bounds of each task's mean label; None for a task without targets."""
    severity: Severity = "critical" if checks.check_label_rates else "warning"
    for task, rate in zip(schema.tasks, rates, strict=True):
        says = f"the rate of {task.name}{where} lies within the bounds of the task"
        row.add(
            f"{task.name}: rate{where}",
            says,
            rate,
            minimum=task.min_rate,
            maximum=task.max_rate,
            severity=severity,
        )


def known_ids(path: Path, key: str) -> Int:
    """Returns the sorted distinct ids of a table, int64; none when it has no such column (its own
    suite says so).
    """
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
    return Column(USER_ID, "int64", 0.0, 0), *(
        Column.of(feature) for feature in schema.user if feature.name != USER_ID
    )


def _paths(directory: Path, head: Mapping[str, Any], shard: Shard) -> dict[int, Path]:
    """Returns the parts of a shard by number; of the whole all that are there, whatever
    dataset.json says.
    """
    if shard == WHOLE:
        return dict(enumerate(parts(directory)))
    return {
        part: directory / part_name(part) for part in shard.parts(int(head["facts"]["num_parts"]))
    }


def _event_columns(head: Mapping[str, Any]) -> tuple[Column, ...]:
    schema = Schema.from_dict(head["schema"])
    labels = tuple(Column(name, "int8", 1.0, 0, 1) for name in head.get("event_labels", ()))
    baskets = (Column(BASKET_ID, "int64"),) if schema.has_baskets else ()
    created = (Column(CREATED, "time", 0.0, 0, LATEST_MS),) if head.get("has_created") else ()
    return (*_time_columns(EVENT_SEQ), *baskets, *created, *map(Column.of, schema.event), *labels)


def _target_columns(schema: Schema) -> tuple[Column, ...]:
    return (
        *_time_columns(REQUEST_ID),
        *(Column(task, "int8", 0.0, 0, 1) for task in schema.task_names),
    )


def _measure_events(
    connection: Any, paths: Mapping[int, Path], head: Mapping[str, Any], known: Known
) -> Measured:
    schema, columns, files = (
        Schema.from_dict(head["schema"]),
        _event_columns(head),
        list(paths.values()),
    )
    if not files or (lines := _misfits(files, columns)):
        return Measured(misfits=lines if files else [])
    found = _measure(Source.of(connection, "events", files, columns, USER_ID))
    users = user_facts(paths, EVENT_SEQ, known.items, has_baskets=schema.has_baskets)
    return _with_users(found, users, known)


def _measure_targets(
    connection: Any,
    paths: Mapping[int, Path],
    head: Mapping[str, Any],
    known: Known,
    items_before: Int | None,
) -> Measured:
    schema, files = Schema.from_dict(head["schema"]), list(paths.values())
    if not files or (lines := _misfits(files, _target_columns(schema))):
        return Measured(misfits=lines if files else [])
    source = Source.of(connection, "targets", files, _target_columns(schema), USER_ID)
    found = _measure(source)
    _measure_requests(source, found)
    sums = source.fetch(", ".join(f'sum("{task}"), count("{task}")' for task in schema.task_names))[
        0
    ]
    for task, total, count in zip(schema.task_names, sums[::2], sums[1::2], strict=True):
        found.counts.update({f"positives {task}": int(total or 0), f"labels {task}": int(count)})
    users = user_facts(
        paths, REQUEST_ID, known.items, labels=schema.task_names, items_before=items_before
    )
    return _with_users(found, users, known)


def _with_users(found: Measured, users: UserFacts, known: Known) -> Measured:
    absent = np.setdiff1d(users.columns[USER_ID], known.users)
    found.counts["num_users_without_row"] = len(absent)
    found.culprits["num_users_without_row"] = [
        (user, f"user {user}") for user in absent[:MAX_NAMED].tolist()
    ]
    return dataclasses.replace(found, users=users)


def _event_suites(
    measured: Measured, head: Mapping[str, Any], checks: ChecksConfig
) -> tuple[list[Suite], dict[str, Any]]:
    if measured.misfits:
        return [misfit_suite("events", measured.misfits)], {}
    users = measured.users
    row = _column_rules(measured, _event_columns(head), head.get("facts", {}).get("num_events"))
    row.share(
        users,
        "num_duplicates",
        "events equal another one of the user in item, time and sequence",
        checks.max_duplicate_share,
    )
    row.share(
        users,
        "num_repeats",
        "events repeat item and time of another one of the user",
        MAX_REPEAT_SHARE,
        "warning",
    )
    row.share(
        users,
        "num_unknown_items",
        "events have an item that is not in the item table",
        checks.max_unknown_item_share,
    )
    _user_row_rule(row, measured)
    first, last = measured.columns[TIMESTAMP].minimum, measured.columns[TIMESTAMP].maximum
    row.add(
        "first event: time (ms)",
        "the first event is after 1990; earlier ones hint at seconds taken for ms",
        first,
        minimum=EARLIEST_LIKELY_MS,
        severity="warning",
    )
    about = {
        "events": row.values["num_rows"],
        "users": len(users),
        "first event": first,
        "last event": last,
        "events per user": spread(users.columns.get("num_rows", np.zeros(0))),
    }
    return [
        row.suite("events"),
        _timeline_suite("event timelines", users, Schema.from_dict(head["schema"]).has_baskets),
    ], about


def _target_suites(
    measured: Measured, head: Mapping[str, Any], checks: ChecksConfig, events: Measured
) -> tuple[list[Suite], dict[str, Any]]:
    if measured.misfits:
        return [misfit_suite("targets", measured.misfits)], {}
    schema, users, counts = Schema.from_dict(head["schema"]), measured.users, measured.counts
    row = _column_rules(measured, _target_columns(schema), head.get("facts", {}).get("num_targets"))
    for column, what in (("num_mixed_requests", "user"), ("num_wide_requests", "moment")):
        row.add(
            column,
            f"all targets of a request have the same {what}",
            counts[column],
            maximum=0,
            culprits=_named(measured, column),
        )
    rates = [
        counts[f"positives {task}"] / counts[f"labels {task}"] if counts[f"labels {task}"] else None
        for task in schema.task_names
    ]
    label_rules(row, schema, checks, rates)
    row.share(
        users,
        "num_unknown_items",
        "targets have an item that is not in the item table",
        checks.max_unknown_item_share,
    )
    row.share(
        users,
        "num_duplicates",
        "targets repeat an item of their request",
        MAX_REPEAT_SHARE,
        "warning",
    )
    _user_row_rule(row, measured)
    if not events.misfits:
        row.add(
            "num_moved_users",
            "events and targets of a user lie in parts of one number",
            _num_moved(events.users, users),
            maximum=0,
        )
    about = {
        "requests": counts["num_requests"],
        "targets": row.values["num_rows"],
        **{f"rate of {task}": rate for task, rate in zip(schema.task_names, rates, strict=True)},
    }
    return [row.suite("targets"), _timeline_suite("target order", users, False)], about


def _timeline_suite(name: str, users: UserFacts, has_baskets: bool) -> Suite:
    rules = [
        Rule("num_disordered", "rows of a user never go back in time or sequence", maximum=0),
        Rule("num_runs", "the rows of a user lie together in one part", maximum=1),
    ]
    if has_baskets:
        rules.append(Rule("num_split_baskets", "a basket has a single time", maximum=0))
    return Suite(name, dict(users.columns), tuple(rules), USER_ID)


def _measure(source: Source) -> Measured:
    """Returns rows and columns of a table, and for each broken rule on a column the rows to look
    at.
    """
    num_rows, facts = column_facts(source.connection, source.view, source.columns)
    rules = [bound for column in source.columns for bound in _bounds(column, facts[column.name])]
    culprits = {
        rule.column: source.culprits(predicate)
        for rule, value, predicate in rules
        if _is_outside(rule, value)
    }
    return Measured(facts, {"num_rows": num_rows}, culprits)


def _column_rules(
    measured: Measured, columns: Sequence[Column], expected_rows: int | None = None
) -> Row:
    """Returns the one-row profile of a table's columns and its rules: rows (as many as expected),
    null shares, bounds.
    """
    row = Row()
    says = (
        "the table has rows"
        if expected_rows is None
        else "the table has the rows that were counted when it was written"
    )
    row.add(
        "num_rows",
        says,
        measured.counts["num_rows"],
        minimum=max(1, expected_rows or 1),
        maximum=expected_rows,
    )
    for column in columns:
        for rule, value, _ in _bounds(column, measured.columns[column.name]):
            row.add(
                rule.column,
                rule.says,
                value,
                minimum=rule.minimum,
                maximum=rule.maximum,
                culprits=_named(measured, rule.column),
            )
    return row


def _bounds(column: Column, facts: ColumnFacts) -> Iterator[tuple[Rule, float | None, str]]:
    """Yields each rule on a column, its value, and what holds for the rows that break it, in
    SQL.
    """
    name, (value, unit) = (
        column.name,
        (f'epoch_ms("{column.name}")', " (ms)")
        if column.dtype == "time"
        else (f'"{column.name}"', ""),
    )
    if column.max_null_share < 1:
        null = f'"{name}" is null' + (f' or isnan("{name}")' if column.dtype == "float64" else "")
        says = f"{name} is {'never' if not column.max_null_share else 'seldom'} null"
        yield (
            Rule(f"{name}: null share", says, maximum=column.max_null_share),
            facts.null_share,
            null,
        )
    if column.minimum is not None:
        rule = Rule(
            f"{name}: least{unit}", f"{name} is never below its bound", minimum=column.minimum
        )
        yield rule, facts.minimum, f"{value} < {column.minimum}"
    if column.maximum is not None:
        rule = Rule(
            f"{name}: largest{unit}", f"{name} is never above its bound", maximum=column.maximum
        )
        yield rule, facts.maximum, f"{value} > {column.maximum}"


def _is_outside(rule: Rule, value: float | None) -> bool:
    low, high = rule.minimum, rule.maximum
    return value is not None and (
        (low is not None and value < low) or (high is not None and value > high)
    )


def _named(measured: Measured, rule: str) -> Culprits:
    return lambda: measured.named(rule)


def _measure_requests(source: Source, found: Measured) -> None:
    """Adds the number of requests, and those with more than one user or moment."""
    grouped = f"(select request_id, min(user_id) u, max(user_id) v, min(timestamp) t, max(timestamp) w from {source.view} group by 1)"  # noqa: S608
    requests = dataclasses.replace(source, view=grouped)
    found.counts["num_requests"] = int(requests.fetch("count(*)")[0][0])
    for column, differs in (("num_mixed_requests", "u <> v"), ("num_wide_requests", "t <> w")):
        if number := int(requests.fetch(f"count(*) filter ({differs})")[0][0]):
            rows = requests.fetch("request_id, u", f"where {differs} order by 1 limit {MAX_NAMED}")
            found.culprits[column] = [
                (request or 0, f"request {request} of user {user}") for request, user in rows
            ]
        found.counts[column] = number


def _user_row_rule(row: Row, measured: Measured) -> None:
    row.add(
        "num_users_without_row",
        "every user has a row in the user table",
        measured.counts["num_users_without_row"],
        maximum=0,
        severity="warning",
        culprits=_named(measured, "num_users_without_row"),
    )


def _misfits(paths: Sequence[Path], columns: Sequence[Column]) -> list[str]:
    return [f"{path.name}: {line}" for path in paths for line in misfits(path, columns)]


def misfit_suite(name: str, lines: Sequence[str]) -> Suite:
    """Returns a suite that fails: files lack a column or hold it in another type."""
    row = Row()
    row.add(
        "num_misfits",
        "every file has the columns of the schema, in their types",
        len(lines),
        maximum=0,
        culprits=lambda: lines[:MAX_NAMED],
    )
    return row.suite(name)


def _num_moved(events: UserFacts, targets: UserFacts) -> int:
    _, left, right = np.intersect1d(
        events.columns[USER_ID], targets.columns[USER_ID], return_indices=True
    )
    return (
        int((events.columns["part"][left] != targets.columns["part"][right]).sum())
        if len(left)
        else 0
    )


def _time_columns(order: str) -> tuple[Column, ...]:
    return (
        Column(USER_ID, "int64", 0.0, 0),
        Column(ITEM_ID, "int64", 0.0, 0),
        Column(TIMESTAMP, "time", 0.0, 0, LATEST_MS),
        Column(order, "int64", 0.0, 0),
    )
