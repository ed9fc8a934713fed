"""DatasetWriter: writes a dataset directory part by part and makes it visible at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import Int64, int64_column
from longrec.data.dataset import (
    DATASET_FORMAT_VERSION,
    event_schema,
    item_schema,
    target_schema,
    user_schema,
)
from longrec.data.shards import part_name, part_of
from longrec.data.timelines import (
    equals_previous,
    group_lengths,
    group_starts,
    history_lengths,
    quantiles,
    quantiles_of_counts,
    sorted_known_times,
    steps_back,
)
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

_EVENT_ORDER = (USER_ID, TIMESTAMP, EVENT_SEQ)
_TARGET_ORDER = (USER_ID, TIMESTAMP, REQUEST_ID)


class DatasetWriter:
    """Writes a dataset directory; nothing is visible before the `with` block ends without error.

        with DatasetWriter(out, schema, name="x", source={...}, num_parts=1) as writer:
            writer.write_part(0, events, targets)
            writer.write_entities(items, users)

    Args:
        directory: path of the dataset; an existing dataset is replaced.
        schema: features and tasks.
        name: name of the data.
        source: JSON for people that describes the raw data.
        num_parts: number of parts; every one must be written, in order.
        event_labels: label columns of events/ that are not event features.
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
        self.directory = Path(directory)
        self.schema = schema
        self.num_parts = num_parts
        self._metadata: dict[str, Any] = {
            "format_version": DATASET_FORMAT_VERSION,
            "name": name,
            "schema": schema.to_dict(),
            "event_labels": list(event_labels),
        }
        if has_created:
            self._metadata["has_created"] = True
        self._metadata["source"] = dict(source)
        self._event_schema = event_schema(
            schema,
            event_labels,
            has_created=has_created,
        )
        self._target_schema = target_schema(schema)
        self._replacement = files.atomic_replace(self.directory)
        self._facts = _FactCounter(schema)
        self.extra_facts: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> DatasetWriter:
        self._check_replaceable()
        self.path = self._replacement.__enter__()
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
                # Without the error, the incomplete directory would become visible.
                self._replacement.__exit__(
                    type(failure),
                    failure,
                    failure.__traceback__,
                )
                raise
        self._replacement.__exit__(kind, error, trace)

    def write_part(
        self,
        part: int,
        events: pa.Table,
        targets: pa.Table,
    ) -> None:
        """Write one part of events/ and targets/.

        Args:
            part: its number; parts come in order.
            events: columns and sort order as in the layout.
            targets: columns and sort order as in the layout.

        Raises:
            DataError: an id is null.
            ValueError: rows are out of order or belong to another part (a mistake of the caller).
        """
        expected_part = self._facts.num_parts_written
        if part != expected_part:
            raise ValueError(f"part {part} was written when part {expected_part} was due")
        events = _select(events, self._event_schema)
        targets = _select(targets, self._target_schema)
        self._check_part(part, events, _EVENT_ORDER)
        self._check_part(part, targets, _TARGET_ORDER)
        self._facts.add(events, targets)
        file_name = part_name(part)
        _write_parquet(events, self.path / "events" / file_name)
        _write_parquet(targets, self.path / "targets" / file_name)

    def write_entities(
        self,
        items: pa.Table,
        users: pa.Table,
    ) -> None:
        """Write items.parquet and users.parquet, sorted by id.

        Raises:
            DataError: an id is null or not unique.
        """
        self._write_entity("items", items, item_schema(self.schema))
        self._write_entity("users", users, user_schema(self.schema))
        self._facts.num_items = items.num_rows

    def _check_replaceable(self) -> None:
        """Raise DataError if the directory holds something other than a dataset."""
        is_replaceable = files.is_empty_or_has(self.directory, "dataset.json")
        if is_replaceable or not self.directory.exists():
            return
        raise DataError(
            f"{self.directory} is not a dataset and will not be replaced",
            fix="Choose an empty or new directory.",
        )

    def _check_part(
        self,
        part: int,
        table: pa.Table,
        order: Sequence[str],
    ) -> None:
        keys = [int64_column(table, name) for name in order]
        int64_column(table, ITEM_ID)  # refuses nulls
        parts = part_of(keys[0], self.num_parts)
        is_sorted = not steps_back(*keys).any()
        is_own = np.all(parts == part)
        if not (is_sorted and is_own):
            raise ValueError(
                f"part {part}: rows must be those of the part, sorted by {', '.join(order)}"
            )

    def _write_entity(
        self,
        name: str,
        table: pa.Table,
        schema: pa.Schema,
    ) -> None:
        key = schema.names[0]
        table = _select(table, schema).sort_by(key)
        ids = int64_column(table, key)
        repeated = ids[1:][equals_previous(ids)]
        if len(repeated):
            raise DataError(
                f"{key} must be unique in {name}",
                found=f"{len(repeated)} repeated, for example {repeated[0]}",
            )
        _write_parquet(table, self.path / f"{name}.parquet")

    def _finish(self) -> None:
        num_written = self._facts.num_parts_written
        has_entities = (self.path / "users.parquet").exists()
        if num_written != self.num_parts or not has_entities:
            raise ValueError(
                f"{num_written} of {self.num_parts} parts were written, or no items and users"
            )
        self.facts = {
            **self._facts.facts(),
            "content_hash": self._content_hash(),
            **self.extra_facts,
        }
        metadata = {**self._metadata, "facts": self.facts}
        files.write_json(self.path / "dataset.json", metadata)

    def _content_hash(self) -> str:
        digest = hashlib.sha256(self.schema.fingerprint.encode())
        for path in sorted(self.path.rglob("*.parquet")):
            name = path.relative_to(self.path)
            line = f"{name}:{files.sha256_of(path)}"
            digest.update(line.encode())
        return digest.hexdigest()


