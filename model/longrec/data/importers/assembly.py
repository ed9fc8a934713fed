"""From checked rows to a dataset: events go to temporary parts by user, each part is sorted, its
requests are cut, it is written.

Memory holds one batch while reading and one part while writing, whatever the length of the log;
items and users are held whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import files
from longrec.data.dataset import (
    ROWS_PER_PART,
    TIMESTAMP_TYPE,
    DatasetWriter,
    event_schema,
    group_starts,
    int64_of,
    part_of,
    user_schema,
)
from longrec.data.importers.readers import Rejects
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

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
CutRequests = Callable[[pa.Table, int, int], pa.Table]
"""(sorted events of a part, first request id, part) -> targets of the part."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import read and wrote.

    Args:
        path: the dataset directory.
        name: of the data.
        rows_read, rows_rejected: rows of the log.
        reject_reasons: "group: reason" to rows, of the log and of the item and user files.
        num_events, num_users, num_items, num_requests, num_targets: counts of what was written.
        time_range: first and last time of an event, ISO 8601 UTC.
        events_per_user, history_length: p10, p50, p90, p99, max over users, and over requests
            (events before the moment).
        label_rates: mean of each label over the targets.
        rejects_path: where the rejected rows are; None when there are none.
        notes: what a person should know about how the data came out.
        seconds: wall time.
    """

    path: str
    name: str
    rows_read: int
    rows_rejected: int
    reject_reasons: dict[str, int]
    num_events: int
    num_users: int
    num_items: int
    num_requests: int
    num_targets: int
    time_range: list[str]
    events_per_user: dict[str, int]
    history_length: dict[str, int]
    label_rates: dict[str, float]
    rejects_path: str | None
    notes: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options that every importer has.

    Args:
        max_reject_share: largest share of bad rows of the log, the item file and the user file.
        rows_per_part: events that one part file is meant to hold; bounds the memory of the import
            and of its readers.
    """

    max_reject_share: float = 0.01
    rows_per_part: int = ROWS_PER_PART

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise DataError("rows_per_part must be at least 1", found=self.rows_per_part)


class Spill:
    """Events on their way to parts: one temporary Arrow file per part, written in any order, read
    back sorted.

    Args:
        directory: made here, removed by `spilling`.
        schema: columns of the events; times are int64 ms until they are read back.
        num_parts: of the dataset.
    """

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        num_parts: int,
    ) -> None:
        self.num_parts, self.num_rows, self.directory = num_parts, 0, directory
        self._final = schema
        self._schema = pa.schema(
            [
                field.with_type(pa.int64()) if field.name in (TIMESTAMP, CREATED) else field
                for field in schema
            ]
        )
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writers = [
            pa.ipc.new_stream(self._path(part), self._schema, options=options)
            for part in range(num_parts)
        ]

    @property
    def has_created(self) -> bool:
        """Whether the events say when they became known."""
        return CREATED in self._schema.names

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes some events, with the columns of the schema in any order."""
        batch = batch.select(self._schema.names).cast(self._schema)
        parts = part_of(int64_of(batch, USER_ID), self.num_parts)
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(self.num_parts + 1))
        batch = batch.take(pa.array(order)) if self.num_parts > 1 else batch
        for part in np.flatnonzero(np.diff(bounds)):
            self._writers[part].write_batch(
                batch.slice(bounds[part], bounds[part + 1] - bounds[part])
            )
        before, self.num_rows = self.num_rows, self.num_rows + batch.num_rows
        if before // 10_000_000 != self.num_rows // 10_000_000:
            log.info("%s events read", f"{self.num_rows:,}")

    def close(self) -> None:
        """Ends the writing."""
        for writer in self._writers:
            writer.close()
        self._writers = []

    def read(self, part: int, *, last: bool = True) -> pa.Table:
        """Returns the events of a part, sorted by (user_id, timestamp, event_seq); removes its file
        unless it is not the `last` time.

        The events of a basket all get the time of its last one: before that, the basket was not
        complete. So does `created`.
        """
        with pa.OSFile(str(self._path(part))) as stream, pa.ipc.open_stream(stream) as reader:
            table = reader.read_all()
        if last:
            self._path(part).unlink()
        users, sequence = (int64_of(table, name) for name in (USER_ID, EVENT_SEQ))
        request_times = {
            name: int64_of(table, name)
            for name in (TIMESTAMP, CREATED)
            if name in self._schema.names
        }
        if BASKET_ID in self._schema.names:
            request_times = {
                name: _basket_times(users, int64_of(table, BASKET_ID), times)
                for name, times in request_times.items()
            }
        for name, times in request_times.items():
            values = pa.array(times).cast(pa.timestamp("ms")).cast(TIMESTAMP_TYPE)
            table = table.set_column(table.schema.get_field_index(name), name, values)
        return table.take(pa.array(np.lexsort((sequence, request_times[TIMESTAMP], users)))).cast(
            self._final
        )

    def _path(self, part: int) -> Path:
        return self.directory / f"part-{part:05d}.arrow"


@contextlib.contextmanager
def spilling(
    out: Path,
    schema: Schema,
    event_labels: Sequence[str],
    num_parts: int,
    *,
    has_created: bool = False,
) -> Iterator[Spill]:
    """Yields a Spill in a temporary directory beside `out`, removed at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files.tidy(out)
    directory = files.beside(out, "spill")
    directory.mkdir()
    try:
        with files.disk_errors(out):
            yield Spill(
                directory, event_schema(schema, event_labels, has_created=has_created), num_parts
            )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def assemble(
    out: Path,
    schema: Schema,
    spill: Spill,
    cut: CutRequests,
    rejects: Rejects,
    *,
    name: str,
    source: Mapping[str, Any],
    event_labels: Sequence[str] = (),
    items: pa.Table | None = None,
    users: pa.Table | None = None,
    notes: Callable[[], list[str]] = list,
    extras: Callable[[Path], None] = lambda path: None,
    started: float,
) -> ImportReport:
    """Writes the dataset from spilled events and returns the report.

    Args:
        out: the dataset directory, replaced at once.
        schema: features and tasks.
        spill: all events; closed here.
        cut: makes the targets of each part.
        rejects: moved into the dataset.
        name, source: of the data.
        event_labels: label columns of the events that are not event features.
        items: the catalogue, or None for the items of the log.
        users: what is known of users, or None; users of the log that are not in it are added with
            nulls.
        notes: asked at the end, for the report.
        extras: writes further files into the new dataset, given its temporary directory.
        started: `time.monotonic()` at the start of the import.

    Raises:
        DataError: there are no events, or no requests.
    """
    spill.close()
    for group in ("events", "items", "users"):
        rejects.check(group)
    if not spill.num_rows:
        raise DataError("the log has no events", fix="Check that these are the right files.")
    seen_users, seen_items, num_requests = [np.zeros(0, np.int64)], np.zeros(0, np.int64), 0
    with DatasetWriter(
        out,
        schema,
        name=name,
        source=source,
        num_parts=spill.num_parts,
        event_labels=event_labels,
        has_created=spill.has_created,
    ) as writer:
        for part in range(spill.num_parts):
            added, users_here, items_here = _write_part(
                writer, spill, cut, part, num_requests, with_items=items is None
            )
            num_requests += added
            seen_users.append(users_here)
            seen_items = np.union1d(seen_items, items_here)
        if not num_requests:
            raise DataError(
                "no requests could be made of the log",
                fix="See docs/data.md on how requests are cut.",
            )
        catalogue = pa.table({ITEM_ID: seen_items}) if items is None else items
        writer.write_entities(catalogue, _with_users(users, np.concatenate(seen_users), schema))
        extras(writer.path)
        rejected = rejects.move_to(writer.path / "rejects.csv")
    return _report(out, name, writer.facts, rejects, rejected, notes(), started)


