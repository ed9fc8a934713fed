"""Versions of the feature store: which one a work directory points to, the lock of its writers, the switch to
a new one.

A version is complete before `current` points to it: a kill at any moment, or a reader at work, sees
the old version or the new one.
The version before stays for readers that have it open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longrec.data import files, location
from longrec.errors import DataError, StoreError
from longrec.schema import Schema

PUBLISH_FIRST = "Publish feature tables first (step publish of the pipeline)."


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """The version that a work directory points to: its directory (links resolved), manifest and schema."""

    path: Path
    manifest: Mapping[str, Any]
    schema: Schema

    @classmethod
    def open(cls, workdir: str | Path) -> Published:
        """Returns the version of `workdir`.

        Raises:
            StoreError: nothing was published there, or a part of it is gone.
        """
        tables = (Path(workdir) / "features").resolve()
        if not (tables / "manifest.json").is_file() or not (tables / "schema.json").is_file():
            raise StoreError(
                f"no feature store at {workdir}",
                found=f"no feature tables in {tables}",
                fix=PUBLISH_FIRST,
            )
        if not (tables.parent / "feast" / "feature_store.yaml").is_file():
            raise StoreError(
                f"the feature store at {workdir} is incomplete",
                found=f"nothing in {tables.parent / 'feast'}",
                fix=PUBLISH_FIRST,
            )
        return cls(
            tables.parent,
            files.read_json(tables / "manifest.json"),
            Schema.load(tables / "schema.json"),
        )


def environment(workdir: str | Path) -> dict[str, str]:
    """Returns the variables with which a `feast` process works on what was published to `workdir` (run
    it in the feature repository).
    """
    workdir = Path(workdir).resolve()
    return {
        "LONGREC_HOME": str(workdir),
        "FEAST_FS_YAML_FILE_PATH": str(workdir / "feast" / "feature_store.yaml"),
    }


def version_before(workdir: str | Path, data_uri: str) -> str:
    """Returns what names the published version that a dataset is compared with by the checks of its
    events; empty for none.

    It stays the same when the dataset itself has been published meanwhile, so that a check of equal
    data is not done again for that.

    Args:
        workdir: LONGREC_HOME.
        data_uri: of the dataset.

    Raises:
        DataError: there is no dataset.
    """
    return digest_before(
        Path(workdir).resolve(),
        location.read_json(data_uri, "dataset.json").get("facts", {}).get("content_hash"),
    )


@contextlib.contextmanager
def locked(workdir: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock of the writers to a work directory, a publish or a push.

    Raises:
        StoreError: another one held it for `wait_seconds`.
    """
    (workdir / "store").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with open(workdir / "store" / ".lock", "w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"another publish or push to {workdir} is running",
                        fix="Wait for it to end.",
                    ) from error
                time.sleep(0.02)
        yield


def current_version(workdir: Path) -> str | None:
    """Returns the name of the version that `workdir` points to, None for none."""
    try:
        return os.readlink(f"{workdir}/store/current")  # noqa: PTH115 - asked at each read, and a Path takes six times as long
    except OSError:
        return None


def digest_before(workdir: Path, dataset_hash: str | None) -> str:
    """Returns the digest of the published version that is not of this dataset, or of the one before
    it; empty for none.
    """
    version = workdir / "store" / (current_version(workdir) or "none")
    try:
        manifest = files.read_json(version / "features" / "manifest.json")
        if dataset_hash != manifest.get("dataset_hash"):
            return str(manifest["version"])
        return str(files.read_json(version / "feast" / "key.json")["before"])
    except (DataError, KeyError):
        return ""


def switch(workdir: Path, version: Path) -> list[Path]:
    """Returns the versions that nobody needs any more, after pointing `workdir` to a version by one
    rename: not it, nor the one before.
    """
    previous = current_version(workdir)
    _link(workdir / "store" / "current", version.name)
    for name in ("features", "feast"):
        _link(workdir / name, f"store/current/{name}")
    return [
        entry
        for entry in (workdir / "store").iterdir()
        if entry.is_dir() and not entry.is_symlink() and entry.name not in (version.name, previous)
    ]


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and str(link.readlink()) == target:
        return
    token = uuid.uuid4().hex[:8]
    if link.is_dir() and not link.is_symlink():  # a plain `feast apply` was here
        os.replace(link, link.parent / "store" / f".replaced-{token}")
    temporary = link.parent / f".{link.name}.tmp-{token}"
    temporary.symlink_to(target)
    os.replace(temporary, link)
