"""Work directory: its format version, its id, the lock of its writers, and its links.

    WORKDIR/workdir.json                     format version, id, and inode of the folder store
    WORKDIR/store/<version>/                 published versions
    WORKDIR/store/current -> <version>       moved by one rename
    WORKDIR/features -> store/current/features
    WORKDIR/feast -> store/current/feast

A version is complete before `current` points to it. So a kill at any time, or a reader at work,
sees the old version or the new one. The previous version stays for readers that have it open.

A work directory can be moved, copied, archived and mounted elsewhere. Its id names its keys in an
online store that others use too. A copy has another inode, so its first writer gives it an id of
its own. A copy of a whole volume, block by block, is not noticed: delete its workdir.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longrec.data import files
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.errors import StoreError

WORKDIR_FORMAT_VERSION = 2
READABLE_FORMAT_VERSIONS = (1, 2)
"""Format 1 has no id, and its versions hold absolute paths."""
WORKDIR_FILE = "workdir.json"
REBUILD = (
    "Rebuild it in a new directory (longrec refresh --workdir NEW, or longrec run --workdir NEW)."
)


class WriterBusyError(StoreError):
    """Another process publishes or pushes."""


def initialize_workdir(workdir: str | Path) -> str:
    """Give a new work directory and a copy an id of its own; return the id.

    The caller holds the lock of the writers.

    Raises:
        StoreError: the work directory has a format version that this code does not know.
    """
    directory = Path(workdir).resolve()
    store = directory / "store"
    store.mkdir(parents=True, exist_ok=True)
    recorded = _recorded(directory)
    inode = store.stat().st_ino
    if recorded.get("inode") == inode:
        return str(recorded["id"])
    is_older = recorded.get("format_version") == 1
    workdir_id = _id_of_place(store) if is_older else uuid.uuid4().hex[:12]
    content = {
        "format_version": WORKDIR_FORMAT_VERSION,
        "id": workdir_id,
        "inode": inode,
    }
    files.write_json(directory / WORKDIR_FILE, content)
    return workdir_id


def check_workdir(workdir: str | Path) -> None:
    """Check that this code can read a work directory.

    A directory without workdir.json is of version 0. It is readable if its published feature
    tables are.

    Raises:
        StoreError: the format version is unknown, or the feature tables of a version 0 are of
            another format version.
    """
    directory = Path(workdir)
    path = directory / WORKDIR_FILE
    if path.exists():
        _check_format_version(path)
        return
    manifest_path = directory / "features" / "manifest.json"
    if not manifest_path.is_file():
        return
    found = files.read_json_object(manifest_path).get("format_version")
    if found != FEATURE_TABLES_FORMAT_VERSION:
        raise StoreError(
            f"the work directory {directory} was made by an older version of longrec",
            found=f"feature tables of format version {found}",
            expected=FEATURE_TABLES_FORMAT_VERSION,
            fix="Publish its dataset again (longrec refresh or longrec run).",
        )


@contextlib.contextmanager
def write_lock(workdir: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of the writers to a work directory: publish and push.

    Raises:
        WriterBusyError: another writer held it for `wait_seconds`.
    """
    store = workdir / "store"
    store.mkdir(parents=True, exist_ok=True)
    busy = WriterBusyError(
        f"another publish or push to {workdir} is running", fix="Wait for it to end."
    )
    with files.locked(store / ".lock", busy, wait_seconds):
        yield


def current_version(workdir: Path) -> str | None:
    """Return the name of the version that a work directory points to, or None."""
    try:
        # This runs on every online read; Path.readlink takes six times as long.
        return os.readlink(f"{workdir}/store/current")  # noqa: PTH115
    except OSError:
        return None


def switch_to(workdir: Path, version: Path) -> list[Path]:
    """Point a work directory to a version by one rename; return the versions to remove.

    The new version and the previous one stay.
    """
    store = workdir / "store"
    previous = current_version(workdir)
    _link(store / "current", version.name)
    for name in ("features", "feast"):
        _link(workdir / name, f"store/current/{name}")
    in_use = (version.name, previous)
    return [
        entry
        for entry in store.iterdir()
        if entry.is_dir() and not entry.is_symlink() and entry.name not in in_use
    ]


def _recorded(directory: Path) -> dict[str, Any]:
    """Return the content of workdir.json; empty without the file."""
    path = directory / WORKDIR_FILE
    if not path.exists():
        return {}
    _check_format_version(path)
    return files.read_json_object(path)


def _id_of_place(store: Path) -> str:
    """Return the id that format 1 made of the place of a work directory."""
    return hashlib.sha256(str(store).encode()).hexdigest()[:8]


def _check_format_version(path: Path) -> None:
    found = files.read_json_object(path).get("format_version")
    if found not in READABLE_FORMAT_VERSIONS:
        raise StoreError(
            f"the work directory {path.parent} has another format version",
            found=found,
            expected=WORKDIR_FORMAT_VERSION,
            fix=REBUILD,
        )


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and str(link.readlink()) == target:
        return
    token = uuid.uuid4().hex[:8]
    if link.is_dir() and not link.is_symlink():  # made by a plain `feast apply`
        unused_name = f".replaced-{token}"
        os.replace(link, link.parent / "store" / unused_name)
    temporary = link.parent / f".{link.name}.tmp-{token}"
    temporary.symlink_to(target)
    os.replace(temporary, link)
