"""Atomic file writes: a reader sees the old content or the new content, never a mixture.

This holds however the writer ends, also when it is killed.
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

from filelock import FileLock, Timeout

from longrec.errors import DataError, LongrecError

DISK_FULL_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)
DISK_FULL_WORDS = ("No space left on device", "disk is full", "requested and 0 written")
"""Words of safetensors, SQLite and NumPy."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_HASH_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_replace(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on error.

    Works for a file and for a directory. Two directories are exchanged in one step, so a kill
    leaves either version. A file system that cannot exchange them needs two renames. A kill
    between those leaves the old version under `.<name>.old-*`, and the next call restores it.
    Leftovers of killed processes of this machine are removed first.

    Raises:
        DataError: the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary = temporary_path(target, "tmp")
    try:
        with explain_full_disk(target):
            yield temporary
            if not temporary.exists():
                raise FileNotFoundError(f"nothing was written to {temporary}")
            _move_into_place(temporary, target)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def locked(path: Path, busy: LongrecError, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; the system releases it however the process ends.

    Args:
        path: the lock file; it is made if it is missing, and stays.
        busy: raised if another process holds the lock for `wait_seconds`.
        wait_seconds: how long to wait for the lock.

    Raises:
        LongrecError: `busy`.
        OSError: the file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explain_full_disk(target: Path) -> Iterator[None]:
    """Turn the error of a full disk into a DataError that names the file being written."""
    try:
        yield
    except LongrecError:
        raise
    except Exception as error:
        if not _is_of_full_disk(error):
            raise
        number = getattr(error, "errno", None) or errno.ENOSPC
        raise DataError(
            f"no space is left to write {target}",
            found=os.strerror(number),
            fix="Free some space and run it again; the old content is unchanged.",
        ) from error


def _is_of_full_disk(error: Exception) -> bool:
    """Return whether a write failed for lack of space; some libraries only say so in words."""
    if getattr(error, "errno", None) in DISK_FULL_ERRNOS:
        return True
    text = str(error)
    return any(words in text for words in DISK_FULL_WORDS)


def temporary_path(target: Path, purpose: str) -> Path:
    """Return a new hidden path next to `target` that names this process.

    `remove_leftovers` removes it once the process is dead.

    Args:
        target: the file or directory that is being made.
        purpose: a word in the name, such as `tmp`.
    """
    process = f"{socket.gethostname()}-{os.getpid()}"
    token = uuid.uuid4().hex[:8]
    name = f".{target.name}.{purpose}-{process}-{token}"
    return target.parent / name


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes of this machine left next to `target`.

    An old version that was moved aside is restored where `target` is missing.
    """
    name = glob.escape(target.name)
    host = glob.escape(socket.gethostname())
    for entry in target.parent.glob(f".{name}.*-{host}-*-*"):
        process_id = entry.name.rsplit("-", 2)[1]
        if not process_id.isdigit() or is_alive(int(process_id)):
            continue
        is_old_version = entry.name.startswith(f".{target.name}.old-")
        if is_old_version and not target.exists():
            os.replace(entry, target)
        else:
            _remove(entry)


def is_empty_or_has(directory: Path, name: str) -> bool:
    """Return whether a path is a directory that is empty or holds an entry of this name."""
    if not directory.is_dir():
        return False
    return (directory / name).exists() or not any(directory.iterdir())


def check_output_file(path: Path) -> None:
    """Check that a file that a user names can be written; its folder must be there.

    Raises:
        DataError: there is no such folder, or the path is a folder.
        OSError: the folder cannot be written.
    """
    if path.is_dir():
        raise DataError(
            f"{path} cannot be written",
            found="a folder",
            expected="the name of a file",
        )
    if not path.parent.exists():
        raise DataError(
            f"{path} cannot be written",
            found=f"no folder {path.parent}",
            fix=f"Make it first: mkdir -p {path.parent}",
        )
    check_writable(path.parent)


def check_writable(directory: Path) -> None:
    """Check that a directory can be written, or made and written; make nothing.

    Raises:
        OSError: a file is in its place, or the nearest directory above it cannot be written.
    """
    nearest = directory.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    probe = temporary_path(nearest / "probe", "tmp")
    probe.touch()
    probe.unlink()


def reserve_space(path: Path) -> None:
    """Reserve the space of a new file of zeros, before its pages are written through a mapping.

    Without space, such a write would end the process by SIGBUS.

    Raises:
        OSError: the disk is full.
    """
    num_bytes = path.stat().st_size
    with open(path, "r+b") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, num_bytes)
            return
        # macOS: write the zeros behind what is there.
        header = stream.read(_HASH_CHUNK_BYTES)
        stream.seek(len(header))
        for start in range(len(header), num_bytes, _HASH_CHUNK_BYTES):
            stream.write(bytes(min(_HASH_CHUNK_BYTES, num_bytes - start)))


def duckdb_pattern(path: Path) -> str:
    """Return the text by which DuckDB finds one file; it takes each path as a glob pattern.

    A path that holds both a backslash and one of `*?[` cannot be named so.
    """
    return glob.escape(str(path))


def fsync_directory(directory: Path) -> None:
    """Force the entries of a directory and its files to disk, without its subdirectories."""
    entries = [path for path in directory.iterdir() if path.is_file()]
    for path in (*entries, directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, keys in the given order, replacing `path` atomically."""
    text = json.dumps(
        value,
        indent=2,
        ensure_ascii=False,
    )
    write_text(path, f"{text}\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, replacing `path` atomically."""
    with atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Return the JSON value in a file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", expected="a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not JSON",
            found=str(error),
            fix="Write it again with the command that made it.",
        ) from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DataError: the file is missing or holds no JSON object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(
            f"{path} holds no JSON object",
            found=type(value).__name__,
            fix="Write it again with the command that made it.",
        )
    return value


def read_versioned_json(
    path: str | Path,
    version: int,
    fix: str,
) -> dict[str, Any]:
    """Return the JSON object in a file after checking its key `format_version`.

    Args:
        path: the file.
        version: the only format version that this code reads.
        fix: the command that converts or rebuilds the file, for the error.

    Raises:
        DataError: the file is missing, is not a JSON object, or has another format version.
    """
    value = read_json(path)
    is_object = isinstance(value, dict)
    found = value.get("format_version") if is_object else type(value).__name__
    if found != version:
        raise DataError(
            f"{path} has another format version",
            found=found,
            expected=version,
            fix=fix,
        )
    return dict(value)


def sha256_of(path: str | Path) -> str:
    """Return the hex SHA-256 of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _move_into_place(temporary: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(temporary, target)
        return
    if _exchange(temporary, target):
        return
    old_version = temporary_path(target, "old")
    os.replace(target, old_version)
    os.replace(temporary, target)
    shutil.rmtree(old_version, ignore_errors=True)


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two paths in one step; return False if the system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    status = renameat2(
        _AT_FDCWD,
        os.fsencode(left),
        _AT_FDCWD,
        os.fsencode(right),
        _RENAME_EXCHANGE,
    )
    return bool(status == 0)


def is_alive(process_id: int) -> bool:
    """Return whether a process of this machine runs."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # an error here would hide the one that ended the write
        path.unlink(missing_ok=True)
