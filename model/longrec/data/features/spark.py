"""Pack histories on Spark: the same function per user as in one process, so the same bytes.

    events/*.parquet --groupBy(user_id)--> executors: sort, check, pack
                                              |
                                              +--(part, user_id)--> driver: the same writer

An executor holds one user at a time. The driver streams packed rows in the order of one process,
so files, hashes and the version of the feature tables are equal too. It needs the extra `spark`
and Java 17.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from longrec.data.dataset import Dataset, event_schema
from longrec.data.features.packing import PackedUser, UserPacker, pack_users, packing_columns
from longrec.data.shards import part_of
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, TIMESTAMP, USER_ID

_PART = "part"
_PACKED_ROW = (
    "part bigint, user_id bigint, last_time_ms bigint, payload binary, num_events bigint, "
    "num_late bigint"
)


def spark_packer(session: Any) -> UserPacker:
    """Return a packer for `features.build_features` that packs users in a Spark session.

    Args:
        session: a `pyspark.sql.SparkSession`. Its executors can read the dataset, and their
            Python (PYSPARK_PYTHON) can import longrec.
    """
    return lambda dataset, hold_late: _pack_on_spark(session, dataset, hold_late)


def _pack_on_spark(
    session: Any,
    dataset: Dataset,
    hold_late: bool,
) -> Iterator[tuple[int, PackedUser]]:
    from pyspark import StorageLevel
    from pyspark.errors import PySparkException

    schema = dataset.schema
    num_parts = dataset.num_parts
    events_dir = dataset.path / "events"
    columns = packing_columns(schema, hold_late=hold_late)
    all_columns = event_schema(
        schema,
        dataset.event_labels,
        has_created=dataset.has_created,
    )

    def pack(group: pa.Table) -> pa.Table:
        # Spark may return other types than the dataset has, such as timestamp[us].
        arrays = []
        for name in columns:
            dtype = all_columns.field(name).type
            arrays.append(group.column(name).cast(dtype))
        table = pa.table(arrays, names=columns)
        table = table.sort_by([(TIMESTAMP, "ascending"), (EVENT_SEQ, "ascending")])
        packed = pack_users(
            table,
            schema,
            events_dir,
            hold_late=hold_late,
        )
        return _packed_table(list(packed), num_parts)

    paths = [str(dataset.event_path(part)) for part in dataset.parts]
    events = session.read.parquet(*paths).select(columns)
    rows = events.groupBy(USER_ID).applyInArrow(pack, _PACKED_ROW)
    # orderBy samples its input first. Without persist Spark would pack every user twice.
    rows = rows.persist(StorageLevel.DISK_ONLY)
    try:
        for row in rows.orderBy(_PART, USER_ID).toLocalIterator():
            yield row.part, _packed_user(row)
    except PySparkException as error:
        raise DataError(
            "Spark could not pack the timelines",
            found=_cause(error),
            fix="See the log of the driver.",
        ) from error
    finally:
        rows.unpersist()


def _packed_table(rows: list[PackedUser], num_parts: int) -> pa.Table:
    users = np.array([row.user_id for row in rows], np.int64)
    payloads = [row.payload for row in rows]
    return pa.table(
        {
            _PART: part_of(users, num_parts),
            USER_ID: users,
            "last_time_ms": [row.last_time_ms for row in rows],
            "payload": pa.array(payloads, pa.binary()),
            "num_events": [row.num_events for row in rows],
            "num_late": [row.num_late for row in rows],
        }
    )


def _packed_user(row: Any) -> PackedUser:
    return PackedUser(
        row.user_id,
        row.last_time_ms,
        bytes(row.payload),
        row.num_events,
        row.num_late,
    )


def _cause(error: Exception) -> str:
    """Return the informative line of an error: longrec's own from an executor, else the first."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    own_lines = [line for line in lines if line.startswith("longrec.errors.")]
    candidates = own_lines or lines or [type(error).__name__]
    return candidates[0]
