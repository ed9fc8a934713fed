"""Remove from a work directory what nothing refers to, and old runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from longrec.data import files
from longrec.data.store.publish import remove_version
from longrec.data.store.versions import is_held
from longrec.data.store.workdir import current_version, initialize_workdir, write_lock
from longrec.errors import LongrecError
from longrec.release import model_store, registry
from longrec.runs.record.attempts import STEPS_FOLDER
from longrec.runs.summary import SUMMARY_NAME
from longrec.runs.workdir import RUNS_FOLDER, locked

KEEP_ALL = 10**9
"""Number of runs to keep that keeps all of them."""
STAMPED = re.compile(r"\d{8}-\d{6}-")
"""Begins the name of a run of this machine: its start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Removal:
    """Paths to remove from a work directory.

    Args:
        versions: published versions that nothing reads: neither the current nor the newest other,
            nor those of runs that have not ended.
        leftovers: temporary files of killed processes of this machine, and evaluations of models
            that are no longer in the BentoML store.
        runs: old runs.
        cache: cached results that refer to these runs.
    """

    versions: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    runs: tuple[Path, ...] = ()
    cache: tuple[Path, ...] = ()

    @property
    def orphans(self) -> tuple[Path, ...]:
        """What nothing refers to, without old runs."""
        return (*self.versions, *self.leftovers)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.orphans, *self.runs, *self.cache)

    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum(_size(path) for path in self.paths)


def plan_removal(workdir: str | Path, keep: int = KEEP_ALL) -> Removal:
    """Return what can be removed; nothing is changed.

    Args:
        workdir: the work directory.
        keep: number of the newest runs to keep. Runs of the models in the registry stay too.
    """
    directory = Path(workdir).resolve()
    runs = tuple(_old_runs(directory, keep))
    return Removal(
        versions=tuple(_unused_versions(directory)),
        leftovers=(*_leftovers(directory), *_unused_references(directory)),
        runs=runs,
        cache=tuple(_results_in(directory, runs)),
    )


def collect_garbage(workdir: str | Path, keep: int) -> tuple[Removal, int]:
    """Remove what `plan_removal` names; return it, and the number of bytes.

    Raises:
        BusyError: a run uses the work directory.
        StoreError: a publish or push is running.
    """
    directory = Path(workdir).resolve()
    with locked(directory), write_lock(directory):
        removal = plan_removal(directory, keep)
        num_bytes = removal.num_bytes()
        workdir_id = initialize_workdir(directory)
        for version in removal.versions:
            remove_version(version, workdir_id)
        # Cached results go first: none may refer to a run that is gone.
        for path in (*removal.cache, *removal.leftovers, *removal.runs):
            _remove(path)
        return removal, num_bytes


def _unused_versions(workdir: Path) -> list[Path]:
    """Return the versions without the current one, the newest of the others, and those in use.

    The newest may be open in a reader that has not followed yet. A run reads the version that it
    published until it ends.
    """
    store = workdir / "store"
    if not store.is_dir():
        return []
    current = current_version(workdir)
    others = []
    for path in store.glob("[!.]*"):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and path.name != current:
            others.append(path)
    others.sort(key=lambda path: path.stat().st_mtime)
    unused = [path for path in others[:-1] if not is_held(path)]
    unused += store.glob(".replaced-*")
    return unused


def _leftovers(workdir: Path) -> Iterator[Path]:
    """Yield the temporary paths of dead processes of this machine; see `temporary_path`."""
    for folder, names, file_names in os.walk(workdir):
        for name in [*names, *file_names]:
            if _is_leftover(name):
                yield Path(folder) / name
        # What is below a hidden folder goes with it.
        names[:] = [name for name in names if not name.startswith(".")]


def _is_leftover(name: str) -> bool:
    """Return whether a name is that of a temporary path of a dead process."""
    host = socket.gethostname()
    if not name.startswith(".") or f"-{host}-" not in name:
        return False
    process_id = name.rsplit("-", 2)[1]
    return process_id.isdigit() and not files.is_alive(int(process_id))


def _unused_references(workdir: Path) -> Iterator[Path]:
    """Yield evaluations of models that the BentoML store does not hold any more."""
    store = model_store.store_dir(workdir)
    for path in sorted(workdir.glob("models/reference/*")):
        try:
            model_store.bundle_dir(store, path.name)
        except LongrecError:
            yield path


def _old_runs(workdir: Path, keep: int) -> Iterator[Path]:
    folder = workdir / RUNS_FOLDER
    runs = sorted(
        (run for run in folder.glob("[!.]*") if run.is_dir() and not run.is_symlink()),
        key=_start_of,
    )
    num_old = max(0, len(runs) - keep)
    current = registry.read_registry(workdir)
    versions = (current.champion, current.previous, current.challenger)
    latest = (folder / "latest").resolve()
    for run in runs[:num_old]:
        is_latest = run.resolve() == latest
        if not is_latest and _version_of(run) not in versions:
            yield run


def _start_of(run: Path) -> str:
    """Return when a run began, as text that sorts; the id of a run on a cluster does not tell."""
    if STAMPED.match(run.name):
        return run.name
    first = min((path.name for path in run.glob(f"{STEPS_FOLDER}/*.json")), default="")
    return first.replace("T", "-", 1)


def _version_of(run: Path) -> str:
    """Return the version of the model that a run packaged; empty for none."""
    with contextlib.suppress(LongrecError, OSError):
        summary = files.read_json(run / SUMMARY_NAME)
        tag = str(summary.get("bento_tag") or "")
        return tag.rpartition(":")[2]
    return ""


def _results_in(workdir: Path, runs: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the cached results that refer to files of runs."""
    places = [f"{run}{os.sep}" for run in runs]
    for path in sorted(workdir.glob("cache/*.json")):
        with contextlib.suppress(LongrecError, OSError):
            outputs = files.read_json(path)
            text = json.dumps(outputs, ensure_ascii=False)
            if any(place in text for place in places):
                yield path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(found.lstat().st_size for found in path.rglob("*"))
