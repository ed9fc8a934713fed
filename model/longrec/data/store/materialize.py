"""Fill the online store of a new version in bounded slices, and verify it."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.columns import EVENT_TIME, HISTORY, HISTORY_LENGTH, Int64, int64_column
from longrec.data.store.feast_adapter import FeastAdapter, declarations, open_feast
from longrec.data.store.tail_files import history_directory
from longrec.data.store.versions import PUBLISH_FIRST, PublishedVersion
from longrec.errors import StoreError
from longrec.schema import USER_ID

logger = logging.getLogger(__name__)

MAX_SLICE_BYTES = 256 << 20
"""Largest size of the packed histories that one materialization holds in memory."""
VERIFIED_USERS_PER_FILE = 16
_EPOCH = datetime.datetime(
    1970,
    1,
    1,
    tzinfo=datetime.UTC,
)


def fill_online_store(published: PublishedVersion) -> tuple[int, int]:
    """Apply the declarations and fill the online store of a new version.

    Args:
        published: the version.

    Returns:
        Number of materializations, number of users compared.

    Raises:
        StoreError: the online store does not return what was written.
    """
    feast = open_feast(published.path)
    feast.apply(declarations(published.path, feast.project))
    adapter = FeastAdapter(published)
    num_slices = materialize(adapter)
    return num_slices, verify_online_store(adapter)


def materialize(adapter: FeastAdapter) -> int:
    """Fill the online store, a bounded number of bytes at a time; return the number of slices."""
    published = adapter.published
    table = pq.read_table(
        history_directory(published.path),
        columns=[EVENT_TIME, HISTORY_LENGTH],
    )
    event_times = table.column(EVENT_TIME).cast(pa.int64())
    times_us = np.asarray(event_times, np.int64)
    counts = published.manifest["counts"]
    bytes_per_event = counts["history_bytes"] / max(counts["num_events"], 1)
    sizes = int64_column(table, HISTORY_LENGTH) * bytes_per_event
    num_slices = 0
    for start_us, end_us in time_slices(times_us, sizes):
        _materialize_view(
            adapter,
            "user_history",
            start_us,
            end_us,
        )
        num_slices += 1
    online_views = set()
    for view in adapter.feast.list_feature_views():
        if view.online:
            online_views.add(view.name)
    # All rows of the other views have the time of the end of the log.
    log_end_us = published.log_end_us
    for name in sorted(online_views - {"user_history", "user_tail"}):
        _materialize_view(
            adapter,
            name,
            log_end_us,
            log_end_us,
        )
        num_slices += 1
    return num_slices


def time_slices(times_us: Int64, sizes: npt.NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) microseconds of consecutive slices of about MAX_SLICE_BYTES.

    Rows of one time are in one slice.

    Args:
        times_us: int64, feature timestamp of each row.
        sizes: float64, bytes of each row.
    """
    order = np.argsort(times_us, kind="stable")
    times = times_us[order]
    cumulative = np.cumsum(sizes[order])
    row = 0
    bytes_before = 0.0
    while row < len(times):
        full_row = int(np.searchsorted(cumulative, bytes_before + MAX_SLICE_BYTES))
        last_row = min(full_row, len(times) - 1)
        last_us = int(times[last_row])
        yield int(times[row]), last_us
        row = int(np.searchsorted(times, last_us, side="right"))
        bytes_before = float(cumulative[row - 1])


def verify_online_store(adapter: FeastAdapter) -> int:
    """Compare some users of the first and the last file with the online store; return how many.

    Raises:
        StoreError: a history differs.
    """
    paths = sorted(history_directory(adapter.published.path).glob("*.parquet"))
    num_verified = 0
    for path in sorted({paths[0], paths[-1]}):  # one path if there is one file
        with pq.ParquetFile(path) as file:
            last_group = file.num_row_groups - 1
            table = file.read_row_group(last_group, columns=[USER_ID, HISTORY])
        table = table.slice(0, VERIFIED_USERS_PER_FILE)
        answers = adapter.read_online(int64_column(table, USER_ID).tolist())
        online = [answer[HISTORY] for answer in answers]
        if online != table.column(HISTORY).to_pylist():
            raise StoreError(
                "the online store does not return what was published",
                fix=PUBLISH_FIRST,
            )
        num_verified += len(answers)
    return num_verified


def _materialize_view(
    adapter: FeastAdapter,
    view: str,
    start_us: int,
    end_us: int,
) -> None:
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        adapter.feast.materialize(
            _datetime(start_us),
            _datetime(end_us),
            feature_views=[view],
        )
    logger.debug("materialized %s: %s", view, printed.getvalue())


def _datetime(time_us: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=time_us)
