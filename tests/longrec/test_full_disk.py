"""A full disk: one clear error, nothing half-written, a rerun like an undisturbed run.

Each step gets a share of the space that it needs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longrec.data import features, history
from longrec.data.files import reserve_space, sha256_of
from longrec.data.importers.synthetic import synthesize
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher
from longrec.data.store.retrieve import retrieve
from longrec.errors import LongrecError
from tests.longrec.data.random_log import SCHEMA, live
from tests.longrec.data.store import published_store
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore
from tests.longrec.mounts import small_disk

DISK_BYTES = 32 << 20
BLOCK_BYTES = 4096
SHARES = (0.0, 0.3, 0.9)
"""Shares of the bytes of a step that are free."""
FEW_SHARES = (0.0, 0.1)
"""Shares for a second write, which needs less than the first."""
Step = Callable[[PublishedStore, Path], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PublishedStore:
    return published_store.make(tmp_path_factory.mktemp("store"))


def make_dataset(store: PublishedStore, disk: Path) -> object:
    sizes = {"num_users": 30, "events_per_user": 128, "num_items": 200}
    return synthesize(disk / "dataset", seed=0, **sizes)


def make_features(store: PublishedStore, disk: Path) -> object:
    return features.build_features(store.source.path, disk / "features", SMALL)


def make_histories(store: PublishedStore, disk: Path) -> object:
    return retrieve(
        store.source.path,
        store.workdir,
        REPO,
        disk / "histories",
        SMALL,
        0,
    )


def push_events(store: PublishedStore, disk: Path) -> object:
    users = list(store.events())
    events = live(np.random.default_rng(0), 400, users)
    return Pusher(disk / "workdir").push(events)


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bfree * status.f_frsize


def leave_free(disk: Path, num_bytes: int) -> Path:
    """Fill a disk until this many bytes are free; return the file that fills it."""
    ballast = disk / "ballast"
    size = free_bytes(disk) - num_bytes
    ballast.write_bytes(bytes(size // BLOCK_BYTES * BLOCK_BYTES))
    return ballast


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths}


@pytest.mark.parametrize("step", [make_dataset, make_features, make_histories])
def test_a_step_leaves_nothing_and_its_rerun_ends_the_same(
    store: PublishedStore, tmp_path: Path, step: Step
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    step(store, undisturbed)
    expected = contents(undisturbed)
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_BYTES):
        before = free_bytes(disk)
        step(store, disk)
        needed = before - free_bytes(disk)
        for path in disk.iterdir():
            shutil.rmtree(path)
        for share in SHARES:
            ballast = leave_free(disk, int(share * needed))
            with pytest.raises(LongrecError, match="no space is left to write"):
                step(store, disk)
            assert list(disk.iterdir()) == [ballast]
            ballast.unlink()
            step(store, disk)
            assert contents(disk) == expected
            for path in disk.iterdir():
                shutil.rmtree(path)


def test_space_is_reserved_before_a_mapped_file_is_written(tmp_path: Path) -> None:
    """Writing through a mapping would end the process by SIGBUS."""
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        path = disk / "mapped"
        with open(path, "wb") as stream:
            stream.truncate(4 << 20)
        with pytest.raises(OSError, match="No space left on device"):
            reserve_space(path)


def served(workdir: Path, store: PublishedStore) -> list[bytes]:
    records = OnlineStore(workdir).fetch(list(store.events()))
    return [history.pack(record.history, SCHEMA) for record in records]


def versions_of(workdir: Path) -> list[Path]:
    paths = (workdir / "store").iterdir()
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def test_a_publish_leaves_no_version_and_the_next_one_works(
    store: PublishedStore, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    workdir = disk / "workdir"
    expected = served(store.workdir, store)
    with small_disk(disk, DISK_BYTES):
        before = free_bytes(disk)
        publish(store.root / "features", workdir, REPO)
        needed = before - free_bytes(disk)
        first = versions_of(workdir)
        for share in FEW_SHARES:
            ballast = leave_free(disk, int(share * needed))
            with pytest.raises(LongrecError, match=r"Free some space and run it again"):
                publish(store.root / "features", workdir, REPO)
            assert versions_of(workdir) == first
            ballast.unlink()
            assert served(workdir, store) == expected
        publish(store.root / "features", workdir, REPO)
        assert served(workdir, store) == expected


def test_a_push_that_is_repeated_ends_like_an_undisturbed_one(
    store: PublishedStore, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    shutil.copytree(store.workdir, undisturbed / "workdir", symlinks=True)
    push_events(store, undisturbed)
    expected = served(undisturbed / "workdir", store)
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_BYTES):
        for share in FEW_SHARES:
            shutil.copytree(store.workdir, disk / "workdir", symlinks=True)
            ballast = leave_free(disk, int(share * 4 * BLOCK_BYTES))
            with pytest.raises(LongrecError, match=r"Free some space and run it again"):
                push_events(store, disk)
            assert not list(disk.rglob("*.tmp"))
            ballast.unlink()
            push_events(store, disk)
            assert served(disk / "workdir", store) == expected
            shutil.rmtree(disk / "workdir")
