"""Dataset builder: from the rows of a log to a dataset directory.

    log -> batches -> EventSpill -> one sorted part at a time -> requests -> DatasetWriter

Memory holds all items and users, and one batch or one part of the events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import event_schema, user_schema
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.importers.reading.rejects import GROUPS, LogFile, Rejects
from longrec.data.importers.requests.builder import RequestBuilder
from longrec.data.importers.writing.event_spill import EventSpill, spilled_events
from longrec.data.importers.writing.import_report import ImportReport
from longrec.data.importers.writing.repeats import find_repeats
from longrec.data.shards import ROWS_PER_PART, num_parts_for
from longrec.data.timelines import group_starts
from longrec.errors import DataError
from longrec.schema import ITEM_ID, REQUEST_ID, USER_ID, Schema

log = logging.getLogger(__name__)

REJECTS_FILE = "rejects.csv"
REPEAT = "an exact repeat of an earlier row"


@dataclasses.dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of every importer.

    Args:
        max_reject_share: largest share of bad rows in the log, the item file and the user file.
        rows_per_part: number of events that one part file should hold. It bounds the memory of
            the import and of the readers of the dataset.
        drop_repeats: whether exact repeats of earlier rows are left out; they are counted anyway.
        k_core: smallest number of events of a user and of an item, 0 for no limit; for
            `import_events`.
    """

    max_reject_share: float = 0.01
    rows_per_part: int = ROWS_PER_PART
    drop_repeats: bool = False
    k_core: int = 0

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise DataError("rows_per_part must be at least 1", found=self.rows_per_part)


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Name, source and entity tables of a dataset.

    Args:
        name: name of the data.
        source: JSON that says how the dataset was made.
        items: the item table; None for the items of the log.
        users: the user table, or None. Users of the log that it lacks are added with nulls.
        notes: remarks for the import report.
        write_extra_files: writes further files, given the directory of the new dataset.
    """

    name: str
    source: Mapping[str, Any]
    items: pa.Table | None = None
    users: pa.Table | None = None
    notes: Sequence[str] = ()
    write_extra_files: Callable[[Path], None] | None = None


class DatasetBuilder:
    """An import under way: it collects events, then writes the dataset.

    Args:
        out: the dataset directory.
        schema: features and tasks.
        event_labels: label columns of the events that are not event features.
        options: limits of the import.
        rejects: receives the bad rows.
        spill: receives the events.
    """

    def __init__(
        self,
        out: Path,
        schema: Schema,
        event_labels: Sequence[str],
        *,
        options: ImportOptions,
        rejects: Rejects,
        spill: EventSpill,
    ) -> None:
        self.out = out
        self.schema = schema
        self.event_labels = event_labels
        self.options = options
        self.num_repeats = 0
        self.rejects = rejects
        self.spill = spill
        self._started = time.monotonic()

    def log_file(self, path: Path, group: str = "events") -> LogFile:
        """Return a file to read, with its bad rows going to `rejects`."""
        return LogFile(path, group, self.rejects)

    def write(self, requests: RequestBuilder, info: DatasetInfo) -> ImportReport:
        """Write the dataset from the spilled events; return the report.

        Args:
            requests: builds the targets of each part.
            info: items, users and names.

        Raises:
            DataError: there are no events or no requests, or too many rows were rejected.
        """
        self.spill.close()
        for group in GROUPS:
            self.rejects.check_share(group)
        if not self.spill.num_events:
            raise DataError(
                "the log has no events",
                found=self.rejects.describe("events"),
                fix="Check that these are the right files and columns (--dry-run shows them).",
            )
        with DatasetWriter(
            self.out,
            self.schema,
            name=info.name,
            source=info.source,
            num_parts=self.spill.num_parts,
            event_labels=self.event_labels,
            has_created=self.spill.has_created,
        ) as writer:
            self._write_tables(writer, requests, info)
            if info.write_extra_files is not None:
                info.write_extra_files(writer.path)
            has_rejects = self.rejects.move_to(writer.path / REJECTS_FILE)
        notes = [*self._notes_on_repeats(), *requests.notes(), *info.notes]
        return self._report(info.name, writer.facts, notes, has_rejects)

    def _write_tables(
        self,
        writer: DatasetWriter,
        requests: RequestBuilder,
        info: DatasetInfo,
    ) -> None:
        no_ids = np.zeros(0, np.int64)
        users = [no_ids]
        items = no_ids
        num_requests = 0
        for part in range(self.spill.num_parts):
            summary = self._write_part(writer, requests, part, num_requests)
            num_requests += summary.num_requests
            users.append(summary.users)
            if info.items is None:
                items = np.union1d(items, summary.items)
        if not num_requests:
            raise DataError(
                "no requests could be made of the log",
                fix="See docs/guides/import.md on how events are grouped into requests.",
            )
        item_table = pa.table({ITEM_ID: items}) if info.items is None else info.items
        user_table = _with_missing_users(
            info.users,
            np.concatenate(users),
            self.schema,
        )
        writer.write_entities(item_table, user_table)

    def _write_part(
        self,
        writer: DatasetWriter,
        requests: RequestBuilder,
        part: int,
        first_id: int,
    ) -> _PartSummary:
        """Write one part; return its summary, the only data of it that stays in memory."""
        self._count_repeats(part)
        events = self.spill.read(part)
        self.spill.remove(part)
        targets = requests.build(events, part, first_id)
        writer.write_part(part, events, targets)
        log.info(
            "part %d of %d: %s events",
            part + 1,
            self.spill.num_parts,
            f"{len(events):,}",
        )
        users = int64_column(events, USER_ID)
        return _PartSummary(
            num_requests=len(group_starts(int64_column(targets, REQUEST_ID))),
            users=users[group_starts(users)],
            items=np.unique(int64_column(events, ITEM_ID)),
        )

    def _count_repeats(self, part: int) -> None:
        """Count the exact repeats of a part; leave them out where the options say so."""
        is_repeat = find_repeats(
            self.spill.load(part),
            has_event_numbers=self.schema.has_event_numbers,
        )
        count = int(is_repeat.sum())
        self.num_repeats += count
        if count and self.options.drop_repeats:
            self.spill.leave_out(part, is_repeat)
            self.rejects.filter("events", REPEAT, count)

    def _notes_on_repeats(self) -> list[str]:
        if not self.num_repeats or self.options.drop_repeats:
            return []
        share = self.num_repeats / self.spill.num_events
        return [
            f"{self.num_repeats:,} rows ({share:.1%}) repeat an earlier row in every imported "
            "column; they are kept, since an order may hold two equal lines. If the log was read "
            "twice, leave them out with --drop-repeats"
        ]

    def _report(
        self,
        name: str,
        facts: Mapping[str, Any],
        notes: list[str],
        has_rejects: bool,
    ) -> ImportReport:
        self.rejects.num_accepted["events"] = facts["num_events"]
        return ImportReport(
            path=str(self.out),
            name=name,
            rows_read=self.rejects.num_read["events"],
            rows_rejected=self.rejects.num_rejected["events"],
            row_counts=self.rejects.counts(),
            filter_counts=dict(self.rejects.filters.most_common()),
            num_repeats=self.num_repeats,
            reject_reasons=dict(self.rejects.reasons.most_common()),
            num_events=facts["num_events"],
            num_users=facts["num_users"],
            num_items=facts["num_items"],
            num_requests=facts["num_requests"],
            num_targets=facts["num_targets"],
            time_range=facts["time_range"],
            events_per_user=facts["events_per_user"],
            history_length=facts["history_length"],
            label_rates=facts["label_rates"],
            rejects_path=str(self.out / REJECTS_FILE) if has_rejects else None,
            notes=notes,
            seconds=time.monotonic() - self._started,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _PartSummary:
    """Ids of the users and items of one part, int64, and its number of requests."""

    num_requests: int
    users: Int64
    items: Int64


@contextlib.contextmanager
def open_dataset_builder(
    out: str | Path,
    schema: Schema,
    options: ImportOptions,
    *,
    num_events: int,
    event_labels: Sequence[str] = (),
    has_created: bool = False,
) -> Iterator[DatasetBuilder]:
    """Yield a dataset builder; remove its temporary files at the end.

    Args:
        out: the dataset directory, replaced at once when the import succeeds.
        schema: features and tasks.
        options: limits of the import.
        num_events: estimated number of events.
        event_labels: label columns of the events that are not event features.
        has_created: whether events have the time at which they became known.
    """
    target = Path(out)
    num_parts = num_parts_for(num_events, options.rows_per_part)
    columns = event_schema(schema, event_labels, has_created=has_created)
    with (
        Rejects(target, options.max_reject_share) as rejects,
        spilled_events(target, columns, num_parts) as spill,
    ):
        yield DatasetBuilder(
            target,
            schema,
            event_labels,
            options=options,
            rejects=rejects,
            spill=spill,
        )


def _with_missing_users(
    users: pa.Table | None,
    ids: Int64,
    schema: Schema,
) -> pa.Table:
    """Return the user table and a row of nulls for each user of the log that it lacks."""
    columns = user_schema(schema)
    known = columns.empty_table()
    if users is not None:
        known = users.select(columns.names).cast(columns)
    missing = pa.array(np.setdiff1d(ids, int64_column(known, USER_ID)))
    nulls = [pa.nulls(len(missing), field.type) for field in list(columns)[1:]]
    added = pa.Table.from_arrays([missing, *nulls], schema=columns)
    return pa.concat_tables([known, added])
