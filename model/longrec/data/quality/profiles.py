"""Profiles of tables: one small row per table and one per user, made in one pass, that the checks
can then judge.

Events and targets are read part by part (a part holds whole users), columns are summed up by
DuckDB: the memory is one part
and one row per user, whatever the number of events.

    part    u u u u | v v | w w w      rows of a user together, ordered by (timestamp, event_seq)
    profile    u        v     w        rows, disorder, duplicates, split baskets, unknown items of
    each

What is measured of shards of users adds up (`Measured.merged`): measured shard by shard or all at
once, the checks judge the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data import files
from longrec.errors import DataError
from longrec.schema import BASKET_ID, ITEM_ID, TIMESTAMP, USER_ID, Feature

Int: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MISSING = np.iinfo(np.int64).min
"""Stands for a null in integer arrays: below every id and every time that the checks let pass."""
MAX_NAMED = 10
SHARD = "shard"


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """What a column of a table must look like."""

    name: str
    dtype: str
    max_null_share: float = 0.0
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, feature: Feature) -> Column:
        """Returns the column that holds a feature."""
        return cls(
            feature.name, feature.dtype, feature.max_null_share, feature.minimum, feature.maximum
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ColumnFacts:
    """Rows, nulls (NaN counts as null), least and largest value of a numeric or time column (ms),
    None when all are null.
    """

    num_rows: int
    num_nulls: int
    minimum: float | None
    maximum: float | None

    @property
    def null_share(self) -> float:
        """Share of the rows that are null."""
        return self.num_nulls / max(1, self.num_rows)

    @classmethod
    def merged(cls, parts: Sequence[ColumnFacts]) -> ColumnFacts:
        """Returns the facts of all parts of a column."""
        lows = [part.minimum for part in parts if part.minimum is not None]
        highs = [part.maximum for part in parts if part.maximum is not None]
        return cls(
            sum(part.num_rows for part in parts),
            sum(part.num_nulls for part in parts),
            min(lows, default=None),
            max(highs, default=None),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class UserFacts:
    """One row per user: `columns` are int64 [U] counts, `user_id` among them."""

    columns: dict[str, Int]

    def __len__(self) -> int:
        return len(self.columns[USER_ID])

    def total(self, name: str) -> int:
        """Returns the sum of a count over all users; 0 without users."""
        return int(self.columns[name].sum()) if name in self.columns else 0

    def worst(self, name: str) -> list[str]:
        """Returns at most ten users with a count above 0, in words, the largest first."""
        return self.most(self.columns.get(name, np.zeros(0, np.int64)))

    def most(self, weights: npt.NDArray[Any]) -> list[str]:
        """Returns at most ten users with a weight above 0, in words, the largest first; of equal
        ones the first.
        """
        order = np.argsort(-weights, kind="stable")[:MAX_NAMED]
        return self.names(order[weights[order] > 0])

    def names(self, places: Int) -> list[str]:
        """Returns the users in these rows in words, with their shard where there are several."""
        users = self.columns[USER_ID][places].tolist()
        if SHARD not in self.columns:
            return [f"user {user}" for user in users]
        return [
            f"user {user} (shard {shard})"
            for user, shard in zip(users, self.columns[SHARD][places].tolist(), strict=True)
        ]

    @classmethod
    def merged(cls, parts: Sequence[UserFacts]) -> UserFacts:
        """Returns one row per user of all parts, by its id; rows of one user are summed."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        return _merge({name: [part.columns[name] for part in filled] for name in filled[0].columns})


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a table, or of a shard of it.

    Args:
        columns: facts by column.
        counts: numbers that add up, by name.
        culprits: for what is broken, by the name of its rule: at most ten rows to look at, by a
            number to sort them by.
        users: one row per user; no rows where the table is not of users.
        misfits: a line per column that a file lacks or holds in another type; nothing else was
            measured then.
    """

    columns: dict[str, ColumnFacts] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    culprits: dict[str, list[tuple[int, str]]] = dataclasses.field(default_factory=dict)
    users: UserFacts = dataclasses.field(
        default_factory=lambda: UserFacts({USER_ID: np.zeros(0, np.int64)})
    )
    misfits: list[str] = dataclasses.field(default_factory=list)

    def named(self, rule: str) -> list[str]:
        """Returns the rows to look at for a broken rule, in words."""
        return [text for _, text in self.culprits.get(rule, ())]

    @classmethod
    def merged(cls, shards: Sequence[Measured]) -> Measured:
        """Returns what was measured of all shards, in their order; a user who is in several counts
        once.
        """
        if len(shards) == 1:
            return shards[0]
        whole = [shard._in_shard(number) for number, shard in enumerate(shards, 1)]
        columns = {
            name: ColumnFacts.merged([each.columns[name] for each in whole if name in each.columns])
            for name in _keys(whole, "columns")
        }
        counts = {
            name: sum(each.counts.get(name, 0) for each in whole) for name in _keys(whole, "counts")
        }
        culprits = {
            name: sorted(row for each in whole for row in each.culprits.get(name, ()))[:MAX_NAMED]
            for name in _keys(whole, "culprits")
        }
        lines = [line for each in whole for line in each.misfits]
        return cls(
            columns, counts, culprits, UserFacts.merged([each.users for each in whole]), lines
        )

    def _in_shard(self, number: int) -> Measured:
        """Returns the same with the number of the shard in all names of rows."""
        users = UserFacts({**self.users.columns, SHARD: np.full(len(self.users), number, np.int64)})
        culprits = {
            rule: [(key, f"{text} (shard {number})") for key, text in rows]
            for rule, rows in self.culprits.items()
        }
        return dataclasses.replace(
            self,
            culprits=culprits,
            users=users,
            misfits=[f"shard {number}: {line}" for line in self.misfits],
        )

    def save(self, directory: Path, name: str) -> None:
        """Writes NAME.json and NAME.parquet, the users."""
        value = {
            key: entry
            for key, entry in dataclasses.asdict(
                dataclasses.replace(self, users=UserFacts({}))
            ).items()
            if key != "users"
        }
        files.write_json(directory / f"{name}.json", value)
        pq.write_table(
            pa.table(self.users.columns), directory / f"{name}.parquet", compression="zstd"
        )

    @classmethod
    def load(cls, directory: Path, name: str) -> Measured:
        """Returns what `save` wrote."""
        value, table = (
            files.read_json(directory / f"{name}.json"),
            pq.read_table(directory / f"{name}.parquet"),
        )
        return cls(
            {key: ColumnFacts(**entry) for key, entry in value["columns"].items()},
            value["counts"],
            {
                rule: [(int(key), text) for key, text in rows]
                for rule, rows in value["culprits"].items()
            },
            UserFacts({column: integers(table[column]) for column in table.column_names}),
            value["misfits"],
        )


def _keys(shards: Sequence[Measured], field: str) -> list[str]:
    return list(dict.fromkeys(name for shard in shards for name in getattr(shard, field)))


def parts(directory: str | Path) -> list[Path]:
    """Returns the Parquet parts below a directory, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(Path(directory).glob("*.parquet"))
    if not found:
        raise DataError(
            f"{directory} holds no table",
            expected="part-00000.parquet",
            fix="Run the import again.",
        )
    return found


