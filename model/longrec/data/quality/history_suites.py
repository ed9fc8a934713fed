"""Suites of histories: what training and evaluation read holds no future, splits no basket, and has
the sizes and rates it should.

The files are read here without the checks of `Histories.open`, so that what is wrong is found and
named, not refused. Memory: one
row per request and per user; timelines are mapped, and looked at one record batch at a time.

    timeline of a user   | e e e e e e e e |
    history of a request     [ e e e )  ^ the next event is at or after the moment
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.config import ChecksConfig
from longrec.data.history import LATEST_MS
from longrec.data.quality.profiles import (
    MAX_NAMED,
    MISSING,
    Column,
    ColumnFacts,
    Int,
    Measured,
    UserFacts,
    integers,
    misfits,
    schema_misfits,
    unknown,
)
from longrec.data.quality.suites import (
    Culprits,
    Row,
    Rule,
    Suite,
    item_columns,
    known_ids,
    label_rules,
    measure_table,
    misfit_suite,
    rising,
    spread,
    table_suite,
    user_columns,
)
from longrec.errors import DataError
from longrec.schema import BASKET_ID, EVENT_SEQ, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

Mask: TypeAlias = npt.NDArray[np.bool_]

SPLITS = ("warmup", "train", "eval")
REQUEST_COLUMNS = (
    REQUEST_ID,
    "user_row",
    TIMESTAMP,
    "event_start",
    "event_end",
    "target_start",
    "target_end",
)
TARGET_ROWS = 1 << 22


@dataclasses.dataclass(frozen=True, slots=True)
class Timelines:
    """The mapped timelines; `bases` int64 [num_batches + 1] is the offset of the first event of
    each record batch.
    """

    batches: tuple[pa.RecordBatch, ...]
    schema: pa.Schema
    bases: Int

    @classmethod
    def open(cls, path: Path) -> Timelines:
        """Returns the timelines in an Arrow file.

        Raises:
            DataError: it is missing or not an Arrow file.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = tuple(reader.get_batch(index) for index in range(reader.num_record_batches))
        except (pa.ArrowException, OSError) as error:
            found = str(error).splitlines()[0]
            raise DataError(
                f"{path} is not a readable Arrow file", found=found, fix="Run the retrieval again."
            ) from error
        return cls(
            batches,
            reader.schema,
            np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64),
        )

    @property
    def num_events(self) -> int:
        return int(self.bases[-1])

    def columns(self, name: str) -> Iterator[tuple[int, Int]]:
        """Yields offset and values (MISSING for null) of an integer column, batch by batch."""
        for base, batch in zip(self.bases[:-1].tolist(), self.batches, strict=True):
            yield base, integers(batch.column(name))

    def take(self, name: str, offsets: Int) -> Int:
        """Returns the values of an integer column at any offsets, MISSING outside the timelines,
        int64.
        """
        out = np.full(len(offsets), MISSING, np.int64)
        for base, values in self.columns(name):
            here = (offsets >= base) & (offsets < base + len(values))
            out[here] = values[offsets[here] - base]
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class Cuts:
    """The requests as arrays; `rows` are those that name a user, and only for them the rest of the
    columns is looked at.

    Args:
        columns: column -> int64 [R].
        splits: str [R].
        user_starts, user_ends: int64 [R], span of the user's timeline; 0 where no user is named.
        named: bool [R], whether user_row is a row of the users.
    """

    columns: dict[str, Int]
    splits: npt.NDArray[np.str_]
    user_starts: Int
    user_ends: Int
    named: Mask

    def __len__(self) -> int:
        return len(self.splits)


def measure_histories(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Measured]:
    """Returns what is found in the timelines: events, and per user the spans of timelines and the
    cuts of requests.

    Args:
        directory: the histories, or those of a shard of the users.
        manifest: content of its manifest.json.

    Raises:
        DataError: a file is missing or cannot be read at all.
    """
    schema, timelines = (
        Schema.from_dict(manifest["schema"]),
        Timelines.open(directory / "timelines.arrow"),
    )
    if lines := [*_timeline_misfits(schema, timelines), *_table_misfits(directory, schema)]:
        return {
            "events": Measured(counts={"num_rows": timelines.num_events}, misfits=lines),
            "timelines": Measured(),
            "cuts": Measured(),
        }
    users = _spans(directory)
    cuts = _cuts(directory / "requests.parquet", users)
    known = known_ids(directory / "items.parquet", ITEM_ID)
    columns = {column.name: _column_facts(timelines, column) for column in _event_columns(schema)}
    strangers = sum(int(unknown(items, known).sum()) for _, items in timelines.columns(ITEM_ID))
    return {
        "events": Measured(columns, {"num_rows": timelines.num_events, "num_strangers": strangers}),
        "timelines": Measured(users=_timeline_facts(timelines, users)),
        "cuts": Measured(
            users=_cut_facts(schema, int(manifest["max_history"]), timelines, users, cuts)
        ),
    }


