"""Histories: what training and evaluation read; timelines of whole users, and requests that are offsets into them.

    timelines   | u0: e e e e e | u1: e e | u2: e e e e |      one Arrow file; a record batch holds whole users
    request        [     )                                     user 0, events strictly before its moment, at most max_history
    request                 [ )                                a request owns [target_start, target_end) of targets

No event is copied per request. `Histories` maps the timelines into memory; a history is a slice of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.data import dataset as layout
from longrec.data import files, history
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import FORMAT_VERSION, ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema

SPLITS = ("warmup", "train", "eval")
AGAIN = "Make the histories again (step retrieve)."
_OFFSETS = ("event_start", "event_end", "target_start", "target_end")

Int64 = npt.NDArray[np.int64]


def request_schema() -> pa.Schema:
    """Returns the columns of requests.parquet."""
    return pa.schema(
        [(name, pa.int64()) for name in (REQUEST_ID, "user_row", TIMESTAMP, *_OFFSETS)]
        + [("split", pa.string())]
    )


def target_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of targets.parquet: item_id and one int8 label per task."""
    return pa.schema([(ITEM_ID, pa.int64()), *((name, pa.int8()) for name in schema.task_names)])


def user_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of users.parquet: row, id, span of the timeline, user features."""
    spans = [(name, pa.int64()) for name in ("user_row", USER_ID, "event_start", "event_end")]
    return pa.schema(
        [*spans, *((feature.name, layout.arrow_type(feature)) for feature in schema.user)]
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Histories:
    """An opened histories directory; made by `open`.

    Args:
        path: the directory.
        schema: features and tasks.
        manifest: counts, time range, split moments, where it came from.
        requests: one row per request, sorted by timestamp (see `request_schema`).
        targets: one row per target (see `target_schema`).
        users: one row per user, in the order of the timelines (see `user_schema`).
        items: item_id and the item features, as the feature store returned them.
        batches: the timelines, mapped into memory.
        batch_starts: int64 [len(batches) + 1], offset of the first event of each batch.
    """

    path: Path
    schema: Schema
    manifest: dict[str, Any]
    requests: pa.Table
    targets: pa.Table
    users: pa.Table
    items: pa.Table
    batches: tuple[pa.RecordBatch, ...]
    batch_starts: Int64

    @classmethod
    def open(cls, directory: str | Path) -> Histories:
        """Returns the histories in `directory`.

        Raises:
            DataError: a file is missing, truncated or not as the manifest says, or offsets do not
                fit.
            SchemaMismatch: the timelines were recorded by another schema than the manifest's.
        """
        path = Path(directory)
        manifest = files.read_json(path / "manifest.json")
        if (
            not isinstance(manifest, dict)
            or manifest.get("format_version") != FORMAT_VERSION
            or "schema" not in manifest
        ):
            raise DataError(
                f"{path / 'manifest.json'} is not of histories of this format",
                expected=f"format_version {FORMAT_VERSION}",
                fix=AGAIN,
            )
        schema = Schema.from_dict(manifest["schema"])
        batches = _map_timelines(path / "timelines.arrow", schema)
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64)
        tables = {
            "requests": request_schema(),
            "targets": target_schema(schema),
            "users": user_schema(schema),
            "items": layout.item_schema(schema),
        }
        read = {
            name: layout.read_table(path / f"{name}.parquet", expected)
            for name, expected in tables.items()
        }
        histories = cls(
            path,
            schema,
            manifest,
            batches=batches,
            batch_starts=starts,
            **read,
        )
        histories._check()
        return histories

    @property
    def num_requests(self) -> int:
        return int(self.requests.num_rows)

    @property
    def num_events(self) -> int:
        """Events in the timelines."""
        return int(self.batch_starts[-1])

    @property
    def split_time_ms(self) -> int:
        """The first moment of the evaluation requests; every training request is strictly before
        it.
        """
        return int(self.manifest["split_time_ms"])

    def event_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the timelines, whole users one after another, as views."""
        yield from self.batches

    def events(self, start: int, end: int) -> pa.RecordBatch:
        """Returns the events of global offsets [start, end), which must lie within one user, as a
        slice.
        """
        row = min(
            int(np.searchsorted(self.batch_starts, start, side="right")) - 1, len(self.batches) - 1
        )
        if row < 0 or not 0 <= start <= end <= self.num_events or end > self.batch_starts[row + 1]:
            if start == end and 0 <= start <= self.num_events:
                return history.empty(self.schema)
            raise DataError(
                "no such events",
                found=f"offsets {start}..{end}",
                expected=f"one user's, within 0..{self.num_events}",
            )
        return self.batches[row].slice(start - int(self.batch_starts[row]), end - start)

    def history(self, request_row: int) -> pa.RecordBatch:
        """Returns the history of the request in a row of `requests`, as a slice: events strictly
        before it, the most recent ones.
        """
        start, end = (
            self.requests.column(name)[request_row].as_py() for name in ("event_start", "event_end")
        )
        return self.events(start, end)

    def timeline(self, user_row: int) -> pa.RecordBatch:
        """Returns all events of the user in a row of `users`, as a slice."""
        start, end = (
            self.users.column(name)[user_row].as_py() for name in ("event_start", "event_end")
        )
        return self.events(start, end)

    def _check(self) -> None:
        counts = {
            "num_events": self.num_events,
            "num_requests": self.num_requests,
            "num_targets": self.targets.num_rows,
            "num_users": self.users.num_rows,
            "num_items": self.items.num_rows,
        }
        expected = {name: self.manifest.get("counts", {}).get(name) for name in counts}
        if counts != expected:
            wrong = [name for name in counts if counts[name] != expected[name]]
            found, wanted = (
                ", ".join(f"{side[name]} {name}" for name in wrong) for side in (counts, expected)
            )
            raise DataError(
                f"{self.path} does not hold what its manifest counted",
                found=found,
                expected=wanted,
                fix=AGAIN,
            )
        self._check_requests()

    def _check_requests(self) -> None:
        columns = {
            name: layout.int64_of(self.requests, name)
            for name in ("user_row", TIMESTAMP, *_OFFSETS)
        }
        spans = {name: layout.int64_of(self.users, name) for name in ("event_start", "event_end")}
        rows = columns["user_row"]
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.users.num_rows):
            raise DataError(
                f"{self.path}: a request names no user",
                found=f"user_row {rows.min()}..{rows.max()}",
                expected=f"0..{self.users.num_rows - 1}",
                fix=AGAIN,
            )
        if np.any(columns[TIMESTAMP][1:] < columns[TIMESTAMP][:-1]):
            raise DataError(f"{self.path}: requests are not sorted by time", fix=AGAIN)
        inside = (columns["event_start"] >= spans["event_start"][rows]) & (
            columns["event_end"] <= spans["event_end"][rows]
        )
        ordered = (columns["event_start"] <= columns["event_end"]) & (
            columns["target_start"] < columns["target_end"]
        )
        bounded = (columns["target_start"] >= 0) & (columns["target_end"] <= self.targets.num_rows)
        if len(wrong := np.flatnonzero(~(inside & ordered & bounded))):
            raise DataError(
                f"{self.path}: offsets of requests do not fit",
                found=f"{len(wrong)} requests, first row {wrong[0]}",
                expected="events of its own user and at least one target",
                fix=AGAIN,
            )


