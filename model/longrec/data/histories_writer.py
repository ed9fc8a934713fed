"""Write a histories directory, and split requests by time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data import files, history
from longrec.data.columns import Int64
from longrec.data.dataset import item_schema
from longrec.data.histories import (
    HISTORIES_FORMAT_VERSION,
    SPLITS,
    request_schema,
    target_schema,
    user_schema,
)
from longrec.errors import DataError
from longrec.schema import Schema


class HistoriesWriter:
    """Writes a histories directory; nothing is visible before the `with` block ends without error.

        with HistoriesWriter(out, schema) as writer:
            writer.add(timelines)                       # any number of times, whole users
            writer.finish(users, requests, targets, items, manifest)

    Args:
        directory: path of the histories; existing histories are replaced.
        schema: features and tasks.
    """

    def __init__(
        self,
        directory: str | Path,
        schema: Schema,
    ) -> None:
        self.directory = Path(directory)
        self.schema = schema
        self.num_events = 0
        self._dictionaries: dict[str, pa.Array] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HistoriesWriter:
        is_replaceable = files.is_empty_or_has(self.directory, "manifest.json")
        if self.directory.exists() and not is_replaceable:
            raise DataError(
                f"{self.directory} does not hold histories and will not be replaced",
                fix="Choose an empty or new directory.",
            )
        # A failure while opening closes what was opened: `pop_all` comes last.
        with contextlib.ExitStack() as stack:
            self.path = stack.enter_context(files.atomic_replace(self.directory))
            self.path.mkdir()
            target = pa.OSFile(str(self.path / "timelines.arrow"), "wb")
            stream = stack.enter_context(target)
            writer = pa.ipc.new_file(
                stream,
                history.arrow_schema(self.schema),
                options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True),
            )
            self._writer = stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_finished = (self.path / "manifest.json").exists()
        if kind is None and not is_finished:
            missing = ValueError("finish was not called")
            # With the error, `atomic_replace` discards the incomplete directory.
            self._stack.__exit__(ValueError, missing, None)
            raise missing
        self._stack.__exit__(kind, error, trace)

    def add(self, timelines: pa.RecordBatch) -> tuple[int, int]:
        """Append the events of whole users; return their offsets [start, end) in the file."""
        events = history.conform(timelines, self.schema)
        self._writer.write_batch(self._with_common_dictionaries(events))
        start = self.num_events
        self.num_events += events.num_rows
        return start, self.num_events

    def finish(
        self,
        users: pa.Table,
        requests: pa.Table,
        targets: pa.Table,
        items: pa.Table,
        manifest: dict[str, Any],
    ) -> None:
        """Write the tables, then the manifest with their counts.

        Args:
            users, requests, targets, items: tables with the columns of their schemas.
            manifest: further entries of manifest.json.
        """
        self._write_table("users", users, user_schema(self.schema))
        self._write_table("requests", requests, request_schema())
        self._write_table("targets", targets, target_schema(self.schema))
        self._write_table("items", items, item_schema(self.schema))
        content = {
            "format_version": HISTORIES_FORMAT_VERSION,
            "schema": self.schema.to_dict(),
            "fingerprint": self.schema.fingerprint,
            "counts": {
                "num_events": self.num_events,
                "num_users": users.num_rows,
                "num_requests": requests.num_rows,
                "num_targets": targets.num_rows,
                "num_items": items.num_rows,
            },
            **manifest,
        }
        files.write_json(self.path / "manifest.json", content)

    def _write_table(
        self,
        name: str,
        table: pa.Table,
        schema: pa.Schema,
    ) -> None:
        table = table.select(schema.names).cast(schema)
        pq.write_table(
            table.combine_chunks(),  # equal tables become equal bytes, whatever their chunks
            self.path / f"{name}.parquet",
            compression="zstd",
        )

    def _with_common_dictionaries(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch with dictionaries that extend the written ones.

        An Arrow file allows only dictionaries that extend the ones before them (deltas).
        """
        columns = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type):
                column = self._extend_dictionary(name, column)
            columns.append(column)
        return pa.record_batch(columns, schema=batch.schema)

    def _extend_dictionary(
        self,
        name: str,
        column: pa.DictionaryArray,
    ) -> pa.DictionaryArray:
        initial = pa.array([""], pa.string())
        known = self._dictionaries.get(name, initial)
        is_new = pc.is_null(pc.index_in(column.dictionary, known))
        new_texts = column.dictionary.filter(is_new)
        known = pa.concat_arrays([known, new_texts])
        self._dictionaries[name] = known
        positions = pc.index_in(column.dictionary, known)
        return pa.DictionaryArray.from_arrays(positions.take(column.indices), known)


def split_times(
    request_times: Int64,
    warmup_fraction: float,
    eval_fraction: float,
) -> tuple[int, int]:
    """Return (end of the warm-up, start of the evaluation) in ms.

    Requests of one time are always on the same side of a split, so the fractions are approximate.

    Args:
        request_times: int64 [R], sorted, in ms; not empty.
        warmup_fraction: share of the requests before the training.
        eval_fraction: share of the requests after the training; 0 for none.
    """
    num_requests = len(request_times)
    num_warmup = int(num_requests * warmup_fraction)
    num_eval = round(num_requests * eval_fraction)
    warmup_end = int(request_times[num_warmup])
    if eval_fraction == 0:
        return warmup_end, int(request_times[-1]) + 1
    first_eval = min(num_requests - num_eval, num_requests - 1)
    return warmup_end, int(request_times[first_eval])


def split_names(
    request_times: Int64,
    warmup_end: int,
    split_time: int,
) -> list[str]:
    """Return the split of each request.

    Args:
        request_times: int64 [R], ms.
        warmup_end: requests before this time are `warmup`, ms.
        split_time: requests from this time on are `eval`, ms; those between are `train`.
    """
    is_eval = request_times >= split_time
    is_warmup = request_times < warmup_end
    warmup, train, eval_ = SPLITS
    names = np.where(is_warmup, warmup, train)
    names = np.where(is_eval, eval_, names)
    split_of_each: list[str] = names.tolist()
    return split_of_each