def histories_suites(
    directory: Path,
    manifest: Mapping[str, Any],
    checks: ChecksConfig,
    connection: Any,
    measured: Mapping[str, Measured],
) -> tuple[list[Suite], dict[str, Any]]:
    """Returns the suites of histories and the facts that head the report.

    Args:
        directory: the histories; their timelines are not read.
        manifest: content of its manifest.json.
        checks: bounds.
        connection: DuckDB.
        measured: what `measure_histories` found in all shards.

    Raises:
        DataError: a file is missing or cannot be read at all.
    """
    schema, events = Schema.from_dict(manifest["schema"]), measured["events"]
    columns, path = item_columns(schema), directory / "items.parquet"
    tables = [
        table_suite(
            "items",
            measure_table(connection, "items", path, columns, ITEM_ID),
            columns,
            rising(ITEM_ID),
        ),
        _users_suite(connection, directory / "users.parquet", schema),
    ]
    num_events = events.counts["num_rows"]
    if broken := [*events.misfits] or _table_misfits(directory, schema):
        return [misfit_suite("structure", broken), *tables], {"events": num_events}
    users = _spans(directory)
    cuts = _cuts(directory / "requests.parquet", users)
    known = known_ids(directory / "items.parquet", ITEM_ID)
    requests, facts = _request_suite(directory, schema, checks, cuts, known)
    suites = [
        _event_suite(schema, checks, events),
        _timeline_suite(measured["timelines"].users),
        _cut_suite(measured["cuts"].users, schema.has_baskets),
        requests,
        *tables,
    ]
    return suites, {
        "events": num_events,
        "users": len(users[USER_ID]),
        "items": len(known),
        **facts,
    }


def _timeline_misfits(schema: Schema, timelines: Timelines) -> list[str]:
    baskets = [Column(BASKET_ID, "int64")] if schema.has_baskets else []
    events = [
        *(Column(name, "int64") for name in (ITEM_ID, TIMESTAMP, EVENT_SEQ)),
        *baskets,
        *map(Column.of, schema.event),
    ]
    return [f"timelines.arrow: {line}" for line in schema_misfits(timelines.schema, events)]


def _table_misfits(directory: Path, schema: Schema) -> list[str]:
    wanted = {
        "users": [Column(key, "int64") for key in (USER_ID, "event_start", "event_end")],
        "requests": [*(Column(key, "int64") for key in REQUEST_COLUMNS), Column("split", "string")],
        "targets": [
            Column(ITEM_ID, "int64"),
            *(Column(task, "int8") for task in schema.task_names),
        ],
    }
    return [
        f"{name}.parquet: {line}"
        for name, columns in wanted.items()
        for line in misfits(directory / f"{name}.parquet", columns)
    ]


def _spans(directory: Path) -> dict[str, Int]:
    """Returns user_id, event_start, event_end, int64 [U], in the order of the timelines."""
    table = pq.read_table(
        directory / "users.parquet", columns=[USER_ID, "event_start", "event_end"]
    )
    return {name: integers(table[name]) for name in table.column_names}


def _users_suite(connection: Any, path: Path, schema: Schema) -> Suite:
    """As the other tables, but in the order of the timelines: ids need only be distinct."""
    columns = user_columns(schema)
    measured = measure_table(connection, "users", path, columns, USER_ID)
    return table_suite("users", measured, columns, ("num_repeated", "user_id is there once"))


def _cuts(path: Path, users: Mapping[str, Int]) -> Cuts:
    table = pq.read_table(path, columns=[*REQUEST_COLUMNS, "split"])
    columns = {name: integers(table[name]) for name in REQUEST_COLUMNS}
    splits = np.asarray(pc.fill_null(table["split"], "null").to_pylist(), dtype=np.str_)
    named = (columns["user_row"] >= 0) & (columns["user_row"] < len(users[USER_ID]))
    rows = np.where(named, columns["user_row"], 0)
    spans = [
        np.where(named, users[name][rows], 0)
        if len(users[USER_ID])
        else np.zeros(len(rows), np.int64)
        for name in ("event_start", "event_end")
    ]
    return Cuts(columns, splits, spans[0], spans[1], named)


