"""Version of a watched file: it is read again only when its version changes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Facts of a file that change when it is replaced or written.

    Args:
        modified_ns: time of the last change, ns.
        inode: inode number; a replaced file has another one.
        num_bytes: size.
    """

    modified_ns: int
    inode: int
    num_bytes: int


def file_version(path: Path) -> FileVersion:
    """Return the version of a file.

    Raises:
        OSError: the file does not exist or cannot be accessed.
    """
    facts = path.stat()
    return FileVersion(facts.st_mtime_ns, facts.st_ino, facts.st_size)