def misfits(path: str | Path, columns: Sequence[Column]) -> list[str]:
    """Returns one line per column that the file lacks or holds in another type.

    Raises:
        DataError: the file is not Parquet.
    """
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist", fix="Run the step that wrote it again."
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a Parquet file",
            found=str(error),
            fix="Run the step that wrote it again.",
        ) from error
    return schema_misfits(schema, columns)


def schema_misfits(schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    """Returns one line per column that an Arrow schema lacks or holds in another type."""
    lines = []
    for column in columns:
        if column.name not in schema.names:
            lines.append(f"{column.name} is missing")
        elif (found := _dtype(schema.field(column.name).type)) != column.dtype:
            lines.append(f"{column.name} is {found} instead of {column.dtype}")
    return lines


def column_facts(
    connection: Any, view: str, columns: Sequence[Column]
) -> tuple[int, dict[str, ColumnFacts]]:
    """Returns the number of rows of a DuckDB view and the facts of its columns, in one scan."""
    wanted = ["count(*)"]
    for column in columns:
        name = f'"{column.name}"'
        value = f"epoch_ms({name})" if column.dtype == "time" else name
        usable = f"{name} is not null" + (
            f" and not isnan({name})" if column.dtype == "float64" else ""
        )
        bounds = (
            f"min({value}) filter ({usable}), max({value}) filter ({usable})"
            if column.dtype != "string"
            else "null, null"
        )
        wanted += [f"count(*) filter ({usable})", bounds]
    rows, *rest = connection.execute(f"select {', '.join(wanted)} from {view}").fetchall()[0]  # noqa: S608  (names of our own schema)
    facts = {}
    for index, column in enumerate(columns):
        usable, low, high = rest[3 * index : 3 * index + 3]
        facts[column.name] = ColumnFacts(int(rows), int(rows - usable), low, high)
    return int(rows), facts


def user_facts(
    paths: Mapping[int, Path],
    order: str,
    known_items: Int,
    *,
    has_baskets: bool = False,
    labels: Sequence[str] = (),
    items_before: Int | None = None,
) -> UserFacts:
    """Returns the per-user facts of parts of events or targets.

    Args:
        paths: Parquet parts by their number.
        order: the column that orders rows of equal time: `event_seq` of events, `request_id` of
            targets.
        known_items: int64, sorted ids of the item table.
        has_baskets: whether to look for baskets with more than one time.
        labels: label columns, whose positives are counted (`positives LABEL`).
        items_before: sorted ids of items of an earlier version; rows with others are counted
            (`num_new_items`).
    """
    found: dict[str, list[Int]] = {}
    for number, path in paths.items():
        names = (
            [USER_ID, TIMESTAMP, order, ITEM_ID]
            + ([BASKET_ID] if has_baskets else [])
            + list(labels)
        )
        table = pq.read_table(path, columns=names)
        if table.num_rows:
            columns = {name: integers(table[name]) for name in names}
            del table
            extra = {f"positives {label}": columns[label] == 1 for label in labels}
            extra |= (
                {}
                if items_before is None
                else {"num_new_items": unknown(columns[ITEM_ID], items_before)}
            )
            for name, values in _part(columns, order, known_items, number, extra).items():
                found.setdefault(name, []).append(values)
    return _merge(found)


def integers(column: pa.ChunkedArray | pa.Array) -> Int:
    """Returns an id or time column as int64 (times in ms), MISSING for null."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    filled = pc.fill_null(column.cast(pa.int64()), int(MISSING))
    return np.asarray(
        filled.to_numpy()
        if isinstance(filled, pa.ChunkedArray)
        else filled.to_numpy(zero_copy_only=False)
    )


def run_starts(*columns: npt.NDArray[Any]) -> Int:
    """Returns where each run of rows begins that are equal in all columns, int64."""
    changed = np.zeros(len(columns[0]), bool)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changed)


def unknown(items: Int, known_items: Int) -> Mask:
    """Returns which items are not among the sorted known ones."""
    if not len(known_items):
        return np.ones(len(items), bool)
    positions = np.minimum(np.searchsorted(known_items, items), len(known_items) - 1)
    return np.asarray(known_items[positions] != items)


def quantiles(values: npt.NDArray[Any]) -> dict[str, float]:
    """Returns p50, p90, p99 and the largest of some values; nothing for none."""
    if not len(values):
        return {}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": float(values.max())}


def _part(
    columns: dict[str, Int], order: str, known_items: Int, number: int, extra: Mapping[str, Mask]
) -> dict[str, Int]:
    user, time, tie, item = columns[USER_ID], columns[TIMESTAMP], columns[order], columns[ITEM_ID]
    starts = run_starts(user)
    run_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(user))))
    later = (time[1:] > time[:-1]) | ((time[1:] == time[:-1]) & (tie[1:] >= tie[:-1]))
    disorder = np.zeros(len(user), bool)
    disorder[1:] = (run_of[1:] == run_of[:-1]) & ~later
    duplicates, repeats = _equal_rows(run_of, time, tie, item)
    rows_of = {
        "num_disordered": disorder,
        "num_duplicates": duplicates,
        "num_repeats": repeats,
        "num_unknown_items": unknown(item, known_items),
        **extra,
    }
    if BASKET_ID in columns:
        rows_of["num_split_baskets"] = _split_baskets(run_of, time, columns[BASKET_ID])
    out = {name: np.bincount(run_of[rows], minlength=len(starts)) for name, rows in rows_of.items()}
    size = np.bincount(run_of, minlength=len(starts))
    return {
        USER_ID: user[starts],
        "num_rows": size,
        "num_runs": np.ones_like(size),
        "part": np.full_like(size, number),
        **out,
    }


def _equal_rows(
    run_of: Int,
    time: Int,
    tie: Int,
    item: Int,
) -> tuple[Mask, Mask]:
    """Rows equal to another one of the same user in item, time and tie order; and in item and time
    with another tie order.
    """
    request_times = run_starts(run_of, time)
    length = np.diff(np.append(request_times, len(time)))
    moment_of = np.repeat(np.arange(len(request_times)), length)
    tied = np.flatnonzero(length[moment_of] > 1)
    order = tied[np.lexsort((tie[tied], item[tied], moment_of[tied]))]
    same_item = (moment_of[order][1:] == moment_of[order][:-1]) & (
        item[order][1:] == item[order][:-1]
    )
    same_tie = tie[order][1:] == tie[order][:-1]
    duplicates, repeats = np.zeros(len(time), bool), np.zeros(len(time), bool)
    duplicates[order[1:][same_item & same_tie]] = True
    repeats[order[1:][same_item & ~same_tie]] = True
    return duplicates, repeats


def _split_baskets(run_of: Int, time: Int, basket: Int) -> Mask:
    """Rows at which a basket of a user goes on at another time than before."""
    rows = run_starts(run_of, time, basket)
    rows = rows[basket[rows] != MISSING]
    order = rows[np.lexsort((time[rows], basket[rows], run_of[rows]))]
    same = (run_of[order][1:] == run_of[order][:-1]) & (basket[order][1:] == basket[order][:-1])
    split = np.zeros(len(time), bool)
    split[order[1:][same & (time[order][1:] != time[order][:-1])]] = True
    return split


def _merge(found: dict[str, list[Int]]) -> UserFacts:
    """Sums the runs of a user; `part` and `shard` are the first ones that it is in."""
    if not found:
        return UserFacts({USER_ID: np.zeros(0, np.int64)})
    columns = {name: np.concatenate(values) for name, values in found.items()}
    users, first, inverse = np.unique(columns.pop(USER_ID), return_index=True, return_inverse=True)
    places = {name: columns.pop(name)[first] for name in ("part", SHARD) if name in columns}
    summed = {
        name: np.bincount(inverse, values, len(users)).astype(np.int64)
        for name, values in columns.items()
    }
    return UserFacts({USER_ID: users, **places, **summed})


def _dtype(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "time" if kind.tz else "timestamp without a zone"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))
