"""Forget a user: remove all rows of the user, and keep them from coming back.

Order matters. The user is first put on the forget list, so nothing that runs meanwhile brings rows
back. Each step may be repeated: a second call removes what a killed one left.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longrec.data.columns import Int64
from longrec.data.store.feast_adapter import FeastAdapter
from longrec.data.store.publish import remove_version
from longrec.data.store.push import LOCK_WAIT_SECONDS
from longrec.data.store.versions import PublishedVersion
from longrec.data.store.workdir import current_version, initialize_workdir, write_lock
from longrec.data.upkeep.forget_list import add_users
from longrec.data.upkeep.row_removal import (
    RemovedRows,
    count_rows,
    remove_from_dataset,
    remove_from_file,
    remove_from_version,
)
from longrec.release.request_log import log_files
from longrec.runs.workdir import RUNS_FOLDER, locked

CACHE_FOLDER = "cache"
KEPT = (
    "trained models: train again to leave the user out",
    "reports, logs and summaries of runs: text that may name a user as an example",
    "logs that datasets were imported from, backups, and datasets that were not named",
    "artifacts of a pipeline server, results of studies and predictions in other folders",
)
"""What `forget` does not change."""
WHOLE_FOLDERS = {
    "timelines.arrow": "histories",
    "manifest.json": "feature tables",
}
"""Files that mark a folder whose tables refer to each other; such a folder goes as a whole."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """What was removed of a user; all counts are 0 for a user who was forgotten before.

    Args:
        user_id: the user.
        workdir: the work directory.
        at: time of the removal, ISO 8601 UTC.
        was_listed: whether the user was on the forget list before.
        store: rows of the published version.
        online_rows: rows, or keys, of the online store.
        old_versions: published versions that nobody reads any more and that were removed.
        request_log_rows: logged candidates.
        datasets: removed rows by dataset and table.
        files: removed rows by file of an earlier run.
        folders: folders of earlier runs with the user's events, removed as a whole.
        kept: what may still hold the user.
    """

    user_id: int
    workdir: str
    at: str
    was_listed: bool
    store: RemovedRows
    online_rows: int
    old_versions: int
    request_log_rows: int
    datasets: dict[str, dict[str, int]]
    files: dict[str, int]
    folders: tuple[str, ...]
    kept: tuple[str, ...] = KEPT


def forget_user(
    workdir: str | Path,
    user_id: int,
    datasets: Sequence[Path] = (),
) -> ForgetReceipt:
    """Remove a user from a work directory and from datasets; return a receipt.

    Args:
        workdir: the work directory.
        user_id: the user.
        datasets: datasets to rewrite, besides those in the work directory.

    Raises:
        BusyError: a run uses the work directory.
        DataError: a path is no dataset.
        StoreError: another publish or push is running, or the online store cannot be written.
    """
    workdir = Path(workdir).resolve()
    users = np.array([user_id], np.int64)
    own_datasets = [path.parent for path in sorted((workdir / "data").glob("*/dataset.json"))]
    with locked(workdir):
        is_new = add_users(workdir, [user_id])
        store, online_rows, old_versions = _forget_in_store(workdir, users)
        removed_folders = tuple(_forget_folders(workdir, users))
        return ForgetReceipt(
            user_id,
            workdir=str(workdir),
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            was_listed=not is_new,
            store=store,
            online_rows=online_rows,
            old_versions=old_versions,
            request_log_rows=sum(remove_from_file(path, users) for path in log_files(workdir)),
            datasets=_forget_in_datasets([*own_datasets, *datasets], users),
            files=dict(_forget_in_files(workdir, users)),
            folders=removed_folders,
        )


def receipt_as_dict(receipt: ForgetReceipt) -> dict[str, Any]:
    """Return a receipt as JSON values."""
    return {**dataclasses.asdict(receipt), "folders": list(receipt.folders)}


def _forget_in_store(workdir: Path, users: Int64) -> tuple[RemovedRows, int, int]:
    """Return removed rows of the current version, removed online rows, removed old versions."""
    current = current_version(workdir)
    if current is None:
        return RemovedRows(), 0, 0
    with write_lock(workdir, LOCK_WAIT_SECONDS):
        workdir_id = initialize_workdir(workdir)
        old_versions = [path for path in _versions(workdir) if path.name != current]
        for version in old_versions:
            remove_version(version, workdir_id)
        published = PublishedVersion.open(workdir)
        removed = remove_from_version(published.path, users)
        online_rows = FeastAdapter(published).remove_online(users.tolist())
    return removed, online_rows, len(old_versions)


def _versions(workdir: Path) -> list[Path]:
    entries = sorted((workdir / "store").iterdir())
    return [path for path in entries if path.is_dir() and not path.is_symlink()]


def _forget_in_datasets(directories: Iterable[Path], users: Int64) -> dict[str, dict[str, int]]:
    return {str(path): remove_from_dataset(path, users) for path in directories}


def _forget_folders(workdir: Path, users: Int64) -> Iterator[str]:
    """Remove folders of runs that hold the user, and the cache that refers to them."""
    for marker in WHOLE_FOLDERS:
        for path in sorted((workdir / RUNS_FOLDER).rglob(marker)):
            folder = path.parent
            if folder.is_dir() and _holds(folder, users):
                shutil.rmtree(folder)
                yield str(folder)
    # Cached results may be or refer to any of them.
    shutil.rmtree(workdir / CACHE_FOLDER, ignore_errors=True)


def _holds(folder: Path, users: Int64) -> bool:
    """Return whether a table below a folder has a row of a user."""
    return any(count_rows(path, users) for path in folder.rglob("*.parquet"))


def _forget_in_files(workdir: Path, users: Int64) -> Iterator[tuple[str, int]]:
    """Yield the removed rows of each other table of runs and models, such as predictions."""
    for folder in (RUNS_FOLDER, "models"):
        for path in sorted((workdir / folder).rglob("*.parquet")):
            num_removed = 0 if path.is_symlink() else remove_from_file(path, users)
            if num_removed:
                yield str(path), num_removed
