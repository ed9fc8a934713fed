"""Whole-file writes: a reader sees the old content or the new one, never half of either, whatever
happens to the writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longrec.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes the place of `path`, on error it
    is removed.

    Works for a file and for a directory. The two directories change places in one step, so a kill
    at any moment leaves the old version or
    the new one; where the file system cannot do that, a kill between two renames leaves the old one
    under `.<name>.old-*`, and the next
    call puts it back. What killed processes of this machine left beside `path` is removed.

    Raises:
        DataError: the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target)
    temporary = beside(target, "tmp")
    try:
        with disk_errors(target):
            yield temporary
            if not temporary.exists():
                raise FileNotFoundError(f"nothing was written to {temporary}")
            if not target.is_dir():
                os.replace(temporary, target)
            elif not _exchange(temporary, target):
                aside = beside(target, "old")
                os.replace(target, aside)
                os.replace(temporary, target)
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns the error of a full disk into a DataError that says what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"no space is left to write {target}",
            found=os.strerror(error.errno),
            fix="Free some space and run it again; what was there before is as it was.",
        ) from error


def beside(target: Path, kind: str) -> Path:
    """Returns a new hidden name beside `target` that says which process made it; `tidy` removes it
    when that is dead.
    """
    return (
        target.parent
        / f".{target.name}.{kind}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )


def tidy(target: Path) -> None:
    """Removes what killed processes of this machine left beside `target`; puts it back where one
    was killed between two renames.
    """
    host = socket.gethostname()
    for entry in target.parent.glob(f".{glob.escape(target.name)}.*-{glob.escape(host)}-*-*"):
        pid = entry.name.rsplit("-", 2)[1]
        if not pid.isdigit() or _is_alive(int(pid)):
            continue
        if entry.name.startswith(f".{target.name}.old-") and not target.exists():
            os.replace(entry, target)
        else:
            _remove(entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _exchange(left: Path, right: Path) -> bool:
    """Returns whether two paths have changed places, in one step; False where the system or the
    file system cannot do that.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        rename is not None
        and rename(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(
            OSError
        ):  # a disk that cannot be written; what went wrong before says so
            path.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Returns when the entries of a directory and the bytes of its files are on disk; folders
    inside it are not looked into.
    """
    for path in (*(path for path in directory.iterdir() if path.is_file()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, keys in the given order, replacing `path` at once."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: str | Path) -> Any:
    """Returns the JSON value in `path`.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", expected="a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not JSON",
            found=str(error),
            fix="Write it again with the command that made it.",
        ) from error


def sha256_of(path: str | Path) -> str:
    """Returns the hex SHA-256 of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
