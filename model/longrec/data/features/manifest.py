"""Manifest of feature tables: counts, file hashes and the profile that drift checks compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from longrec.data import files
from longrec.data.columns import (
    FEATURE_TABLES_FORMAT_VERSION,
    HISTORY_LENGTH,
    Int64,
    int64_column,
)
from longrec.data.dataset import IMPORT_AGAIN
from longrec.data.hashing import fingerprint_files
from longrec.data.quality.drift import DriftProfile
from longrec.data.timelines import quantiles
from longrec.errors import DataError
from longrec.schema import ITEM_ID, USER_ID


@dataclasses.dataclass(frozen=True, slots=True)
class FeatureReport:
    """Summary of the feature tables that were written.

    Args:
        num_users: users with a history, one row each.
        num_events: events in all histories.
        num_items: rows of item_features.
        num_parts: files of user_history.
        longest_history: events of the most active user.
        users_without_events: users with features but without a history.
        users_without_features: users with a history but without a row in users.parquet.
        history_bytes: packed size of all histories.
        fingerprint: fingerprint of the schema.
        version: hash of all files; equal input gives an equal version.
        num_late: events that became known after they happened; 0 if late events are not held.
    """

    num_users: int
    num_events: int
    num_items: int
    num_parts: int
    longest_history: int
    users_without_events: int
    users_without_features: int
    history_bytes: int
    fingerprint: str
    version: str
    num_late: int = 0


def write_manifest(
    directory: Path,
    first_entries: Mapping[str, Any],
    num_late: int,
    history_bytes: int,
    profile: DriftProfile,
) -> FeatureReport:
    """Write the manifest of the tables in a directory and return their counts.

    Args:
        directory: the tables; all shards but the first have no user and item features.
        first_entries: first entries of the manifest.
        num_late: events that became known after they happened.
        history_bytes: packed size of all histories.
        profile: profile of the dataset, for drift checks.

    Raises:
        DataError: a user occurs in two files.
    """
    hashes = _file_hashes(directory)
    users, lengths = _users_and_lengths(directory)
    users_with_features = _ids_in(directory / "user_features.parquet", USER_ID)
    items = _ids_in(directory / "item_features.parquet", ITEM_ID)
    report = FeatureReport(
        num_users=len(users),
        num_events=int(lengths.sum()),
        num_items=len(items),
        num_parts=sum(name.startswith("user_history/") for name in hashes),
        longest_history=int(lengths.max(initial=0)),
        users_without_events=len(np.setdiff1d(users_with_features, users)),
        users_without_features=len(np.setdiff1d(users, users_with_features)),
        history_bytes=history_bytes,
        fingerprint=first_entries["fingerprint"],
        version=fingerprint_files(hashes),
        num_late=num_late,
    )
    manifest = {
        "format_version": FEATURE_TABLES_FORMAT_VERSION,
        "version": report.version,
        **first_entries,
        "counts": dataclasses.asdict(report),
        "history_length": quantiles(lengths),
        "profile": profile.to_dict(),
        "files": hashes,
    }
    files.write_json(directory / "manifest.json", manifest)
    return report


def check_replaceable(path: Path) -> None:
    """Raise DataError if a path holds something other than feature tables."""
    if not path.exists() or files.is_empty_or_has(path, "manifest.json"):
        return
    raise DataError(
        f"{path} does not hold feature tables and will not be replaced",
        fix="Choose an empty or new directory.",
    )


def _file_hashes(directory: Path) -> dict[str, str]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    hashes = {}
    for path in paths:
        name = str(path.relative_to(directory))
        hashes[name] = files.sha256_of(path)
    return hashes


def _users_and_lengths(directory: Path) -> tuple[Int64, Int64]:
    """Return the users of feature tables and the lengths of their histories, int64 [U]."""
    users = [np.zeros(0, np.int64)]
    lengths = [np.zeros(0, np.int64)]
    for path in sorted((directory / "user_history").glob("*.parquet")):
        table = pq.read_table(path, columns=[USER_ID, HISTORY_LENGTH])
        users.append(int64_column(table, USER_ID))
        lengths.append(int64_column(table, HISTORY_LENGTH))
    all_users = np.concatenate(users)
    num_repeated = len(all_users) - len(np.unique(all_users))
    if num_repeated:
        raise DataError(
            "a user's events are spread over several parts",
            found=f"{num_repeated} users",
            expected="whole users in each part",
            fix=IMPORT_AGAIN,
        )
    return all_users, np.concatenate(lengths)


def _ids_in(path: Path, key: str) -> Int64:
    if not path.is_file():
        return np.zeros(0, np.int64)
    return int64_column(pq.read_table(path, columns=[key]), key)
