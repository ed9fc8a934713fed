"""Remove the rows of users from the files of a work directory or a dataset.

A file or dataset is replaced by one rename, so a reader sees the old rows or the remaining ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import HISTORY_LENGTH, Int64, int64_column
from longrec.data.dataset import Dataset
from longrec.data.dataset_writer import DatasetWriter
from longrec.data.store.tail_files import history_directory, tail_directory
from longrec.data.upkeep.forget_list import is_of, without_users
from longrec.schema import USER_ID

REMOVAL_NAME = "removed.json"
"""File in the folder `feast` of a version: what was removed from its feature tables."""
USER_IDS = Path("ids") / "users.parquet"
"""Table of a dataset with the texts of user ids."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemovedRows:
    """Counts of rows that were removed from a published version.

    Args:
        histories: of user_history, published and compacted ones.
        events: events in the published ones of them.
        tails: of user_tail.
        features: of user_features.
    """

    histories: int = 0
    events: int = 0
    tails: int = 0
    features: int = 0


def count_rows(
    path: Path,
    user_ids: Int64,
    key: str = USER_ID,
) -> int:
    """Return the rows of users in a Parquet file; 0 for a file without the key, or no file."""
    if not path.is_file():
        return 0
    with pq.ParquetFile(path) as stored:
        if key not in stored.schema_arrow.names:
            return 0
        ids = int64_column(stored.read(columns=[key]), key)
    return int(np.isin(ids, user_ids).sum())


def remove_from_file(path: Path, user_ids: Int64) -> int:
    """Remove the rows of users from a Parquet file; return how many.

    A file without these users, or without user ids, is not written.
    """
    num_removed = count_rows(path, user_ids)
    if not num_removed:
        return 0
    with pq.ParquetFile(path) as stored:
        group_rows = -(-stored.metadata.num_rows // max(stored.num_row_groups, 1))
        remaining = without_users(stored.read(), user_ids)
    with files.atomic_replace(path) as temporary:
        pq.write_table(
            remaining,
            temporary,
            compression="zstd",
            use_dictionary=False,
            row_group_size=group_rows,
        )
    return num_removed


def remove_from_version(version: Path, user_ids: Int64) -> RemovedRows:
    """Remove users from the tables of a published version; return counts.

    The manifest stays as it is: it names the tables that were published. `removed_from` tells the
    difference.
    """
    tables = version / "features"
    num_events = _num_events(tables, user_ids)
    removed = RemovedRows(
        histories=_remove_from_files(history_directory(version).glob("*.parquet"), user_ids),
        events=num_events,
        tails=_remove_from_files(tail_directory(version).glob("*.parquet"), user_ids),
        features=_remove_from_files([tables / "user_features.parquet"], user_ids),
    )
    if any(dataclasses.astuple(removed)):
        _note(version, num_events)
    return removed


def removed_from(version: Path) -> Mapping[str, Any]:
    """Return `events`, the number removed from a version, and `files`, the new hashes by name."""
    path = version / "feast" / REMOVAL_NAME
    if not path.is_file():
        return {"events": 0, "files": {}}
    content: Mapping[str, Any] = files.read_json(path)
    return content


def remove_from_dataset(directory: Path, user_ids: Int64) -> dict[str, int]:
    """Write a dataset again without some users; return the numbers of removed rows by table.

    Counts, quantiles and content hash follow. A dataset without these users is not written. Raw
    rejected rows may hold a user id in any form, so a dataset that is written again has none.

    Raises:
        DataError: this is no dataset.
    """
    dataset = Dataset.open(directory)
    event_paths = map(dataset.event_path, dataset.parts)
    target_paths = map(dataset.target_path, dataset.parts)
    removed = {
        "events": sum(count_rows(path, user_ids) for path in event_paths),
        "targets": sum(count_rows(path, user_ids) for path in target_paths),
        "users": count_rows(dataset.path / "users.parquet", user_ids),
        "user_id_texts": count_rows(dataset.path / USER_IDS, user_ids, "id"),
    }
    if any(removed.values()):
        _write_again(dataset, user_ids)
    return removed


def _remove_from_files(paths: Iterable[Path], user_ids: Int64) -> int:
    return sum(remove_from_file(path, user_ids) for path in paths)


def _num_events(tables: Path, user_ids: Int64) -> int:
    """Return the events of users in the published histories."""
    num_events = 0
    for name in files.read_json(tables / "manifest.json")["files"]:
        if name.startswith("user_history/"):
            rows = pq.ParquetFile(tables / name).read(columns=[USER_ID, HISTORY_LENGTH])
            lengths = int64_column(rows, HISTORY_LENGTH)
            num_events += int(lengths[is_of(rows, user_ids)].sum())
    return num_events


def _note(version: Path, num_events: int) -> None:
    """Record the events that the manifest still counts, and the hashes of the tables now."""
    tables = version / "features"
    names = files.read_json(tables / "manifest.json")["files"]
    content = {
        "events": removed_from(version)["events"] + num_events,
        "files": {name: files.sha256_of(tables / name) for name in names},
    }
    files.write_json(version / "feast" / REMOVAL_NAME, content)


def _write_again(dataset: Dataset, user_ids: Int64) -> None:
    with DatasetWriter(
        dataset.path,
        dataset.schema,
        name=dataset.name,
        source=dataset.source,
        num_parts=dataset.num_parts,
        event_labels=dataset.event_labels,
        has_created=dataset.has_created,
    ) as writer:
        for part in dataset.parts:
            events = without_users(dataset.events(part), user_ids)
            targets = without_users(dataset.targets(part), user_ids)
            writer.write_part(part, events, targets)
        writer.write_entities(dataset.items(), without_users(dataset.users(), user_ids))
        _copy_texts(dataset.path, writer.path, user_ids)


def _copy_texts(
    source: Path,
    target: Path,
    user_ids: Int64,
) -> None:
    """Copy the tables of text ids without the users."""
    for path in sorted((source / USER_IDS.parent).glob("*.parquet")):
        table = pq.ParquetFile(path).read()
        if path.name == USER_IDS.name:
            is_forgotten = np.isin(int64_column(table, "id"), user_ids)
            table = table.filter(pa.array(~is_forgotten))
        copied = target / USER_IDS.parent / path.name
        copied.parent.mkdir(exist_ok=True)
        pq.write_table(table, copied, compression="zstd")
