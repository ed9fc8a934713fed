"""The folder of a running service: files that its processes share, gone when it ends.

    TMPDIR/longrec-service-XXXXXXXX/
        lock             held by the supervisor as long as it lives
        metrics/         what workers count, for prometheus_client
        startup-error    the reason of a worker that cannot start

Each `bentoml serve` has a folder of its own, so services on one machine or one volume keep apart.
The lock ends with its process, however that ends: a service removes the folders of dead ones when
it starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "longrec-service-"
UNLOCKED_PREFIX = "longrec-starting-"
"""Prefix of a folder that is not locked yet: no other service may take it for a dead one's."""
LOCK_NAME = "lock"


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceFolder:
    """Paths in the folder of a service.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """Folder of the metrics of the workers."""
        return self.path / "metrics"

    @property
    def startup_error(self) -> Path:
        """File with the reason of a worker that cannot start."""
        return self.path / "startup-error"

    def read_startup_error(self) -> str:
        """Return the reason of a worker that cannot start; empty if there is none."""
        if not self.startup_error.exists():
            return ""
        return self.startup_error.read_text(encoding="utf-8")

    def remove(self) -> None:
        """Remove the folder; a worker that still writes to it is not disturbed."""
        shutil.rmtree(self.path, ignore_errors=True)


def create_service_folder(parent: Path | None = None) -> ServiceFolder:
    """Return a new folder that this process holds until it ends; remove those of dead services.

    Args:
        parent: where folders of services lie; None for the folder of temporary files.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_dead_folders(parent)
    unlocked = Path(tempfile.mkdtemp(prefix=UNLOCKED_PREFIX, dir=parent))
    _lock(unlocked)
    name = PREFIX + unlocked.name.removeprefix(UNLOCKED_PREFIX)
    folder = ServiceFolder(unlocked.rename(parent / name))
    folder.metrics.mkdir()
    return folder


def remove_dead_folders(parent: Path) -> None:
    """Remove the folders of this user's services that live no more.

    Args:
        parent: where folders of services lie.
    """
    for path in parent.glob(f"{PREFIX}*"):
        # Another service may remove it at the same time; other users' folders stay.
        with contextlib.suppress(OSError):
            descriptor = _lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _lock(path: Path) -> int:
    """Return the open lock file of a folder; the lock ends with it, or with this process.

    Raises:
        OSError: another process holds the lock, or the folder is not this user's.
    """
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
