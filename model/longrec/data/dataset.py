"""Dataset: a directory of events, targets, items and users in one fixed layout; what every importer
writes and every reader trusts.

    DIR/dataset.json                 format_version, name, schema, event_labels, source, facts
    DIR/events/part-00000.parquet    whole users, sorted by (user_id, timestamp, event_seq);
    `created` where the log says when rows came in
    DIR/targets/part-00000.parquet   the requests of the same users, sorted by (user_id, timestamp,
    request_id, position)
    DIR/items.parquet  DIR/users.parquet    one row per id, sorted by it
    DIR/rejects.csv                  file,line,reason,row; only when something was rejected

A part is bounded in rows, so a reader that takes one part at a time has bounded memory; users go to
parts by a hash of user_id.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.encoder import splitmix64
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    FORMAT_VERSION,
    ITEM_ID,
    REQUEST_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    Schema,
)

ROWS_PER_PART = 2_000_000
"""Events that one part is meant to hold; sorting it takes some hundreds of MB."""
MAX_PARTS = 1_024
AGAIN = "Import the data again."
TIMESTAMP_TYPE = pa.timestamp("ms", tz="UTC")

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Some users of a dataset: those of part `index * P // count` up to the next shard's first, of
    P parts; written `2/5`, from `1/5` on.

    A user is in one part, by a hash of its id, so the shards of a dataset hold whole users and
    together all of them, in order. With
    fewer parts than shards some shards are empty.

    Args:
        index: from 0.
        count: of shards.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise DataError(
                "there is no such shard",
                found=str(self),
                expected=f"1/{self.count} to {self.count}/{self.count}",
            )

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Returns the shard that `str` wrote.

        Raises:
            DataError: the text names no shard.
        """
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise DataError("this names no shard", found=text, expected="for example 2/5")
        return cls(int(index) - 1, int(count))

    def parts(self, num_parts: int) -> range:
        """Returns its parts of `num_parts`."""
        return range(
            self.index * num_parts // self.count, (self.index + 1) * num_parts // self.count
        )


WHOLE = Shard()


def shards(count: int) -> list[str]:
    """Returns the names of all shards, in order."""
    return [str(Shard(index, count)) for index in range(count)]


def in_order(found: Sequence[Shard]) -> list[int]:
    """Returns the places of all shards of a dataset, first shard first.

    Raises:
        DataError: they are not all shards, once each.
    """
    order = sorted(range(len(found)), key=lambda place: found[place].index)
    if not found or [found[place] for place in order] != [
        Shard(index, len(found)) for index in range(len(found))
    ]:
        raise DataError(
            "these are not all shards of a dataset, once each",
            found=", ".join(map(str, found)) or "none",
            expected=", ".join(shards(found[0].count if found else 1)),
        )
    return order