class _FactCounter:
    """Counts over the parts of a dataset while they are written."""

    def __init__(self, schema: Schema) -> None:
        self.num_parts_written = 0
        self.num_events = 0
        self.num_requests = 0
        self.num_targets = 0
        self.num_items = 0
        self._num_positives = dict.fromkeys(schema.task_names, 0)
        self._events_per_user: list[Int64] = []
        self._history_length_counts = np.zeros(0, np.int64)
        self._part_bounds_ms: list[int] = []

    def add(
        self,
        events: pa.Table,
        targets: pa.Table,
    ) -> None:
        """Count one part."""
        event_users, event_times = sorted_known_times(events)
        self.num_parts_written += 1
        self._add_events(event_users, event_times)
        self._add_requests(event_users, event_times, targets)
        self._add_labels(targets)

    def facts(self) -> dict[str, Any]:
        """Return counts, time range, quantiles and label rates."""
        events_per_user = np.concatenate(self._events_per_user)
        first_ms = min(self._part_bounds_ms, default=None)
        last_ms = max(self._part_bounds_ms, default=None)
        divisor = max(self.num_targets, 1)  # no division by zero
        label_rates = {}
        for task, num_positives in self._num_positives.items():
            label_rates[task] = num_positives / divisor
        return {
            "num_parts": self.num_parts_written,
            "num_events": self.num_events,
            "num_users": len(events_per_user),
            "num_items": self.num_items,
            "num_requests": self.num_requests,
            "num_targets": self.num_targets,
            "time_range_ms": [first_ms, last_ms],
            "time_range": [_iso_time(first_ms), _iso_time(last_ms)],
            "events_per_user": quantiles(events_per_user),
            "history_length": quantiles_of_counts(self._history_length_counts),
            "label_rates": label_rates,
        }

    def _add_events(
        self,
        users: Int64,
        times: Int64,
    ) -> None:
        self.num_events += len(users)
        self._events_per_user.append(group_lengths(users))
        if len(times):
            self._part_bounds_ms.append(int(times.min()))
            self._part_bounds_ms.append(int(times.max()))

    def _add_requests(
        self,
        event_users: Int64,
        event_times: Int64,
        targets: pa.Table,
    ) -> None:
        first_rows = group_starts(int64_column(targets, REQUEST_ID))
        lengths = history_lengths(
            event_users,
            event_times,
            int64_column(targets, USER_ID)[first_rows],
            int64_column(targets, TIMESTAMP)[first_rows],
        )
        # With `minlength` the new histogram is at least as long as the old one.
        counts = np.bincount(lengths, minlength=len(self._history_length_counts))
        counts[: len(self._history_length_counts)] += self._history_length_counts
        self._history_length_counts = counts
        self.num_requests += len(first_rows)
        self.num_targets += targets.num_rows

    def _add_labels(self, targets: pa.Table) -> None:
        for task in self._num_positives:
            labels = int64_column(targets, task)
            is_wrong = (labels != 0) & (labels != 1)
            if np.any(is_wrong):
                raise DataError(
                    f"label '{task}' must be 0 or 1",
                    found=sorted(set(labels[is_wrong][:5].tolist())),
                )
            self._num_positives[task] += int(labels.sum())


def _select(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _iso_time(time_ms: int | None) -> str | None:
    if time_ms is None:
        return None
    return f"{np.datetime64(time_ms, 'ms')}Z"
