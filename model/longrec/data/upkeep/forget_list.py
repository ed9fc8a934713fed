"""The forget list of a work directory: users whose data must not come back.

    WORKDIR/forgotten.json    format_version, users

Publish, push, retrieve and the log of requests leave these users out. So a rebuilt feature table or
a log that is imported again does not bring them back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import files
from longrec.data.columns import Int64, int64_column
from longrec.errors import DataError
from longrec.schema import USER_ID

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Shortest time between two looks of a running service at the list."""
FORMAT_VERSION = 1
LIST_NAME = "forgotten.json"
FIX = "Restore it from a backup: without it, forgotten users can come back."


def list_path(workdir: str | Path) -> Path:
    """Return the path of the list."""
    return Path(workdir) / LIST_NAME


def forgotten_users(workdir: str | Path) -> Int64:
    """Return the ids of the list, sorted; none without a list.

    Raises:
        DataError: the list is damaged, or has an unknown format version.
    """
    path = list_path(workdir)
    if not path.exists():
        return np.zeros(0, np.int64)
    content = files.read_versioned_json(path, FORMAT_VERSION, FIX)
    return np.unique(np.array(content["users"], np.int64))


def add_users(workdir: str | Path, user_ids: Iterable[int]) -> int:
    """Add users to the list; return how many are new."""
    known = set(forgotten_users(workdir).tolist())
    users = known | set(user_ids)
    if users != known:
        content = {"format_version": FORMAT_VERSION, "users": sorted(users)}
        files.write_json(list_path(workdir), content)
    return len(users) - len(known)


def is_of(table: pa.Table, user_ids: Int64) -> npt.NDArray[np.bool_]:
    """Return whether each row of a table is of one of the users."""
    return np.isin(int64_column(table, USER_ID), user_ids)


def without_users(table: pa.Table, user_ids: Int64) -> pa.Table:
    """Return the rows of other users; the table itself where there are no others to drop."""
    if not len(user_ids):
        return table
    is_dropped = is_of(table, user_ids)
    return table.filter(pa.array(~is_dropped)) if is_dropped.any() else table


class ForgetWatcher:
    """Tells a running service who was forgotten meanwhile, so that it can empty its caches.

    Args:
        workdir: the work directory; its list is read again when the file changes.
    """

    def __init__(self, workdir: str | Path) -> None:
        self._workdir = workdir
        self._known: set[int] = set()
        self._changed_at = 0
        self._next_look = 0.0

    def newly_forgotten(self) -> list[int]:
        """Return the users who were put on the list since the last call; look at most at times."""
        now = time.monotonic()
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_SECONDS
        try:
            changed_at = list_path(self._workdir).stat().st_mtime_ns
            if changed_at == self._changed_at:
                return []
            users = set(forgotten_users(self._workdir).tolist())
        except FileNotFoundError:
            return []
        except (DataError, OSError) as error:
            logger.warning("the forget list cannot be read: %s", error)
            return []
        new_users = users - self._known
        self._known = users
        self._changed_at = changed_at
        return sorted(new_users)
