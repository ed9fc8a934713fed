"""The work directory of runs: its lock, its run folders, and the environment of the steps."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from longrec.data import files
from longrec.errors import LongrecError
from longrec.release.model_store import store_dir

LOCK_NAME = ".lock"
RUNS_FOLDER = "runs"
WRITTEN_FOLDERS = ("store", "models", "bentoml", "checkpoints", "tensorboard", RUNS_FOLDER)
"""Folders of a work directory that the steps of a pipeline write to."""
THREADING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Waiting threads sleep. Spinning threads made training 20 to 60 times slower on a busy machine."""


class BusyError(LongrecError):
    """Another run is using the same work directory."""


class WorkdirError(LongrecError):
    """The work directory cannot be written."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the work directory; its feature store has one writer at a time.

    Raises:
        BusyError: another run is using it.
        WorkdirError: it cannot be written.
    """
    _make(workdir)
    busy = BusyError(
        f"another run is using {workdir}", fix="Wait for it, or choose another --workdir."
    )
    with files.locked(workdir / LOCK_NAME, busy):
        yield


def check_writable(workdir: str | Path) -> None:
    """Check that the steps of a pipeline can write to a work directory, before they need to.

    Raises:
        WorkdirError: they cannot; it names the owner, this user, and the command that changes it.
    """
    directory = Path(workdir)
    below = [directory / name for name in WRITTEN_FOLDERS]
    for folder in (directory, *(path for path in below if path.is_dir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise _not_writable(directory, folder, error) from error


def _not_writable(workdir: Path, folder: Path, error: OSError) -> WorkdirError:
    what = f"the work directory cannot be written at {folder}"
    user, group = os.geteuid(), os.getegid()
    if error.errno not in (errno.EACCES, errno.EPERM) or not folder.exists():
        return WorkdirError(what, found=error.strerror, fix="Repair the volume or its mount.")
    owner = folder.stat().st_uid
    return WorkdirError(
        what,
        found=f"it belongs to user {owner}, and this is user {user}",
        fix="Run once as root, in a pod that mounts the volume there: "
        f"chown -R {user}:{group} {workdir}",
    )


def new_run_folder(runs: Path, name: str) -> Path:
    """Return a new empty folder `<UTC time>-<name>`, with a suffix if that exists already."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "run"
    for suffix in ("", f"-{uuid.uuid4().hex[:6]}"):
        folder = runs / f"{stamp}-{slug}{suffix}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise BusyError("two runs started in the same second", fix="Start again.")


def run_environment(workdir: Path) -> dict[str, str]:
    """Return the environment variables of the steps and the service of a work directory."""
    return {**THREADING, **os.environ, **workdir_variables(workdir)}


def workdir_variables(workdir: Path) -> dict[str, str]:
    """Return the environment variables with which `bentoml` works on a work directory.

    Raises:
        WorkdirError: BentoML would use another folder as its store.
    """
    store = str(store_dir(workdir.resolve()))
    if os.path.expandvars(store) != store:
        raise WorkdirError(
            "BentoML reads `$NAME` in the path of its store as an environment variable",
            found=store,
            fix="Choose another --workdir, or set BENTOML_HOME to a path without `$NAME`.",
        )
    return {
        "LONGREC_HOME": str(workdir.resolve()),
        "BENTOML_HOME": store,
        "BENTOML_DO_NOT_TRACK": "True",
    }


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables and restore their former values afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _make(workdir: Path) -> None:
    try:
        (workdir / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
        (workdir / LOCK_NAME).touch()
    except OSError as error:
        raise WorkdirError(
            f"{workdir} cannot be written", found=error.strerror, fix="Choose another --workdir."
        ) from error