def _write_part(
    writer: DatasetWriter,
    spill: Spill,
    cut: CutRequests,
    part: int,
    first_id: int,
    *,
    with_items: bool,
) -> tuple[int, Int64, Int64]:
    """Returns how many requests a part has, its users and, if wanted, its items; nothing else of it
    is in memory afterwards.
    """
    events = spill.read(part)
    targets = cut(events, first_id, part)
    writer.write_part(part, events, targets)
    log.info("part %d of %d: %s events", part + 1, spill.num_parts, f"{events.num_rows:,}")
    users = int64_of(events, USER_ID)
    items = np.unique(int64_of(events, ITEM_ID)) if with_items else np.zeros(0, np.int64)
    return len(group_starts(int64_of(targets, REQUEST_ID))), users[group_starts(users)], items


def _basket_times(users: Int64, baskets: Int64, times: Int64) -> Int64:
    """Returns the time of the last event of each event's basket, int64 ms."""
    order = np.lexsort((baskets, users))
    starts = group_starts(users[order], baskets[order])
    aligned = np.empty(len(times), np.int64)
    if len(times):
        aligned[order] = np.repeat(
            np.maximum.reduceat(times[order], starts), np.diff(np.append(starts, len(times)))
        )
    return aligned


def _with_users(users: pa.Table | None, seen: Int64, schema: Schema) -> pa.Table:
    expected = user_schema(schema)
    known = expected.empty_table() if users is None else users.select(expected.names).cast(expected)
    missing = pa.array(np.setdiff1d(seen, int64_of(known, USER_ID)))
    rows = [missing, *(pa.nulls(len(missing), field.type) for field in list(expected)[1:])]
    return pa.concat_tables([known, pa.Table.from_arrays(rows, schema=expected)])


def _report(
    out: Path,
    name: str,
    facts: Mapping[str, Any],
    rejects: Rejects,
    rejected: bool,
    notes: Sequence[str],
    started: float,
) -> ImportReport:
    return ImportReport(
        path=str(out),
        name=name,
        rows_read=rejects.num_read["events"],
        rows_rejected=rejects.num_rejected["events"],
        reject_reasons=dict(rejects.reasons.most_common()),
        num_events=facts["num_events"],
        num_users=facts["num_users"],
        num_items=facts["num_items"],
        num_requests=facts["num_requests"],
        num_targets=facts["num_targets"],
        time_range=facts["time_range"],
        events_per_user=facts["events_per_user"],
        history_length=facts["history_length"],
        label_rates=facts["label_rates"],
        rejects_path=str(out / "rejects.csv") if rejected else None,
        notes=list(notes),
        seconds=time.monotonic() - started,
    )