def _event_columns(schema: Schema) -> list[Column]:
    return [
        Column(ITEM_ID, "int64", 0.0, 0),
        Column(TIMESTAMP, "int64", 0.0, 0, LATEST_MS),
        *map(Column.of, schema.event),
    ]


def _event_suite(schema: Schema, checks: ChecksConfig, measured: Measured) -> Suite:
    row, num_events = Row(), measured.counts["num_rows"]
    row.add("num_rows", "there are events", num_events, minimum=1)
    for column in _event_columns(schema):
        facts = measured.columns[column.name]
        if column.max_null_share < 1:
            says = f"{column.name} is {'never' if not column.max_null_share else 'seldom'} null"
            row.add(
                f"{column.name}: null share", says, facts.null_share, maximum=column.max_null_share
            )
        unit = " (ms)" if column.name == TIMESTAMP else ""
        if column.minimum is not None:
            row.add(
                f"{column.name}: least{unit}",
                f"{column.name} is never below its bound",
                facts.minimum,
                minimum=column.minimum,
            )
        if column.maximum is not None:
            row.add(
                f"{column.name}: largest{unit}",
                f"{column.name} is never above its bound",
                facts.maximum,
                maximum=column.maximum,
            )
    row.add(
        "unknown items: share",
        "few of the events have an item that is not in the item table",
        measured.counts["num_strangers"] / max(1, num_events),
        maximum=checks.max_unknown_item_share,
    )
    return row.suite("events in timelines")


def _column_facts(timelines: Timelines, column: Column) -> ColumnFacts:
    """The facts of one column over all record batches."""
    nulls, lows, highs = 0, [], []
    for batch in timelines.batches:
        values = batch.column(column.name)
        if column.dtype == "float64":
            values = pc.if_else(pc.is_nan(values), None, values)
        nulls += values.null_count
        if column.dtype != "string" and values.null_count < len(values):
            bounds = pc.min_max(values).as_py()
            lows.append(bounds["min"])
            highs.append(bounds["max"])
    return ColumnFacts(
        timelines.num_events, nulls, min(lows, default=None), max(highs, default=None)
    )


def _timeline_facts(timelines: Timelines, users: Mapping[str, Int]) -> UserFacts:
    """Per user: the span lies in the timelines, follows the one before, and is in order."""
    starts, ends = users["event_start"], users["event_end"]
    outside = (starts < 0) | (ends < starts) | (ends > timelines.num_events)
    gap = starts != np.concatenate([[0], ends[:-1]])
    if len(gap):
        gap[-1] |= ends[-1] != timelines.num_events
    return UserFacts.merged(
        [
            UserFacts(
                {
                    USER_ID: users[USER_ID],
                    "num_outside": outside.astype(np.int64),
                    "num_gaps": gap.astype(np.int64),
                    "num_disordered": _disorder(timelines, starts),
                    "length": ends - starts,
                }
            )
        ]
    )


def _timeline_suite(facts: UserFacts) -> Suite:
    rules = (
        Rule("num_outside", "the span of a user lies inside the timelines", maximum=0),
        Rule("num_gaps", "spans of users follow each other without gap or overlap", maximum=0),
        Rule("num_disordered", "events of a user never go back in time or sequence", maximum=0),
    )
    return Suite("timelines", dict(facts.columns), rules, USER_ID)


def _disorder(timelines: Timelines, starts: Int) -> Int:
    """Events of each user that are before their predecessor, int64 [U]."""
    places: list[Int] = []
    last: tuple[int, int] | None = None
    for (base, times), (_, order) in zip(
        timelines.columns(TIMESTAMP), timelines.columns(EVENT_SEQ), strict=True
    ):
        if not len(times):
            continue
        if last is not None and (int(times[0]), int(order[0])) < last:
            places.append(np.array([base]))
        back = (times[1:] < times[:-1]) | ((times[1:] == times[:-1]) & (order[1:] < order[:-1]))
        places.append(np.flatnonzero(back) + base + 1)
        last = int(times[-1]), int(order[-1])
    found = np.concatenate(places) if places else np.zeros(0, np.int64)
    found = found[~np.isin(found, starts)]
    owners = np.searchsorted(starts, found, side="right") - 1
    return np.bincount(owners[owners >= 0], minlength=len(starts)).astype(np.int64)


