"""Event spill: events of an import in one temporary file per part of the dataset.

Events come in any order and are read back sorted, one part at a time. Memory holds one batch
while writing and one part while reading, whatever the length of the log.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data import files
from longrec.data.columns import Int64, int64_column, timestamp_column
from longrec.data.shards import part_of
from longrec.data.timelines import Mask, group_lengths, group_starts
from longrec.schema import BASKET_ID, CREATED, EVENT_SEQ, TIMESTAMP, USER_ID

log = logging.getLogger(__name__)

LOG_EVERY_EVENTS = 10_000_000
TIME_COLUMNS = (TIMESTAMP, CREATED)


class EventSpill:
    """Temporary Arrow files of events, one per part.

    Args:
        directory: an existing directory for the files.
        schema: columns of the events. Times are int64 ms in the files.
        num_parts: number of parts of the dataset.
    """

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        num_parts: int,
    ) -> None:
        self.directory = directory
        self.num_parts = num_parts
        self.num_events = 0
        self._selected: dict[int, Mask] = {}
        self._schema = schema
        self._file_schema = _with_int64_times(schema)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writers = [
            pa.ipc.new_stream(
                self._path(part),
                self._file_schema,
                options=options,
            )
            for part in range(num_parts)
        ]

    @property
    def has_created(self) -> bool:
        """Whether events have the time at which they became known."""
        return CREATED in self._schema.names

    def add(self, batch: pa.RecordBatch) -> None:
        """Write events to the files of their parts.

        Args:
            batch: the columns of the schema, in any order; times are int64 ms.
        """
        batch = batch.select(self._file_schema.names).cast(self._file_schema)
        parts = part_of(int64_column(batch, USER_ID), self.num_parts)
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(self.num_parts + 1))
        if self.num_parts > 1:
            batch = batch.take(pa.array(order))
        for part in np.flatnonzero(np.diff(bounds)):
            events = batch.slice(bounds[part], bounds[part + 1] - bounds[part])
            self._writers[part].write_batch(events)
        num_before = self.num_events
        self.num_events += batch.num_rows
        if num_before // LOG_EVERY_EVENTS != self.num_events // LOG_EVERY_EVENTS:
            log.info("%s events read", f"{self.num_events:,}")

    def close(self) -> None:
        """End the writing."""
        for writer in self._writers:
            writer.close()
        self._writers = []

    def read(self, part: int) -> pa.Table:
        """Return the events of a part, sorted by (user_id, timestamp, event_seq).

        All events of a basket get the time of its last event, since the basket is not complete
        before. The same holds for `created`.
        """
        table = self.load(part)
        users = int64_column(table, USER_ID)
        times = {
            name: int64_column(table, name) for name in TIME_COLUMNS if name in table.schema.names
        }
        if BASKET_ID in table.schema.names:
            baskets = int64_column(table, BASKET_ID)
            times = {
                name: _last_times_of_baskets(users, baskets, values)
                for name, values in times.items()
            }
        for name, values in times.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, timestamp_column(values))
        order = np.lexsort((int64_column(table, EVENT_SEQ), times[TIMESTAMP], users))
        return table.take(pa.array(order)).cast(self._schema)

    def load(self, part: int) -> pa.Table:
        """Return the selected events of a part as they were added; times are int64 ms."""
        with pa.OSFile(str(self._path(part))) as stream, pa.ipc.open_stream(stream) as reader:
            table = reader.read_all()
        mask = self._selected.get(part)
        return table if mask is None else table.filter(pa.array(mask))

    def leave_out(self, part: int, is_out: Mask) -> None:
        """Leave some of the selected events of a part out of all that is read from now on.

        Args:
            part: its number.
            is_out: bool, one for each event that `load` returns.
        """
        mask = self._selected.get(part, np.ones(len(is_out), bool))
        mask[np.flatnonzero(mask)] = ~is_out
        self._selected[part] = mask

    def remove(self, part: int) -> None:
        """Remove the file of a part."""
        self._path(part).unlink()

    def _path(self, part: int) -> Path:
        return self.directory / f"part-{part:05d}.arrow"


@contextlib.contextmanager
def spilled_events(
    out: Path,
    schema: pa.Schema,
    num_parts: int,
) -> Iterator[EventSpill]:
    """Yield an event spill in a temporary directory next to `out`; remove it at the end.

    Args:
        out: the dataset directory.
        schema: columns of the events.
        num_parts: number of parts of the dataset.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(out)
    directory = files.temporary_path(out, "spill")
    directory.mkdir()
    try:
        with files.explain_full_disk(out):
            yield EventSpill(directory, schema, num_parts)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _with_int64_times(schema: pa.Schema) -> pa.Schema:
    fields = [
        field.with_type(pa.int64()) if field.name in TIME_COLUMNS else field for field in schema
    ]
    return pa.schema(fields)


def _last_times_of_baskets(
    users: Int64,
    baskets: Int64,
    times: Int64,
) -> Int64:
    """Return the time of the last event of each event's basket, int64 ms."""
    if not len(times):
        return np.empty(0, np.int64)
    by_basket = np.lexsort((baskets, users))
    keys = (users[by_basket], baskets[by_basket])
    times_of_baskets = np.maximum.reduceat(times[by_basket], group_starts(*keys))
    last_times = np.empty(len(times), np.int64)
    last_times[by_basket] = np.repeat(times_of_baskets, group_lengths(*keys))
    return last_times
