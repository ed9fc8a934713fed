"""Score users offline, with the model and the feature store that the service reads."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import TIMESTAMP_TYPE, Int64, int64_column
from longrec.data.dataset import unreadable_parquet
from longrec.data.store.online_store import OnlineStore
from longrec.errors import DataError
from longrec.schema import ITEM_ID, TIMESTAMP, USER_ID
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer, Scores
from longrec.times import require_times

USERS_PER_READ = 64
RANK = "rank"
"""Output column: position of the item among the candidates of its request, from 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one user at one time.

    Args:
        user_id: the user.
        request_time_ms: only events strictly before this time are used.
        item_ids: int64 [m].
    """

    user_id: int
    request_time_ms: int
    item_ids: Int64


def read_candidates(path: Path, time_origin_ms: int = 0) -> list[Candidates]:
    """Return the requests of a Parquet file, in the order of their first rows.

    Rows with the same user and time are one request. Rows without a time are requests of now.

    Args:
        path: columns `user_id`, `item_id` and, optionally, `timestamp` (ms).
        time_origin_ms: start of the log's times, ms since 1970.

    Raises:
        DataError: the file is missing or unreadable, lacks a column, or holds a null or a wrong
            time.
    """
    table = _read_table(path)
    users = int64_column(table, USER_ID)
    items = int64_column(table, ITEM_ID)
    if TIMESTAMP in table.column_names:
        times = require_times(TIMESTAMP, int64_column(table, TIMESTAMP), time_origin_ms)
    else:
        times = np.full(len(users), _now_ms(), np.int64)
    rows: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(users.tolist(), times.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    return [Candidates(user, at, items[found]) for (user, at), found in rows.items()]


def all_pairs(user_ids: Int64, item_ids: Int64) -> Iterator[Candidates]:
    """Yield a request of now for each user, with the same candidates.

    Args:
        user_ids: int64 [U].
        item_ids: int64 [m].
    """
    now = _now_ms()
    for user_id in user_ids.tolist():
        yield Candidates(user_id, now, item_ids)


def predict(
    scorer: Scorer,
    store: OnlineStore,
    requests: Sequence[Candidates],
    out: Path,
    *,
    top_k: int = 0,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> int:
    """Write the scores of requests to a Parquet file; return its number of rows.

    The scores equal those of `/rank`. Columns: `user_id`, `timestamp`, `item_id`, `rank` by the
    first task, then one probability per task.

    Args:
        scorer: the model.
        store: the online store of the work directory.
        requests: users and candidates.
        out: the file, replaced in one step.
        top_k: best candidates of each request to write; 0 for all, in their own order.
        on_progress: called with the number of requests done.

    Raises:
        DataError: a stored history is corrupted, or the disk is full.
        StoreError: the online store cannot be read.
    """
    num_rows = 0
    with files.atomic_replace(out) as temporary:
        schema = _output_schema(scorer.task_names)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for start in range(0, len(requests), USERS_PER_READ):
                batch = requests[start : start + USERS_PER_READ]
                table = _score(scorer, store, batch, top_k)
                writer.write_table(table)
                num_rows += table.num_rows
                on_progress(start + len(batch))
    return num_rows


def _score(
    scorer: Scorer, store: OnlineStore, requests: Sequence[Candidates], top_k: int
) -> pa.Table:
    """Return the output rows of a few requests."""
    records = store.fetch([request.user_id for request in requests])
    rows = [
        RequestRows(record.history, record.features, request.request_time_ms, request.item_ids)
        for record, request in zip(records, requests, strict=True)
    ]
    tables = []
    for request, scores in zip(requests, scorer.score(rows), strict=True):
        tables.append(_output_rows(request, scores, scorer.task_names, top_k))
    return pa.concat_tables(tables)


def _output_rows(
    request: Candidates, scores: Scores, task_names: Sequence[str], top_k: int
) -> pa.Table:
    order = np.argsort(-scores[:, 0], kind="stable")
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(1, len(order) + 1)
    written = order[:top_k] if top_k else np.arange(len(order))
    columns = {
        USER_ID: np.full(len(written), request.user_id, np.int64),
        TIMESTAMP: np.full(len(written), request.request_time_ms, np.int64),
        ITEM_ID: request.item_ids[written],
        RANK: ranks[written],
    }
    for position, task in enumerate(task_names):
        columns[task] = scores[written, position]
    return pa.table(columns).cast(_output_schema(task_names))


def _output_schema(task_names: Sequence[str]) -> pa.Schema:
    columns = [
        (USER_ID, pa.int64()),
        (TIMESTAMP, TIMESTAMP_TYPE),
        (ITEM_ID, pa.int64()),
        (RANK, pa.int32()),
    ]
    return pa.schema(columns + [(task, pa.float32()) for task in task_names])


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(
            f"no file {path}", expected="a Parquet file with the columns user_id and item_id"
        )
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable_parquet(path, error) from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