def _request_suite(
    directory: Path, schema: Schema, checks: ChecksConfig, cuts: Cuts, known: Int
) -> tuple[Suite, dict[str, Any]]:
    lengths, row = cuts.columns["event_end"] - cuts.columns["event_start"], Row()
    row.add("num_rows", "there are requests", len(cuts), minimum=1)
    row.add("num_unnamed", "every request names a user", int((~cuts.named).sum()), maximum=0)
    row.add(
        "num_unsorted",
        "requests are in the order of time",
        int((np.diff(cuts.columns[TIMESTAMP]) < 0).sum()),
        maximum=0,
    )
    row.add(
        "num_repeated",
        "request_id is there once",
        len(cuts) - len(np.unique(cuts.columns[REQUEST_ID])),
        maximum=0,
    )
    row.add(
        "longest history",
        "the longest history has enough events",
        int(lengths.max(initial=0)),
        minimum=checks.min_history,
    )
    counts = _split_rules(row, cuts, checks)
    rates = _target_rules(row, directory / "targets.parquet", schema, checks, cuts, known)
    about = {
        "first moment": int(cuts.columns[TIMESTAMP].min()) if len(cuts) else None,
        "last moment": int(cuts.columns[TIMESTAMP].max()) if len(cuts) else None,
        "history length": spread(lengths),
        **{f"{split} requests": count for split, count in counts.items()},
        **rates,
    }
    return row.suite("requests"), about


def _cut_facts(
    schema: Schema, max_history: int, timelines: Timelines, users: Mapping[str, Int], cuts: Cuts
) -> UserFacts:
    """Counts of wrong requests per user: of every kind that can be seen from the events beside the
    cut.
    """
    start, end, request_time = (
        cuts.columns[name] for name in ("event_start", "event_end", TIMESTAMP)
    )
    outside = (start < cuts.user_starts) | (end > cuts.user_ends) | (end < start)
    inside = cuts.named & ~outside
    filled, going_on = inside & (end > start), inside & (end < cuts.user_ends)
    last, following = (timelines.take(TIMESTAMP, offsets) for offsets in (end - 1, end))
    wrong = {
        "num_outside": cuts.named & outside,
        "num_future": filled & (last >= request_time),
        "num_short": going_on & (following < request_time),
        "num_too_long": inside & (end - start > max_history),
        "num_late_starts": inside & (start > cuts.user_starts) & (end - start < max_history),
    }
    if schema.has_baskets:
        before, after = (timelines.take(BASKET_ID, offsets) for offsets in (end - 1, end))
        wrong["num_split_baskets"] = filled & going_on & (before == after)
    rows = cuts.columns["user_row"][cuts.named]
    counted = {
        name: np.bincount(rows[mask[cuts.named]], minlength=len(users[USER_ID])).astype(np.int64)
        for name, mask in wrong.items()
    }
    size = np.bincount(rows, minlength=len(users[USER_ID])).astype(np.int64)
    return UserFacts.merged([UserFacts({USER_ID: users[USER_ID], "num_rows": size, **counted})])


def _cut_suite(facts: UserFacts, has_baskets: bool) -> Suite:
    rules = [
        Rule(
            "num_future",
            "no history holds an event at or after the moment of its request",
            maximum=0,
        ),
        Rule("num_outside", "a history lies inside the timeline of its user", maximum=0),
        Rule("num_too_long", "no history is longer than max_history", maximum=0),
        Rule("num_short", "a history leaves out no event just before its request", maximum=0),
        Rule(
            "num_late_starts",
            "a history shorter than max_history starts with the timeline",
            maximum=0,
        ),
    ]
    if has_baskets:
        rules.append(
            Rule("num_split_baskets", "the moment of a request splits no basket", maximum=0)
        )
    return Suite("cuts", dict(facts.columns), tuple(rules), USER_ID)


def _split_rules(row: Row, cuts: Cuts, checks: ChecksConfig) -> dict[str, int]:
    request_times = cuts.columns[TIMESTAMP]
    counts = {split: int((cuts.splits == split).sum()) for split in SPLITS}
    row.add(
        "num_unknown_splits",
        f"every split is one of {', '.join(SPLITS)}",
        len(cuts) - sum(counts.values()),
        maximum=0,
    )
    for split in ("train", "eval"):
        row.add(
            f"{split} requests",
            f"the split {split} has enough requests",
            counts[split],
            minimum=checks.min_requests,
        )
    for earlier, later in (("warmup", "train"), ("train", "eval"), ("warmup", "eval")):
        if counts[earlier] and counts[later]:
            lead = int(
                request_times[cuts.splits == later].min()
                - request_times[cuts.splits == earlier].max()
            )
            row.add(
                f"{earlier} to {later}: lead in ms",
                f"every {earlier} request is before the first {later} request",
                lead,
                minimum=1,
                culprits=_overlap(cuts, earlier, later),
            )
    return counts


