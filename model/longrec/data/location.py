"""Location of a dataset: a directory, or an address in an object store (s3://, gs://, abfs://).

Credentials, region and endpoint come from the store's environment variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS). An address
never contains them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from longrec.data import files
from longrec.data.shards import WHOLE_DATASET, Shard, part_name
from longrec.errors import DataError
from longrec.retries import retried


@contextlib.contextmanager
def local_directory(uri: str, shard: Shard = WHOLE_DATASET) -> Iterator[Path]:
    """Yield a directory with the files of a dataset.

    A path or file:// address is used in place. Any other address is copied to the directory for
    temporary files (TMPDIR), which must have room for it; the copy is removed afterwards.

    Args:
        uri: the dataset.
        shard: the parts of events/ and targets/ to copy.

    Raises:
        DataError: no dataset is there, or the store cannot be reached.
    """
    system, root = _resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="longrec-data-") as folder:
        with _explain_store_errors(uri):
            if shard == WHOLE_DATASET:
                _copy(system, root, folder)
            else:
                _copy_shard(
                    system,
                    root,
                    Path(folder),
                    shard,
                )
        yield Path(folder)


def read_json(uri: str, name: str) -> Any:
    """Return the JSON value in one file of a dataset.

    Raises:
        DataError: as for `local_directory`, or the file is missing or is not JSON.
    """
    system, root = _resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return files.read_json(Path(root) / name)
    with _explain_store_errors(f"{uri}/{name}"):
        return _load_json(system, f"{root}/{name}")


def fingerprint(uri: str) -> str:
    """Return a text that changes when a file of the dataset changes.

    Files of a directory are compared by content, those of an object store by size and time of
    change.

    Raises:
        DataError: as for `local_directory`.
    """
    system, root = _resolve(uri)
    is_local = isinstance(system, fs.LocalFileSystem)
    with _explain_store_errors(uri):
        entries = retried(system.get_file_info, fs.FileSelector(root, recursive=True))
    file_entries = [entry for entry in entries if entry.is_file]
    digest = hashlib.sha256()
    for entry in sorted(file_entries, key=lambda entry: entry.path):
        state = f"{entry.size} {entry.mtime_ns}"
        if is_local:
            state = files.sha256_of(entry.path)
        name = entry.path.removeprefix(root)
        digest.update(f"{name}\n{state}\n".encode())
    return digest.hexdigest()[:16]


def _copy_shard(
    system: fs.FileSystem,
    root: str,
    folder: Path,
    shard: Shard,
) -> None:
    metadata = _load_json(system, f"{root}/dataset.json")
    names = ["dataset.json", "items.parquet", "users.parquet"]
    parts = shard.parts(metadata["facts"]["num_parts"])
    for part in parts:
        names.append(f"events/{part_name(part)}")
        names.append(f"targets/{part_name(part)}")
    for name in names:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        _copy(system, f"{root}/{name}", str(target))


def _copy(
    system: fs.FileSystem,
    source: str,
    target: str,
) -> None:
    retried(
        fs.copy_files,
        source,
        target,
        source_filesystem=system,
        destination_filesystem=fs.LocalFileSystem(),
    )


def _load_json(system: fs.FileSystem, path: str) -> Any:
    return json.loads(retried(_read, system, path))


def _read(system: fs.FileSystem, path: str) -> bytes:
    with system.open_input_stream(path) as stream:
        return bytes(stream.read())


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of an address and the path in it, after finding dataset.json there."""
    with _explain_store_errors(uri):
        system, root = _file_system_of(uri)
        info = retried(system.get_file_info, f"{root}/dataset.json")
    if info.type != fs.FileType.File:
        raise DataError(
            f"there is no dataset at {uri}",
            expected="a directory with dataset.json",
            fix="Make one with longrec import.",
        )
    return system, root


def _file_system_of(uri: str) -> tuple[fs.FileSystem, str]:
    path = uri
    if uri.startswith("file://"):
        path = urllib.parse.unquote(uri.removeprefix("file://"))
    elif "://" in uri:
        system, root = retried(fs.FileSystem.from_uri, uri)
        return system, root
    return fs.LocalFileSystem(), str(Path(path).absolute())


@contextlib.contextmanager
def _explain_store_errors(uri: str) -> Iterator[None]:
    """Turn any error of a store into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{uri} cannot be read",
            found=lines[0][:300],
            fix="Check the address, the credentials and AWS_ENDPOINT_URL.",
        ) from error
