"""Where a dataset is: a directory, or an address of an object store that pyarrow knows (s3://,
gs://, abfs://).

Credentials, region and endpoint come from the environment, as those stores define it
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS); nothing of them is in an address.
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
from longrec.data.dataset import WHOLE, Shard, part_name
from longrec.errors import DataError


@contextlib.contextmanager
def opened(uri: str, shard: Shard = WHOLE) -> Iterator[Path]:
    """Yields a directory with the files at `uri`: the place itself where it is a path or file://,
    else a copy that is removed afterwards.

    Of events/ and targets/ only the parts of a shard are copied.

    The copy goes to the directory for temporary files (TMPDIR), which must have room for it.

    Raises:
        DataError: nothing is there, or the store cannot be reached.
    """
    system, root = _resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="longrec-data-") as folder:
        with _errors(uri):
            if shard == WHOLE:
                fs.copy_files(
                    root,
                    folder,
                    source_filesystem=system,
                    destination_filesystem=fs.LocalFileSystem(),
                )
            else:
                _copy_shard(system, root, Path(folder), shard)
        yield Path(folder)


def _copy_shard(
    system: fs.FileSystem,
    root: str,
    folder: Path,
    shard: Shard,
) -> None:
    with system.open_input_stream(f"{root}/dataset.json") as stream:
        head = json.loads(stream.read())
    parts = shard.parts(head["facts"]["num_parts"])
    names = [f"{table}/{part_name(part)}" for table in ("events", "targets") for part in parts]
    for name in ("dataset.json", "items.parquet", "users.parquet", *names):
        (folder / name).parent.mkdir(exist_ok=True)
        fs.copy_files(
            f"{root}/{name}",
            str(folder / name),
            source_filesystem=system,
            destination_filesystem=fs.LocalFileSystem(),
        )


def read_json(uri: str, name: str) -> Any:
    """Returns the JSON value in one file of a dataset.

    Raises:
        DataError: as of `opened`; or the file is missing or is not JSON.
    """
    system, root = _resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return files.read_json(Path(root) / name)
    with _errors(f"{uri}/{name}"), system.open_input_stream(f"{root}/{name}") as stream:
        return json.loads(stream.read())


def fingerprint(uri: str) -> str:
    """Returns a text that changes when a file below `uri` does: by content in a directory, by size
    and time of change in an object store.

    Raises:
        DataError: as of `opened`.
    """
    system, root = _resolve(uri)
    is_local, digest = isinstance(system, fs.LocalFileSystem), hashlib.sha256()
    with _errors(uri):
        entries = system.get_file_info(fs.FileSelector(root, recursive=True))
    for entry in sorted(
        (entry for entry in entries if entry.is_file), key=lambda entry: entry.path
    ):
        state = files.sha256_of(entry.path) if is_local else f"{entry.size} {entry.mtime_ns}"
        digest.update(f"{entry.path.removeprefix(root)}\n{state}\n".encode())
    return digest.hexdigest()[:16]


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of an address and the path in it, after checking that something is
    there.
    """
    with _errors(uri):
        if "://" in uri and not uri.startswith("file://"):
            system, root = fs.FileSystem.from_uri(uri)
        else:
            path = (
                urllib.parse.unquote(uri.removeprefix("file://"))
                if uri.startswith("file://")
                else uri
            )
            system, root = fs.LocalFileSystem(), str(Path(path).absolute())
        found = system.get_file_info(f"{root}/dataset.json")
    if found.type != fs.FileType.File:
        raise DataError(
            f"there is no dataset at {uri}",
            expected="a directory with dataset.json",
            fix="Make one with longrec import.",
        )
    return system, root


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns whatever a store answers into one line."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        found = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"{uri} cannot be read",
            found=found,
            fix="Check the address, the credentials and AWS_ENDPOINT_URL.",
        ) from error