def _overlap(cuts: Cuts, earlier: str, later: str) -> Culprits:
    def found() -> list[str]:
        first = cuts.columns[TIMESTAMP][cuts.splits == later].min()
        late = (cuts.splits == earlier) & (cuts.columns[TIMESTAMP] >= first)
        return [f"request {request}" for request in cuts.columns[REQUEST_ID][late][:MAX_NAMED]]

    return found


def _target_rules(
    row: Row, path: Path, schema: Schema, checks: ChecksConfig, cuts: Cuts, known: Int
) -> dict[str, Any]:
    """Adds the rules of targets, read some rows at a time; returns the facts."""
    num_targets = pq.read_metadata(path).num_rows
    start, end = cuts.columns["target_start"], cuts.columns["target_end"]
    fits = (start >= 0) & (end <= num_targets) & (end > start)
    order = np.argsort(start, kind="stable")
    gaps = (
        int((start[order][1:] != end[order][:-1]).sum())
        + (int(start.min(initial=0)) != 0)
        + (int(end.max(initial=0)) != num_targets)
    )
    row.add("num_targets", "there are targets", num_targets, minimum=1)
    row.add(
        "num_target_spans_outside",
        "every request has targets inside the table",
        int((~fits).sum()),
        maximum=0,
        culprits=lambda: [
            f"request {request}" for request in cuts.columns[REQUEST_ID][~fits][:MAX_NAMED]
        ],
    )
    row.add("num_target_gaps", "every target belongs to one request", gaps, maximum=0)
    totals = _target_totals(path, schema, cuts, num_targets, known)
    row.add("num_null_items", "no target is without an item", totals.nulls, maximum=0)
    row.add(
        "unknown target items: share",
        "few of the targets have an item that is not in the item table",
        totals.strangers / max(1, num_targets),
        maximum=checks.max_unknown_item_share,
    )
    row.add("num_other_labels", "labels are 0 or 1", totals.others, maximum=0)
    for split in ("train", "eval"):
        size, positives = totals.sizes[split], totals.positives[split]
        label_rules(
            row,
            schema,
            checks,
            [float(count / size) if size else None for count in positives],
            f" in {split}",
        )
    overall = np.sum(list(totals.positives.values()), axis=0) / max(1, sum(totals.sizes.values()))
    return {
        "targets": num_targets,
        **{
            f"rate of {task}": float(rate)
            for task, rate in zip(schema.task_names, overall, strict=True)
        },
    }


@dataclasses.dataclass(slots=True)
class _Totals:
    """Sums over targets; positives are float64 [K] per split."""

    nulls: int
    strangers: int
    others: int
    sizes: dict[str, int]
    positives: dict[str, npt.NDArray[np.float64]]


def _target_totals(
    path: Path,
    schema: Schema,
    cuts: Cuts,
    num_targets: int,
    known: Int,
) -> _Totals:
    codes = _split_of_targets(cuts, num_targets)
    totals = _Totals(
        0, 0, 0, dict.fromkeys(SPLITS, 0), {split: np.zeros(len(schema.tasks)) for split in SPLITS}
    )
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(TARGET_ROWS, columns=[ITEM_ID, *schema.task_names]):
            items = integers(batch.column(ITEM_ID))
            labels = np.stack([integers(batch.column(task)) for task in schema.task_names], axis=1)
            totals.nulls += int((items == MISSING).sum())
            totals.strangers += int(unknown(items, known).sum())
            totals.others += int(((labels != 0) & (labels != 1)).sum())
            for code, split in enumerate(SPLITS):
                mine = labels[codes[start : start + len(items)] == code]
                totals.sizes[split] += len(mine)
                totals.positives[split] += (mine == 1).sum(axis=0)
            start += len(items)
    return totals


def _split_of_targets(cuts: Cuts, num_targets: int) -> npt.NDArray[np.int8]:
    """Position in SPLITS of the request of each target, int8 [P]; -1 for none."""
    codes = np.full(num_targets, -1, np.int8)
    start, end = (
        np.clip(cuts.columns[name], 0, num_targets) for name in ("target_start", "target_end")
    )
    for code, split in enumerate(SPLITS):
        mine = cuts.splits == split
        steps = np.zeros(num_targets + 1, np.int64)
        np.add.at(steps, start[mine], 1)
        np.add.at(steps, np.maximum(end, start)[mine], -1)
        codes[np.cumsum(steps)[:-1] > 0] = code
    return codes
