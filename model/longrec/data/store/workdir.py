"""Work directory: its format version, the lock of its writers, and the links to what it serves.

    WORKDIR/workdir.json                     format version
    WORKDIR/store/<version>/                 published versions
    WORKDIR/store/current -> <version>       moved by one rename
    WORKDIR/features -> store/current/features
    WORKDIR/feast -> store/current/feast

A version is complete before `current` points to it. So a kill at any time, or a reader at work,
sees the old version or the new one. The previous version stays for readers that have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from longrec.data import files
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.errors import StoreError

WORKDIR_FORMAT_VERSION = 1
WORKDIR_FILE = "workdir.json"
REBUILD = (
    "Rebuild it in a new directory (longrec refresh --workdir NEW, or longrec run --workdir NEW)."
)
_LOCK_RETRY_SECONDS = 0.02


def initialize_workdir(workdir: str | Path) -> None:
    """Write workdir.json on the first use of a work directory; check it on every other use.

    Raises:
        StoreError: the work directory has a format version that this code does not know.
    """
    path = Path(workdir) / WORKDIR_FILE
    if path.exists():
        _check_format_version(path)
        return
    files.write_json(path, {"format_version": WORKDIR_FORMAT_VERSION})


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
    found = files.read_json(manifest_path).get("format_version")
    if found != FEATURE_TABLES_FORMAT_VERSION:
        raise StoreError(
            f"the work directory {directory} was made by an older version of longrec",
            found=f"feature tables of format version {found}",
            expected=FEATURE_TABLES_FORMAT_VERSION,
            fix="Publish its dataset again (longrec refresh or longrec run).",
        )


def environment(workdir: str | Path) -> dict[str, str]:
    """Return the environment variables for a `feast` process on a work directory.

    Run the process in the feature repository.
    """
    directory = Path(workdir).resolve()
    settings = directory / "feast" / "feature_store.yaml"
    return {
        "LONGREC_HOME": str(directory),
        "FEAST_FS_YAML_FILE_PATH": str(settings),
    }


@contextlib.contextmanager
def write_lock(workdir: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of the writers to a work directory: publish and push.

    Raises:
        StoreError: another writer held it for `wait_seconds`.
    """
    store = workdir / "store"
    store.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with open(store / ".lock", "w") as stream:
        while not _try_lock(stream.fileno()):
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"another publish or push to {workdir} is running",
                    fix="Wait for it to end.",
                )
            time.sleep(_LOCK_RETRY_SECONDS)
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


def _check_format_version(path: Path) -> None:
    found = files.read_json(path).get("format_version")
    if found != WORKDIR_FORMAT_VERSION:
        raise StoreError(
            f"the work directory {path.parent} has another format version",
            found=found,
            expected=WORKDIR_FORMAT_VERSION,
            fix=REBUILD,
        )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