def parts_for(num_events: int, rows_per_part: int = ROWS_PER_PART) -> int:
    """Returns how many parts a data set of about `num_events` events gets, at least 1."""
    return int(min(max(-(-num_events // rows_per_part), 1), MAX_PARTS))


def part_of(user_ids: Int64, num_parts: int) -> Int64:
    """Returns the part of each user, int64 in [0, num_parts); the same on every machine."""
    return (splitmix64(user_ids.astype(np.int64)) % np.uint64(num_parts)).astype(np.int64)


def part_name(part: int) -> str:
    """Returns the file name of a part."""
    return f"part-{part:05d}.parquet"


def arrow_type(feature: Feature) -> pa.DataType:
    """Returns the Arrow type of a feature's column."""
    return {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}[feature.dtype]


def event_schema(
    schema: Schema, event_labels: Sequence[str] = (), *, has_created: bool = False
) -> pa.Schema:
    """Returns the columns of events/: keys, event features, then labels that are not event features
    themselves.
    """
    basket = [(BASKET_ID, pa.int64())] if schema.has_baskets else []
    created = [(CREATED, TIMESTAMP_TYPE)] if has_created else []
    keys = [
        (USER_ID, pa.int64()),
        (ITEM_ID, pa.int64()),
        (TIMESTAMP, TIMESTAMP_TYPE),
        (EVENT_SEQ, pa.int64()),
        *basket,
        *created,
    ]
    return pa.schema(
        [
            *keys,
            *((entry.name, arrow_type(entry)) for entry in schema.event),
            *((name, pa.int8()) for name in event_labels),
        ]
    )


def target_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of targets/: keys, then one int8 label per task."""
    keys = [
        (REQUEST_ID, pa.int64()),
        (USER_ID, pa.int64()),
        (TIMESTAMP, TIMESTAMP_TYPE),
        (ITEM_ID, pa.int64()),
    ]
    return pa.schema([*keys, *((name, pa.int8()) for name in schema.task_names)])


def item_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of items.parquet."""
    return pa.schema([(entry.name, arrow_type(entry)) for entry in schema.item])


def user_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of users.parquet."""
    return pa.schema(
        [(USER_ID, pa.int64()), *((entry.name, arrow_type(entry)) for entry in schema.user)]
    )


def quantiles(lengths: npt.NDArray[Any]) -> dict[str, int]:
    """Returns p10, p50, p90, p99 and max of some lengths (all 0 when there are none)."""
    if not len(lengths):
        return {"p10": 0, "p50": 0, "p90": 0, "p99": 0, "max": 0}
    values = np.quantile(lengths, [0.1, 0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
    return dict(
        zip(("p10", "p50", "p90", "p99", "max"), (int(value) for value in values), strict=True)
    )


def quantiles_of_counts(counts: Int64) -> dict[str, int]:
    """Returns what `quantiles` gives for counts[l] lengths of l each; memory is that of the longest
    length.
    """
    total = np.cumsum(counts)
    if not len(counts) or not total[-1]:
        return quantiles(counts[:0])
    ranks = [max(-(-total[-1] * tenths // 1_000), 1) for tenths in (100, 500, 900, 990, 1_000)]
    return dict(
        zip(
            ("p10", "p50", "p90", "p99", "max"),
            (int(np.searchsorted(total, rank)) for rank in ranks),
            strict=True,
        )
    )


def int64_of(table: pa.Table | pa.RecordBatch, name: str) -> Int64:
    """Returns a column without nulls as int64; timestamps become milliseconds."""
    column = table.column(name)
    if column.null_count:
        raise DataError(
            f"column '{name}' must not hold nulls", found=f"{column.null_count} of {len(column)}"
        )
    if pa.types.is_timestamp(column.type):
        column = column.cast(TIMESTAMP_TYPE)
    return np.asarray(column.cast(pa.int64()), np.int64)


def group_starts(*keys: npt.NDArray[Any]) -> Int64:
    """Returns the index of the first row of each run of equal keys, int64; empty for no rows."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changed = np.zeros(len(keys[0]) - 1, bool)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.concatenate([[0], np.flatnonzero(changed) + 1]).astype(np.int64)


def known_times(events: pa.Table | pa.RecordBatch) -> Int64:
    """Returns when each event was known, int64 ms: its time, or `created` where the events have one
    and it is later.
    """
    times = int64_of(events, TIMESTAMP)
    return np.maximum(times, int64_of(events, CREATED)) if CREATED in events.schema.names else times


def by_known_time(events: pa.Table) -> tuple[Int64, Int64]:
    """Returns users and `known_times` of the events of a part, int64 [E] each, sorted by (user,
    time).
    """
    users, times = int64_of(events, USER_ID), known_times(events)
    order = np.lexsort((times, users)) if CREATED in events.schema.names else slice(None)
    return users[order], times[order]


def history_lengths(
    event_users: Int64, event_times: Int64, request_users: Int64, request_times: Int64
) -> Int64:
    """Returns how many events of its user lie strictly before each request's moment, int64 [R].

    Args:
        event_users, event_times: int64 [E], sorted by (user, time).
        request_users, moments: int64 [R], in any order (sorted ones are found faster).
    """
    users = request_users
    low, high = (
        np.searchsorted(event_users, users),
        np.searchsorted(event_users, users, side="right"),
    )
    starts = low.copy()
    while np.any(undecided := low < high):
        middle = (low + high) // 2
        earlier = undecided & (
            event_times[np.minimum(middle, len(event_times) - 1)] < request_times
        )
        low, high = np.where(earlier, middle + 1, low), np.where(undecided & ~earlier, middle, high)
    return (low - starts).astype(np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset directory; made by `open`, reads nothing but footers until asked.

    Args:
        path: the directory.
        name: of the data.
        schema: features and tasks.
        event_labels: label columns of events/ beside the event features.
        has_created: whether events/ has the column `created`, the time at which an event became
            known.
        source: what it was made from, for people.
        facts: counts, time range, quantiles, label rates, content hash (see `DatasetWriter`).
        num_parts: files in events/ and in targets/.
        shard: which of them `parts` are; all by default.
    """

    path: Path
    name: str
    schema: Schema
    event_labels: tuple[str, ...]
    has_created: bool
    source: dict[str, Any]
    facts: dict[str, Any]
    num_parts: int
    shard: Shard = WHOLE

    @classmethod
    def open(cls, directory: str | Path, shard: Shard = WHOLE) -> Dataset:
        """Returns the dataset in `directory`, or a shard of its users, after checking its layout,
        columns, types and row counts.

        Args:
            directory: the dataset; of a shard only its own parts need to be there.
            shard: whose parts are looked at.

        Raises:
            DataError: something is missing, unreadable (a truncated file) or not as dataset.json
                says.
            SchemaMismatch: dataset.json holds no usable schema.
        """
        path = Path(directory)
        if not path.is_dir():
            raise DataError(
                f"no dataset at {path}",
                expected="a directory that `longrec import` or `longrec synth` wrote",
            )
        value = files.read_json(path / "dataset.json")
        if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
            found = value.get("format_version") if isinstance(value, dict) else type(value).__name__
            raise DataError(
                f"{path / 'dataset.json'} has another format",
                found=found,
                expected=FORMAT_VERSION,
                fix=AGAIN,
            )
        try:
            schema, facts = Schema.from_dict(value["schema"]), dict(value["facts"])
            labels = tuple(value.get("event_labels", ()))
            dataset = cls(
                path,
                value["name"],
                schema,
                labels,
                bool(value.get("has_created")),
                dict(value["source"]),
                facts,
                facts["num_parts"],
                shard,
            )
        except KeyError as error:
            raise DataError(
                f"{path / 'dataset.json'} lacks a key", found=f"no {error}", fix=AGAIN
            ) from error
        dataset._check()
        return dataset

    @property
    def parts(self) -> range:
        """The parts of the shard."""
        return self.shard.parts(self.num_parts)

    def event_path(self, part: int) -> Path:
        """Returns the path of one part of events/."""
        return self.path / "events" / part_name(part)

    @property
    def _event_schema(self) -> pa.Schema:
        return event_schema(self.schema, self.event_labels, has_created=self.has_created)

    def target_path(self, part: int) -> Path:
        """Returns the path of one part of targets/."""
        return self.path / "targets" / part_name(part)

    def events(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns one part of events/, whole users in order; `columns` in the order given, None for
        all.
        """
        return read_table(self.event_path(part), self._event_schema, columns)

    def targets(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns one part of targets/: the requests of the users of the same part of events/."""
        return read_table(self.target_path(part), target_schema(self.schema), columns)

    def event_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the parts of events/, one in memory at a time."""
        return (self.events(part, columns) for part in self.parts)

    def target_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the parts of targets/, one in memory at a time."""
        return (self.targets(part, columns) for part in self.parts)

    def items(self) -> pa.Table:
        """Returns items.parquet."""
        return read_table(self.path / "items.parquet", item_schema(self.schema))

    def users(self) -> pa.Table:
        """Returns users.parquet."""
        return read_table(self.path / "users.parquet", user_schema(self.schema))

    def _check(self) -> None:
        for folder, arrow, count in (
            ("events", self._event_schema, "num_events"),
            ("targets", target_schema(self.schema), "num_targets"),
        ):
            found, all_parts = (
                sorted(path.name for path in (self.path / folder).glob("*.parquet")),
                range(self.num_parts),
            )
            expected = [part_name(part) for part in all_parts]
            if self.shard != WHOLE:
                expected = [part_name(part) for part in self.parts]
                found = [name for name in found if name in expected]
            if found != expected:
                raise DataError(
                    f"{self.path / folder} does not hold the parts that dataset.json names",
                    found=_span(found),
                    expected=_span(expected),
                    fix=AGAIN,
                )
            rows = sum(check_file(self.path / folder / name, arrow) for name in found)
            _check_count(
                self.path / folder, rows, self.facts.get(count) if self.shard == WHOLE else rows
            )
        items = self.path / "items.parquet"
        _check_count(
            items, check_file(items, item_schema(self.schema)), self.facts.get("num_items")
        )
        check_file(self.path / "users.parquet", user_schema(self.schema))


def check_file(path: Path, expected: pa.Schema) -> int:
    """Returns the number of rows of a Parquet file whose columns are exactly the expected ones.

    Raises:
        DataError: it is missing or unreadable, or a column is missing, unexpected or of another
            type.
    """
    try:
        footer = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=AGAIN) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from error
    with footer:
        found = {field.name: field.type for field in footer.schema_arrow}
        rows = int(footer.metadata.num_rows)
    wanted = {field.name: field.type for field in expected}
    lines = [f"'{name}' is missing" for name in wanted if name not in found]
    lines += [f"'{name}' is unexpected" for name in found if name not in wanted]
    lines += [
        f"'{name}' is {found[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if lines:
        raise DataError(
            f"{path} does not have the columns of its schema",
            found="; ".join(lines),
            expected=", ".join(f"{name} {kind}" for name, kind in wanted.items()),
            fix=AGAIN,
        )
    return rows


def read_table(path: Path, expected: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns a Parquet file that has the expected columns, or some of them.

    Raises:
        DataError: as `check_file`, or its pages are damaged.
    """
    check_file(path, expected)
    names = list(expected.names if columns is None else columns)
    try:
        return pq.read_table(path, columns=names, partitioning=None).select(names)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Returns the error to raise for a damaged or truncated Parquet file."""
    found = (str(error).splitlines() or [""])[0]
    return DataError(
        f"{path} is not a readable Parquet file",
        found=found,
        fix="It may be truncated: copy or import it again.",
    )


class DatasetWriter:
    """Writes a dataset directory at once: nothing is visible under its name before the `with` block
    ends well.

        with DatasetWriter(out, schema, name="x", source={...}, num_parts=1) as writer:
            writer.write_part(0, events, targets)
            writer.write_entities(items, users)

    Args:
        directory: where it goes; an existing one is replaced.
        schema: features and tasks.
        name: of the data.
        source: JSON for people: what it was made from.
        num_parts: every part must be written, in order.
        event_labels: label columns of events/ beside the event features.
        has_created: whether events have the column `created`.
    """

    def __init__(
        self,
        directory: str | Path,
        schema: Schema,
        *,
        name: str,
        source: Mapping[str, Any],
        num_parts: int,
        event_labels: Sequence[str] = (),
        has_created: bool = False,
    ) -> None:
        self.directory, self.schema, self.num_parts = Path(directory), schema, num_parts
        self._head = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "schema": schema.to_dict(),
            "event_labels": list(event_labels),
            **({"has_created": True} if has_created else {}),
            "source": dict(source),
        }
        self._events, self._targets = (
            event_schema(schema, event_labels, has_created=has_created),
            target_schema(schema),
        )
        self._replacing = files.replacing(self.directory)
        self._tally = _Tally(schema)
        self.extra_facts: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> DatasetWriter:
        if (self.directory.exists() and not self.directory.is_dir()) or (
            self.directory.is_dir()
            and any(self.directory.iterdir())
            and not (self.directory / "dataset.json").exists()
        ):
            raise DataError(
                f"{self.directory} is not a dataset and will not be replaced",
                fix="Choose an empty or new directory.",
            )
        self.path = self._replacing.__enter__()
        for folder in ("events", "targets"):
            (self.path / folder).mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException as failure:
                self._replacing.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._replacing.__exit__(kind, error, trace)

    def write_part(
        self,
        part: int,
        events: pa.Table,
        targets: pa.Table,
    ) -> None:
        """Writes one part of events/ and targets/; parts come in order, columns and sort order as
        in the layout.

        Raises:
            DataError: an id is null.
            ValueError: rows are out of order or belong to another part (a mistake of the caller).
        """
        if part != self._tally.num_parts:
            raise ValueError(f"part {part} was written when part {self._tally.num_parts} was due")
        events, targets = (
            events.select(self._events.names).cast(self._events),
            targets.select(self._targets.names).cast(self._targets),
        )
        for table, keys in (
            (events, (USER_ID, TIMESTAMP, EVENT_SEQ)),
            (targets, (USER_ID, TIMESTAMP, REQUEST_ID)),
        ):
            columns = [int64_of(table, key) for key in keys]
            int64_of(table, ITEM_ID)
            if not _is_sorted(columns) or np.any(part_of(columns[0], self.num_parts) != part):
                raise ValueError(
                    f"part {part}: rows must be those of the part, sorted by {', '.join(keys)}"
                )
        self._tally.add(events, targets)
        pq.write_table(events, self.path / "events" / part_name(part), compression="zstd")
        pq.write_table(targets, self.path / "targets" / part_name(part), compression="zstd")

    def write_entities(self, items: pa.Table, users: pa.Table) -> None:
        """Writes items.parquet and users.parquet, sorted by id.

        Raises:
            DataError: an id is null or not unique.
        """
        for name, table, expected in (
            ("items", items, item_schema(self.schema)),
            ("users", users, user_schema(self.schema)),
        ):
            key = expected.names[0]
            table = table.select(expected.names).cast(expected).sort_by(key)
            ids = int64_of(table, key)
            if len(doubles := ids[1:][ids[1:] == ids[:-1]]):
                raise DataError(
                    f"{key} must be unique in {name}",
                    found=f"{len(doubles)} repeated, for example {doubles[0]}",
                )
            pq.write_table(table, self.path / f"{name}.parquet", compression="zstd")
        self._tally.num_items = items.num_rows

    def _finish(self) -> None:
        if self._tally.num_parts != self.num_parts or not (self.path / "users.parquet").exists():
            raise ValueError(
                f"{self._tally.num_parts} of {self.num_parts} parts were written, or no items and users"
            )
        digest = hashlib.sha256(self.schema.fingerprint.encode())
        for path in sorted(self.path.rglob("*.parquet")):
            digest.update(f"{path.relative_to(self.path)}:{files.sha256_of(path)}".encode())
        self.facts = {**self._tally.facts(), "content_hash": digest.hexdigest(), **self.extra_facts}
        files.write_json(self.path / "dataset.json", {**self._head, "facts": self.facts})


class _Tally:
    """Counts over the parts of a dataset while they are written."""

    def __init__(self, schema: Schema) -> None:
        self.tasks = schema.task_names
        self.num_parts = self.num_events = self.num_requests = self.num_targets = self.num_items = 0
        self.positives = dict.fromkeys(self.tasks, 0)
        self.users: list[Int64] = []
        self.histories = np.zeros(0, np.int64)
        self.times: list[int] = []

    def add(self, events: pa.Table, targets: pa.Table) -> None:
        users, times = by_known_time(events)
        starts = group_starts(users)
        self.users.append(np.diff(np.append(starts, len(users))))
        owners, request_times = int64_of(targets, USER_ID), int64_of(targets, TIMESTAMP)
        first = group_starts(int64_of(targets, REQUEST_ID))
        lengths = np.bincount(
            history_lengths(users, times, owners[first], request_times[first]),
            minlength=len(self.histories),
        )
        lengths[: len(self.histories)] += self.histories
        self.histories = lengths
        self.num_parts, self.num_events = self.num_parts + 1, self.num_events + len(users)
        self.num_requests, self.num_targets = (
            self.num_requests + len(first),
            self.num_targets + len(owners),
        )
        self.times += [int(times.min()), int(times.max())] if len(times) else []
        for task in self.tasks:
            labels = int64_of(targets, task)
            if np.any((labels != 0) & (labels != 1)):
                raise DataError(
                    f"label '{task}' must be 0 or 1",
                    found=sorted(set(labels[(labels != 0) & (labels != 1)][:5].tolist())),
                )
            self.positives[task] += int(labels.sum())

    def facts(self) -> dict[str, Any]:
        users = np.concatenate(self.users)
        span = (min(self.times), max(self.times)) if self.times else (None, None)
        return {
            "num_parts": self.num_parts,
            "num_events": self.num_events,
            "num_users": len(users),
            "num_items": self.num_items,
            "num_requests": self.num_requests,
            "num_targets": self.num_targets,
            "time_range_ms": list(span),
            "time_range": [_iso(time) for time in span],
            "events_per_user": quantiles(users),
            "history_length": quantiles_of_counts(self.histories),
            "label_rates": {
                task: count / max(self.num_targets, 1) for task, count in self.positives.items()
            },
        }


def _iso(time_ms: int | None) -> str | None:
    return None if time_ms is None else str(np.datetime64(time_ms, "ms")) + "Z"


def _is_sorted(keys: Sequence[Int64]) -> bool:
    """Returns whether rows never fall in the lexical order of the keys."""
    open_ = np.ones(max(len(keys[0]) - 1, 0), bool)
    for key in keys:
        if np.any(open_ & (key[1:] < key[:-1])):
            return False
        open_ &= key[1:] == key[:-1]
    return True


def _check_count(path: Path, found: int, expected: object) -> None:
    if found != expected:
        raise DataError(
            f"{path} does not have the rows that dataset.json counted",
            found=found,
            expected=expected,
            fix=AGAIN,
        )


def _span(names: Sequence[str]) -> str:
    return (
        "nothing"
        if not names
        else ", ".join(names)
        if len(names) < 4
        else f"{names[0]} .. {names[-1]} ({len(names)})"
    )
