"""Files of pushed events below a published version, and how far they are online.

    features/user_tail/part-<time>.parquet       incremental tails; its rename completes a push
    features/user_history/fold-<time>.parquet    compacted histories: a base merged with its tail,
                                                 written before the part of the same push
    feast/pushed.json                            time of the last push that is online too
    feast/push.pending                           written before the files of a push, removed when
                                                 they are online

<time> is the feature timestamp of the push in microseconds. It rises strictly, whatever the clock
does. Published stores hold such files, so their names stay. The directories also hold what the
version was published with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files, history
from longrec.data.columns import EVENT_TIME, HISTORY, TAIL, Int64, int64_column
from longrec.data.store.deduplication import pushed_with_copies
from longrec.data.store.versions import PublishedVersion
from longrec.data.timelines import group_lengths
from longrec.schema import USER_ID

MAX_TAIL_FILES = 64
"""Number of tail files that are merged into one."""
_TAIL_PREFIX = "part-"
_COMPACTED_PREFIX = "fold-"
_PENDING_FILE = "push.pending"


def tail_directory(version: Path) -> Path:
    """Return the directory of the tails of a version."""
    return version / "features" / "user_tail"


def history_directory(version: Path) -> Path:
    """Return the directory of the base histories of a version."""
    return version / "features" / "user_history"


def write_tails(
    version: Path,
    tails: pa.Table,
    feature_time_us: int = 0,
) -> None:
    """Write a file of tails, which completes a push on disk.

    Args:
        version: directory of the version.
        tails: rows of user_tail.
        feature_time_us: feature timestamp of the push, microseconds; 0 for the publish.
    """
    directory = tail_directory(version)
    directory.mkdir(exist_ok=True)
    _write_file(version, tails, _tail_path(version, feature_time_us))


def write_compacted(
    version: Path,
    histories: pa.Table,
    feature_time_us: int,
) -> None:
    """Write a file of compacted histories; it counts once the tails of the push are written.

    Args:
        version: directory of the version.
        histories: rows of user_history; no file is written for none.
        feature_time_us: feature timestamp of the push, microseconds.
    """
    if histories.num_rows:
        _write_file(version, histories, _compacted_path(version, feature_time_us))


def last_feature_time(version: Path) -> int:
    """Return the feature timestamp of the last push, microseconds; 0 for none."""
    return max(map(_feature_time_of, _tail_paths(version)), default=0)


def announce_push(version: Path) -> None:
    """Tell readers that a push begins; without an end, it was killed."""
    _pending_path(version).touch()


def is_announced(version: Path) -> bool:
    """Return whether a push has begun and not ended."""
    # This runs on every online read; Path.exists takes twice as long.
    return os.path.exists(f"{version}/feast/{_PENDING_FILE}")  # noqa: PTH110


def is_behind(version: Path) -> bool:
    """Return whether a push is not online, also one that was killed without a word."""
    return is_announced(version) or last_feature_time(version) > _online_time(version)


def end_push(version: Path) -> None:
    """Tell readers that all pushes are online."""
    _pending_path(version).unlink(missing_ok=True)


def record_online(version: Path, feature_time_us: int) -> None:
    """Record that all pushes up to a feature timestamp are online."""
    files.write_json(_online_state_path(version), {"applied_us": feature_time_us})


def remove_incomplete(version: Path) -> None:
    """Remove compacted histories of pushes that were killed before their tails were written."""
    last_us = last_feature_time(version)
    for path in history_directory(version).glob(f"{_COMPACTED_PREFIX}*.parquet"):
        if _feature_time_of(path) > last_us:
            path.unlink()


def not_online(version: Path) -> Iterator[tuple[int, pa.Table | None, pa.Table]]:
    """Yield the pushes that are complete on disk but not recorded as online.

    Yields:
        Feature timestamp in microseconds, compacted histories or None, tails.
    """
    online_us = _online_time(version)
    for path in _tail_paths(version):
        feature_time_us = _feature_time_of(path)
        if feature_time_us <= online_us:
            continue
        compacted_path = _compacted_path(version, feature_time_us)
        compacted = pq.read_table(compacted_path) if compacted_path.is_file() else None
        yield feature_time_us, compacted, pq.read_table(path)


def merge_tail_files(version: Path) -> None:
    """Merge many tail files into one with the last row of each user.

    A reader may meanwhile see a row twice; both are equal.
    """
    paths = _tail_paths(version)
    if len(paths) < MAX_TAIL_FILES:
        return
    tables = [pq.ParquetFile(path).read() for path in paths]
    merged = latest_rows(pa.concat_tables(tables))
    _write_file(version, merged, paths[-1])
    for path in paths[:-1]:
        path.unlink()


def latest_rows(table: pa.Table) -> pa.Table:
    """Return the last row of each user, sorted by user."""
    users = int64_column(table, USER_ID)
    order = np.lexsort((_feature_times(table), users))
    last_positions = np.cumsum(group_lengths(users[order])) - 1
    return table.take(pa.array(order[last_positions]))


def users_with_pushes(version: Path) -> Int64:
    """Return the users with pushed events, sorted."""
    directory = tail_directory(version)
    if not directory.is_dir():
        return np.zeros(0, np.int64)
    table = pq.read_table(directory, columns=[USER_ID])
    return np.unique(int64_column(table, USER_ID))


def pushed_events(previous: PublishedVersion, users: Int64) -> pa.Table:
    """Return the pushed events of users, and the published events that are equal to them.

    Args:
        previous: the version.
        users: int64, users with pushed events.

    Returns:
        user_id and the history codec's columns.
    """
    schema = previous.schema
    of_users = [(USER_ID, "in", users.tolist())]
    all_tails = pq.read_table(tail_directory(previous.path), filters=of_users)
    tails = latest_rows(all_tails)
    histories = pq.read_table(history_directory(previous.path), filters=of_users)
    times_us = _feature_times(histories)
    is_compacted = times_us > previous.log_end_us
    is_complete = times_us <= last_feature_time(previous.path)
    published_rows = histories.filter(pa.array(~is_compacted))
    compacted_rows = histories.filter(pa.array(is_compacted & is_complete))
    published = _payloads(published_rows, HISTORY)
    compacted = _payloads(latest_rows(compacted_rows), HISTORY)
    tables = []
    for user, tail in _payloads(tails, TAIL).items():
        known = history.unpack_or_empty(published.get(user), schema)
        base = history.unpack(compacted[user], schema) if user in compacted else known
        later = history.unpack_or_empty(tail, schema)
        stored = history.merge(base, later, schema)
        pushed = pushed_with_copies(stored, known, schema)
        owners = np.full(pushed.num_rows, user)
        table = pa.Table.from_batches([pushed])
        tables.append(table.append_column(USER_ID, pa.array(owners)))
    return pa.concat_tables(tables).unify_dictionaries()


def _payloads(table: pa.Table, name: str) -> dict[int, bytes]:
    """Return a column of packed histories by user."""
    users = table[USER_ID].to_pylist()
    payloads = table[name].to_pylist()
    return dict(zip(users, payloads, strict=True))


def _feature_times(table: pa.Table) -> Int64:
    """Return the feature timestamps of rows, int64 microseconds."""
    times = table.column(EVENT_TIME).cast(pa.int64())
    return np.asarray(times, np.int64)


def _tail_paths(version: Path) -> list[Path]:
    return sorted(tail_directory(version).glob(f"{_TAIL_PREFIX}*.parquet"))


def _tail_path(version: Path, feature_time_us: int) -> Path:
    return tail_directory(version) / f"{_TAIL_PREFIX}{feature_time_us:020d}.parquet"


def _compacted_path(version: Path, feature_time_us: int) -> Path:
    return history_directory(version) / f"{_COMPACTED_PREFIX}{feature_time_us:020d}.parquet"


def _online_state_path(version: Path) -> Path:
    return version / "feast" / "pushed.json"


def _pending_path(version: Path) -> Path:
    return version / "feast" / _PENDING_FILE


def _online_time(version: Path) -> int:
    """Return the feature timestamp of the last push that is online, microseconds; 0 for none."""
    state_path = _online_state_path(version)
    if not state_path.is_file():
        return 0
    return int(files.read_json(state_path)["applied_us"])


def _feature_time_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _write_file(
    version: Path,
    table: pa.Table,
    path: Path,
) -> None:
    """Write a Parquet file and move it into place by one rename; Feast reads all files there."""
    temporary = version / "feast" / f".{path.name}.tmp"
    try:
        with files.explain_full_disk(path), open(temporary, "wb") as stream:
            pq.write_table(
                table,
                stream,
                compression="zstd",
                use_dictionary=False,
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
