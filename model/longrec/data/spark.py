"""Spark packs the timelines: the same function per user as in one process, inside `applyInArrow`, and so the same bytes.

    events/*.parquet --groupBy(user_id)--> executors: sort, check, pack --(part, user_id)--> driver: the same writer

An executor holds one user at a time. The driver streams packed rows, in the order in which one process would make them, so that files,
hashes and the version of the feature tables are equal too. Needs the extra `spark`, and Java 17.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data import dataset as layout
from longrec.data import features
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, TIMESTAMP, USER_ID

PART = "part"
_ROWS = (
    "part bigint, user_id bigint, last_ms bigint, payload binary, length bigint, num_late bigint"
)


def packing(session: Any) -> features.Packing:
    """Returns what `features.build` takes as `pack` to have the users packed by a Spark session.

    Args:
        session: a `pyspark.sql.SparkSession` whose executors can read the dataset, and whose Python
            (PYSPARK_PYTHON) can import longrec.
    """
    return lambda source, hold: _packed(session, source, hold)


def _packed(
    session: Any, source: layout.Dataset, hold: bool
) -> Iterator[tuple[int, features.Packed]]:
    from pyspark import StorageLevel
    from pyspark.errors import PySparkException

    schema, num_parts, path = source.schema, source.num_parts, source.path / "events"
    paths = [str(source.event_path(part)) for part in source.parts]
    names = features.wanted(schema, hold=hold)
    types = layout.event_schema(schema, source.event_labels, has_created=source.has_created)

    def pack(group: pa.Table) -> pa.Table:
        table = pa.table(
            [group.column(name).cast(types.field(name).type) for name in names], names=names
        )
        table = table.sort_by([(TIMESTAMP, "ascending"), (EVENT_SEQ, "ascending")])
        packed = list(features.packed_users(table, schema, path, hold=hold))
        users = np.array([row.user_id for row in packed], np.int64)
        columns = {
            PART: layout.part_of(users, num_parts),
            USER_ID: users,
            "last_ms": [row.last_ms for row in packed],
            "payload": pa.array([row.payload for row in packed], pa.binary()),
            "length": [row.length for row in packed],
            "num_late": [row.num_late for row in packed],
        }
        return pa.table(columns)

    rows = session.read.parquet(*paths).select(names).groupBy(USER_ID).applyInArrow(pack, _ROWS)
    rows = rows.persist(
        StorageLevel.DISK_ONLY
    )  # sorting takes a sample first, which would pack everyone twice
    try:
        for row in rows.orderBy(PART, USER_ID).toLocalIterator():
            yield (
                row.part,
                features.Packed(
                    row.user_id, row.last_ms, bytes(row.payload), row.length, row.num_late
                ),
            )
    except PySparkException as error:
        raise DataError(
            "Spark could not pack the timelines",
            found=_cause(error),
            fix="See the log of the driver.",
        ) from error
    finally:
        rows.unpersist()


def _cause(error: Exception) -> str:
    """Returns the line of an error that says what happened: that of longrec on an executor where
    there is one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("longrec.errors.")]
    return (ours or lines or [type(error).__name__])[0]
