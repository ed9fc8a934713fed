"""Build the feature tables of a dataset, or of a shard of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import DataConfig
from longrec.data import files, history
from longrec.data.columns import (
    EVENT_TIME,
    HISTORY,
    HISTORY_LENGTH,
    TAIL,
    TAIL_BASE,
    TAIL_LENGTH,
    feature_times,
    int64_column,
    to_stored_column,
)
from longrec.data.dataset import IMPORT_AGAIN, Dataset
from longrec.data.features.manifest import FeatureReport, check_replaceable, write_manifest
from longrec.data.features.packing import PackedUser, UserPacker, pack_in_process
from longrec.data.quality.drift import DriftProfile
from longrec.data.shards import WHOLE_DATASET, Shard, part_name
from longrec.errors import DataError
from longrec.schema import (
    BASKET_ID,
    CREATED,
    EVENT_SEQ,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    Feature,
    Schema,
)

MAX_PART_BYTES = 256 << 20
"""Largest size of the packed histories in one file of user_history."""
MAX_ROW_GROUP_BYTES = 16 << 20
"""Largest size of the packed histories in one row group, on average."""
_TABLE_COLUMNS = {
    USER_ID,
    ITEM_ID,
    EVENT_TIME,
    CREATED,
    HISTORY,
    HISTORY_LENGTH,
    TAIL,
    TAIL_LENGTH,
    TAIL_BASE,
}
_EVENT_COLUMNS = {
    ITEM_ID,
    USER_ID,
    TIMESTAMP,
    EVENT_SEQ,
    BASKET_ID,
    CREATED,
}


def build_features(
    dataset_dir: str | Path,
    out_dir: str | Path,
    data: DataConfig,
    packer: UserPacker = pack_in_process,
    shard: Shard = WHOLE_DATASET,
) -> FeatureReport:
    """Write the feature tables of a dataset, replacing `out_dir` at once, and return counts.

    Args:
        dataset_dir: written by an importer or by `longrec synth`.
        out_dir: new, empty, or feature tables to replace.
        data: `shard_users` bounds the rows of a file; `late_events` decides about late events.
        packer: packs the users; `spark.spark_packer(session)` does it on Spark, with equal bytes.
        shard: the parts of the dataset to build; `join_shards` combines all shards.

    Raises:
        DataError: the dataset cannot be used; events are out of order, a basket has two times, an
            id is null or not unique, a feature has a reserved name, or a value cannot pass the
            feature store exactly.
    """
    dataset = Dataset.open(dataset_dir, shard)
    _check_names(dataset.schema)
    check_replaceable(Path(out_dir))
    log_end_ms = _log_end_ms(dataset)
    hold_late = data.late_events == "hold" and dataset.has_created
    with files.atomic_replace(out_dir) as temporary:
        history_dir = temporary / "user_history"
        history_dir.mkdir(parents=True)
        writer = _HistoryWriter(history_dir, data.shard_users, log_end_ms)
        for part, packed in packer(dataset, hold_late):
            writer.add(part, packed)
        writer.flush()
        if shard.index == 0:
            _write_features(dataset, temporary, log_end_ms)
        files.write_json(temporary / "schema.json", dataset.schema.to_dict())
        return write_manifest(
            temporary,
            _first_entries(dataset, data),
            writer.num_late,
            writer.history_bytes,
            DriftProfile.of(dataset),
        )


class _HistoryWriter:
    """Writes packed users in files of bounded size; each holds users of one part of the dataset.

    Args:
        directory: directory of the files.
        shard_users: largest number of users in a file.
        created_ms: time of the column `created`.
    """

    def __init__(
        self,
        directory: Path,
        shard_users: int,
        created_ms: int,
    ) -> None:
        self.history_bytes = 0
        self.num_late = 0
        self._directory = directory
        self._shard_users = shard_users
        self._created_ms = created_ms
        self._num_files = 0
        self._part = 0
        self._pending: list[PackedUser] = []
        self._pending_bytes = 0

    def add(
        self,
        part: int,
        packed: PackedUser,
    ) -> None:
        """Add a user; users of a part come one after another."""
        if part != self._part:
            self.flush()
        self._part = part
        self._pending.append(packed)
        self._pending_bytes += len(packed.payload)
        self.num_late += packed.num_late
        has_enough_users = len(self._pending) >= self._shard_users
        if has_enough_users or self._pending_bytes >= MAX_PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the pending users."""
        num_users = len(self._pending)
        if not num_users:
            return
        # As many rows as fill a row group with payloads of the mean size.
        group_rows = MAX_ROW_GROUP_BYTES * num_users // max(self._pending_bytes, 1)
        pq.write_table(
            self._pending_table(),
            self._directory / part_name(self._num_files),
            compression="zstd",
            compression_level=1,
            row_group_size=max(1, group_rows),
            use_dictionary=False,  # payloads hardly ever repeat
        )
        self.history_bytes += self._pending_bytes
        self._num_files += 1
        self._pending = []
        self._pending_bytes = 0

    def _pending_table(self) -> pa.Table:
        rows = self._pending
        users = [row.user_id for row in rows]
        last_times = [row.last_time_ms for row in rows]
        payloads = [row.payload for row in rows]
        lengths = [row.num_events for row in rows]
        created = np.full(len(rows), self._created_ms)
        return pa.table(
            {
                USER_ID: pa.array(users, pa.int64()),
                EVENT_TIME: feature_times(np.array(last_times, np.int64)),
                CREATED: feature_times(created),
                HISTORY: pa.array(payloads, pa.binary()),
                HISTORY_LENGTH: pa.array(lengths, pa.int64()),
            }
        )