class HistoriesWriter:
    """Writes a histories directory at once; nothing is visible under its name before the `with`
    block ends well.

        with HistoriesWriter(out, schema) as writer:
            writer.add(timelines)                       # any number of times, whole users
            writer.finish(users, requests, targets, items, manifest)

    Args:
        directory: where it goes; histories that are there are replaced.
        schema: features and tasks.
    """

    def __init__(self, directory: str | Path, schema: Schema) -> None:
        self.directory, self.schema, self.num_events = Path(directory), schema, 0
        self._texts: dict[str, pa.Array] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HistoriesWriter:
        if self.directory.exists() and not (
            self.directory.is_dir()
            and (not any(self.directory.iterdir()) or (self.directory / "manifest.json").exists())
        ):
            raise DataError(
                f"{self.directory} does not hold histories and will not be replaced",
                fix="Choose an empty or new directory.",
            )
        with contextlib.ExitStack() as stack:
            self.path = stack.enter_context(files.replacing(self.directory))
            self.path.mkdir()
            file = stack.enter_context(pa.OSFile(str(self.path / "timelines.arrow"), "wb"))
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            self._writer = stack.enter_context(
                pa.ipc.new_file(file, history.arrow_schema(self.schema), options=options)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not (self.path / "manifest.json").exists():
            kind, error = ValueError, ValueError("finish was not called")
            self._stack.__exit__(kind, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)

    def add(self, timelines: pa.RecordBatch) -> tuple[int, int]:
        """Returns the offsets [start, end) of the events in the file after appending them; they are
        whole users.
        """
        batch = self._with_common_texts(history.conform(timelines, self.schema))
        self._writer.write_batch(batch)
        start, self.num_events = self.num_events, self.num_events + batch.num_rows
        return start, self.num_events

    def finish(
        self,
        users: pa.Table,
        requests: pa.Table,
        targets: pa.Table,
        items: pa.Table,
        manifest: dict[str, Any],
    ) -> None:
        """Writes the tables, then the manifest with their counts beside `manifest`."""
        tables = {
            "users": (users, user_schema(self.schema)),
            "requests": (requests, request_schema()),
            "targets": (targets, target_schema(self.schema)),
            "items": (items, layout.item_schema(self.schema)),
        }
        for (
            name,
            (table, expected),
        ) in (
            tables.items()
        ):  # in one chunk: equal tables are equal bytes, however they were put together
            pq.write_table(
                table.select(expected.names).cast(expected).combine_chunks(),
                self.path / f"{name}.parquet",
                compression="zstd",
            )
        counts = {
            "num_events": self.num_events,
            **{f"num_{name}": table.num_rows for name, (table, _) in tables.items()},
        }
        head = {
            "format_version": FORMAT_VERSION,
            "schema": self.schema.to_dict(),
            "fingerprint": self.schema.fingerprint,
        }
        files.write_json(self.path / "manifest.json", {**head, "counts": counts, **manifest})

    def _with_common_texts(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with dictionaries that extend those written before: an Arrow file
        allows nothing else.
        """
        columns = [
            self._extend(name, column) if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        return pa.record_batch(columns, schema=batch.schema)

    def _extend(self, name: str, column: pa.DictionaryArray) -> pa.DictionaryArray:
        known = self._texts.get(name, pa.array([""], pa.string()))
        unseen = pc.is_null(pc.index_in(column.dictionary, known))
        known = self._texts[name] = pa.concat_arrays([known, column.dictionary.filter(unseen)])
        return pa.DictionaryArray.from_arrays(
            pc.index_in(column.dictionary, known).take(column.indices), known
        )


def split_times(
    request_times: Int64, warmup_fraction: float, eval_fraction: float
) -> tuple[int, int]:
    """Returns (first moment after the warm-up, first moment of the evaluation), ms, for requests
    with these sorted moments.

    Requests of one moment are always on the same side; so the shares hold up to the requests of two
    moments.
    """
    num_warmup = int(len(request_times) * warmup_fraction)
    num_before_eval = min(
        len(request_times) - round(len(request_times) * eval_fraction), len(request_times) - 1
    )
    if eval_fraction == 0:
        return int(request_times[num_warmup]), int(request_times[-1]) + 1
    return int(request_times[num_warmup]), int(request_times[num_before_eval])


def split_names(request_times: Int64, warmup_end: int, split_time: int) -> Sequence[str]:
    """Returns the split of each request: warmup before `warmup_end`, eval from `split_time` on,
    train between.
    """
    codes = np.where(request_times >= split_time, 2, np.where(request_times < warmup_end, 0, 1))
    return [SPLITS[code] for code in codes.tolist()]


def _map_timelines(path: Path, schema: Schema) -> tuple[pa.RecordBatch, ...]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = tuple(reader.get_batch(row) for row in range(reader.num_record_batches))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=AGAIN) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Arrow file", found=str(error).splitlines()[0], fix=AGAIN
        ) from error
    expected = history.arrow_schema(schema)
    if not reader.schema.equals(expected, check_metadata=True):
        found = (reader.schema.metadata or {}).get(history.FINGERPRINT_KEY, b"no tag").decode()
        raise SchemaMismatch(
            f"{path} was recorded by another schema",
            found=found,
            expected=schema.fingerprint,
            fix=AGAIN,
        )
    return batches
