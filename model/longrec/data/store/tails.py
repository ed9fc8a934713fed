"""Files of pushed rows below a version: parts of tails, folded bases, and how far they are online.

    features/user_tail/part-<stamp>.parquet       its rename completes a push
    features/user_history/fold-<stamp>.parquet    bases that a push rewrote, placed before its part
    feast/pushed.json                             the last stamp that is online too

A stamp is the feature time of a push, microseconds: strictly increasing, whatever the clock does.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import dataset as layout
from longrec.data import features, files, history
from longrec.data.store import live_events
from longrec.data.store.versions import Published
from longrec.schema import USER_ID

MAX_PARTS = 64
"""Offline parts of tails before they are made one."""
FOLD, PART = "fold-", "part-"

Int64 = npt.NDArray[np.int64]


def folder(version: Path) -> Path:
    return version / "features" / "user_tail"


def add(version: Path, rows: pa.Table, stamp: int = 0) -> None:
    folder(version).mkdir(exist_ok=True)
    place(version, rows, folder(version) / f"{PART}{stamp:020d}.parquet")


def place(version: Path, table: pa.Table, path: Path) -> None:
    """Writes a Parquet file and moves it to its place by one rename; Feast reads every file that is
    there.
    """
    temporary = version / "feast" / f".{path.name}.tmp"
    with open(temporary, "wb") as stream:
        pq.write_table(table, stream, compression="zstd", use_dictionary=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def stamp_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def last_stamp(version: Path) -> int:
    """Returns the feature time of the last push, microseconds; 0 for none."""
    return max((stamp_of(path) for path in folder(version).glob(f"{PART}*.parquet")), default=0)


def note_applied(version: Path, stamp: int) -> None:
    files.write_json(version / "feast" / "pushed.json", {"applied_us": stamp})


def compact(version: Path) -> None:
    """Makes one part of many, with the last row of each user. Rows that are there twice meanwhile
    are equal.
    """
    paths = sorted(folder(version).glob(f"{PART}*.parquet"))
    if len(paths) < MAX_PARTS:
        return
    table = latest_rows(pa.concat_tables(pq.ParquetFile(path).read() for path in paths))
    place(version, table, paths[-1])
    for path in paths[:-1]:
        path.unlink()


def latest_rows(table: pa.Table) -> pa.Table:
    """Returns the last row of each user, sorted by user."""
    users = layout.int64_of(table, USER_ID)
    times = np.asarray(table.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    order = np.lexsort((times, users))
    return table.take(
        pa.array(order[np.append(users[order[1:]] != users[order[:-1]], True)[: len(order)]])
    )


def users_pushed(version: Path) -> Int64:
    """Returns the users whom a version has pushed events of, sorted."""
    if not folder(version).is_dir():
        return np.zeros(0, np.int64)
    return np.unique(layout.int64_of(pq.read_table(folder(version), columns=[USER_ID]), USER_ID))


def pushed_events(before: Published, users: Int64) -> pa.Table:
    """Returns user_id and events of users: what a version has of them now, less what it was
    published with.
    """
    wanted = [(USER_ID, "in", users.tolist())]
    rows = latest_rows(pq.read_table(folder(before.path), filters=wanted)).to_pylist()
    bases = pq.read_table(before.path / "features" / "user_history", filters=wanted)
    end, last = int(before.manifest["time_range_ms"][1]) * 1000, last_stamp(before.path)
    times = np.asarray(bases.column(features.EVENT_TIME).cast(pa.int64()), np.int64)
    first = {
        row[USER_ID]: row[features.HISTORY]
        for row in bases.filter(pa.array(times <= end)).to_pylist()
    }
    folded = latest_rows(bases.filter(pa.array((times > end) & (times <= last)))).to_pylist()
    folds = {row[USER_ID]: row[features.HISTORY] for row in folded}
    parts = []
    for row in rows:
        user, schema = row[USER_ID], before.schema
        now = history.merged(
            history.stored(folds.get(user), schema),
            history.stored(row[features.TAIL], schema),
            schema,
        )
        mine = (
            live_events.fresh(now, history.stored(first.get(user), schema))[0]
            if now.num_rows
            else now
        )
        parts.append(
            pa.Table.from_batches([mine]).append_column(
                USER_ID, pa.array(np.full(mine.num_rows, user))
            )
        )
    return pa.concat_tables(parts).unify_dictionaries()