def _first_entries(dataset: Dataset, data: DataConfig) -> dict[str, Any]:
    """Return the entries of the manifest that tell where the tables are from."""
    entries = {
        "name": dataset.name,
        "fingerprint": dataset.schema.fingerprint,
        "codec_version": history.CODEC_VERSION,
        "dataset_hash": dataset.facts.get("content_hash"),
        "time_range_ms": dataset.facts["time_range_ms"],
        "late_events": data.late_events,
    }
    if dataset.shard != WHOLE_DATASET:
        entries["shard"] = str(dataset.shard)
    return entries


def _write_features(
    dataset: Dataset,
    directory: Path,
    created_ms: int,
) -> None:
    """Write item_features and user_features."""
    schema = dataset.schema
    items = _feature_table(
        dataset.items(),
        ITEM_ID,
        schema.item[1:],
        created_ms,
    )
    users = _feature_table(
        dataset.users(),
        USER_ID,
        schema.user,
        created_ms,
    )
    pq.write_table(items, directory / "item_features.parquet", compression="zstd")
    pq.write_table(users, directory / "user_features.parquet", compression="zstd")


def _feature_table(
    table: pa.Table,
    key: str,
    features: tuple[Feature, ...],
    created_ms: int,
) -> pa.Table:
    ids = int64_column(table, key)
    unique_ids, counts = np.unique(ids, return_counts=True)
    repeated = unique_ids[counts > 1]
    if len(repeated):
        raise DataError(
            f"{key} must be unique",
            found=f"{len(repeated)} repeated, for example {repeated[0]}",
            fix=IMPORT_AGAIN,
        )
    times = feature_times(np.full(len(ids), created_ms))
    columns = {
        key: pa.array(ids),
        EVENT_TIME: times,
        CREATED: times,
    }
    for feature in features:
        column = table.column(feature.name)
        columns[feature.name] = to_stored_column(column, feature)
    return pa.table(columns)


def _log_end_ms(dataset: Dataset) -> int:
    """Return the time of the last event."""
    time_range = dataset.facts.get("time_range_ms") or [None, None]
    last_ms = time_range[1]
    if last_ms is None:
        raise DataError(f"{dataset.path} holds no events", expected="at least one")
    return int(last_ms)


def _check_names(schema: Schema) -> None:
    """Raise DataError if a feature has the name of one of longrec's own columns."""
    _check_group_names("item", schema.item[1:], _TABLE_COLUMNS)
    _check_group_names("user", schema.user, _TABLE_COLUMNS)
    _check_group_names("event", schema.event, _EVENT_COLUMNS)


def _check_group_names(
    group: str,
    features: tuple[Feature, ...],
    reserved: set[str],
) -> None:
    names = {feature.name for feature in features}
    reserved_names = sorted(reserved & names)
    if reserved_names:
        raise DataError(
            f"a feature of the {group}s has a name that longrec uses itself",
            found=", ".join(reserved_names),
            fix="Rename it.",
        )
