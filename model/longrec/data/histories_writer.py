"""Write a histories directory, and split its requests into parts."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.config import DataConfig
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
from longrec.data.timelines import Mask, group_lengths, group_starts
from longrec.errors import DataError
from longrec.schema import Schema

MIN_VALIDATION_REQUESTS = 10
"""With fewer requests, a validation metric is noise."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class RequestSplit:
    """The part of each request (`longrec.data.histories.SPLITS`).

    Args:
        names: R, the part of each request.
        warmup_end: requests before this time are `warmup` unless they are held out, ms.
        train_end: time of the first request that is held out, for validation or evaluation, ms.
        eval_start: time of the first evaluation request, ms.
        note: why there is no validation part although one was asked for; empty otherwise.
    """

    names: tuple[str, ...]
    warmup_end: int
    train_end: int
    eval_start: int
    note: str = ""


def split_requests(
    request_times: Int64,
    users: Int64,
    num_targets: Int64,
    data: DataConfig,
) -> RequestSplit:
    """Divide requests into warm-up, training, validation and evaluation.

    Requests of one time (with `data.split: user`, of one user and time) are always in the same
    part, so the shares are approximate. Without MIN_VALIDATION_REQUESTS requests to validate on,
    or without any left to train on, there is no validation part.

    Args:
        request_times: int64 [R], sorted, in ms.
        users: int64 [R], any number for each user.
        num_targets: int64 [R], targets of each request.
        data: kind of the split and its shares.
    """
    if not len(request_times):
        return RequestSplit((), 0, 0, 0)
    weights = num_targets if data.share_of == "targets" else np.ones_like(num_targets)
    first = _first_after(weights, data.warmup_fraction)
    warmup_end = int(request_times[first])
    is_warmup = request_times < warmup_end
    if data.split == "user":
        is_eval, is_validation = _last_of_each_user(request_times, users, data)
    else:
        is_eval, is_validation = _latest(request_times, weights, is_warmup, data)
    note = _validation_note(is_validation, is_eval | is_warmup, data)
    if note:
        is_validation = np.zeros_like(is_validation)
    warmup, train, eval_, validation = SPLITS
    names = np.where(is_warmup, warmup, train).astype("<U10")
    names[is_validation] = validation
    names[is_eval] = eval_
    return RequestSplit(
        tuple(names.tolist()),
        warmup_end,
        _first_time(request_times, is_eval | is_validation),
        _first_time(request_times, is_eval),
        note,
    )


def _latest(
    request_times: Int64,
    weights: Int64,
    is_warmup: Mask,
    data: DataConfig,
) -> tuple[Mask, Mask]:
    """Return which requests are evaluated, and which validate: the latest and those before them."""
    total = int(weights.sum())
    is_eval = np.zeros(len(request_times), bool)
    if data.eval_fraction:
        first = _start_of_last(weights, round(total * data.eval_fraction))
        is_eval = request_times >= request_times[first]
    rows = np.flatnonzero(~is_eval & ~is_warmup)
    is_validation = np.zeros(len(request_times), bool)
    if data.validation_fraction and len(rows):
        first = _start_of_last(weights[rows], round(total * data.validation_fraction))
        is_validation = request_times >= request_times[rows[first]]
    return is_eval, is_validation & ~is_eval


def _last_of_each_user(
    request_times: Int64,
    users: Int64,
    data: DataConfig,
) -> tuple[Mask, Mask]:
    """Return which requests are evaluated, and which validate: the last ones of each user.

    A user without an earlier request to train on has neither.
    """
    num_eval = data.leave_last
    num_held_out = num_eval * 2 if data.validation_fraction else num_eval
    order = np.lexsort((request_times, users))
    times = request_times[order]
    starts = group_starts(users[order])
    lengths = group_lengths(users[order])
    ends = starts + lengths
    eval_start = times[np.maximum(ends - num_eval, starts)]
    held_out_start = times[np.maximum(ends - num_held_out, starts)]
    has_training = held_out_start > times[starts]
    never = np.iinfo(np.int64).max
    eval_start = np.where(has_training, eval_start, never)
    held_out_start = np.where(has_training, held_out_start, never)
    is_eval = np.zeros(len(times), bool)
    is_held_out = np.zeros(len(times), bool)
    is_eval[order] = times >= np.repeat(eval_start, lengths)
    is_held_out[order] = times >= np.repeat(held_out_start, lengths)
    return is_eval, is_held_out & ~is_eval


def _validation_note(
    is_validation: Mask,
    is_other: Mask,
    data: DataConfig,
) -> str:
    """Return why the validation part is left out; an empty text keeps it."""
    if not data.validation_fraction:
        return ""
    num_validation = int(is_validation.sum())
    if num_validation < MIN_VALIDATION_REQUESTS:
        return f"{num_validation} requests to validate on, below {MIN_VALIDATION_REQUESTS}"
    if not (~is_validation & ~is_other).any():
        return "no request would be left to train on"
    return ""


def _first_after(weights: Int64, fraction: float) -> int:
    """Return the first request with at least a share of the weight before it."""
    before = np.cumsum(weights) - weights
    wanted = int(weights.sum() * fraction)
    first = int(np.searchsorted(before, wanted))
    return min(first, len(weights) - 1)


def _start_of_last(weights: Int64, wanted: int) -> int:
    """Return the first of the last requests that together weigh at least `wanted`."""
    weight_from = np.cumsum(weights[::-1])[::-1]
    is_enough = weight_from >= max(wanted, 1)
    return max(int(is_enough.sum()) - 1, 0)


def _first_time(request_times: Int64, is_chosen: Mask) -> int:
    """Return the time of the first chosen request; 1 ms after the last request without any."""
    if not is_chosen.any():
        return int(request_times[-1]) + 1
    return int(request_times[is_chosen][0])
