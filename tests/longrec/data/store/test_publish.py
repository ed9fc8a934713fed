"""Publish with a real Feast: one version at a time after any kill, an online store in slices."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.data import features, history
from longrec.data.store import materialize
from longrec.data.store import publish as publishing
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import retrieve
from longrec.data.store.versions import PublishedVersion
from longrec.data.store.workdir import write_lock
from longrec.errors import DataError, StoreError
from tests.longrec.data import random_log
from tests.longrec.data.random_log import SCHEMA
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore


def test_time_slices_cover_every_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialize, "MAX_SLICE_BYTES", 100)
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = rng.integers(0, 20, 30)
        sizes = rng.integers(1, 300 if rng.random() < 0.5 else 30, 30).astype(float)
        slices = list(materialize.time_slices(times, sizes))
        assert [sum(first <= time <= last for first, last in slices) for time in times] == [
            1
        ] * len(times)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(slices))


def test_the_online_store_is_filled_in_slices(
    store: PublishedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize, "MAX_SLICE_BYTES", 5_000)
    report = publish(store.root / "features", tmp_path / "workdir", REPO)
    assert report.online_slices > 5
    users = list(store.events())
    for found, expected in zip(
        OnlineStore(tmp_path / "workdir").fetch(users),
        OnlineStore(store.workdir).fetch(users),
        strict=True,
    ):
        assert found.history.num_rows
        assert history.pack(found.history, SCHEMA) == history.pack(expected.history, SCHEMA)


@contextlib.contextmanager
def killed(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
) -> Iterator[None]:
    """Kill the block when it calls a function; a killed process does not clean up."""

    class Kill(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(module, function, kill)
        yield


STEPS = (
    (publishing, "_write_settings"),
    (publishing, "fill_online_store"),
    (materialize, "declarations"),
    (materialize, "materialize"),
    (materialize, "verify_online_store"),
    (publishing, "switch_to"),
)


@pytest.mark.parametrize(("module", "function"), STEPS)
def test_a_publish_killed_at_any_step_changes_nothing(
    store: PublishedStore,
    private_store: PublishedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
) -> None:
    other = random_log.write(tmp_path / "other", seed=9)
    features.build_features(other.path, tmp_path / "other_features", SMALL)
    with killed(monkeypatch, module, function):
        publish(tmp_path / "other_features", private_store.workdir, REPO)
    assert (
        PublishedVersion.open(private_store.workdir).manifest["dataset_hash"]
        == store.source.facts["content_hash"]
    )
    users = list(store.events())
    for found, expected in zip(
        OnlineStore(private_store.workdir).fetch(users),
        OnlineStore(store.workdir).fetch(users),
        strict=True,
    ):
        assert history.pack(found.history, SCHEMA) == history.pack(expected.history, SCHEMA)
    report = retrieve(
        store.source.path,
        private_store.workdir,
        REPO,
        tmp_path / "again",
        SMALL,
        0,
    )
    assert report == store.report
    with killed(monkeypatch, module, function):
        publish(store.root / "features", tmp_path / "first", REPO)
    with pytest.raises(StoreError, match="no feature store"):
        OnlineStore(tmp_path / "first")
    assert (
        publish(tmp_path / "other_features", private_store.workdir, REPO).num_verified > 0
    )  # and the next one works
    left = {
        path.name
        for path in (private_store.workdir / "store").iterdir()
        if path.is_dir() and not path.is_symlink()
    }
    assert len(left) == 2  # the new one and the one before


def test_a_publish_killed_while_it_switches_leaves_one_version(
    private_store: PublishedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_log.write(tmp_path / "other", seed=9)
    features.build_features(other.path, tmp_path / "other_features", SMALL)
    replace = os.replace
    calls = []
    for stop in range(4):

        def counting(
            source: Any,
            target: Any,
            stop: int = stop,
        ) -> None:
            calls.append(target)
            if len(calls) > stop:
                raise KeyboardInterrupt
            replace(source, target)

        calls.clear()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", counting)
            publish(tmp_path / "other_features", private_store.workdir, REPO)
        published = PublishedVersion.open(private_store.workdir)
        online = OnlineStore(private_store.workdir)
        assert online.version == published.path.name
        assert online.fetch([0])[0].history.num_rows > 0
        assert (
            (private_store.workdir / "feast").resolve().parent
            == (private_store.workdir / "features").resolve().parent
            == published.path
        )


def test_two_publishes_at_once_are_refused(private_store: PublishedStore) -> None:
    with write_lock(private_store.workdir), pytest.raises(StoreError, match="another publish"):
        publish(private_store.root / "features", private_store.workdir, REPO)


def test_a_publish_may_wait_for_another_one(private_store: PublishedStore) -> None:
    tables = private_store.root / "features"
    lock = os.open(private_store.workdir / "store" / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="another publish"):
        publish(tables, private_store.workdir, REPO)
    timer = threading.Timer(0.5, os.close, (lock,))
    timer.start()
    assert publish(tables, private_store.workdir, REPO, wait_seconds=60).num_users > 0
    timer.join()


def test_changed_feature_tables_are_refused(store: PublishedStore, tmp_path: Path) -> None:
    shutil.copytree(store.root / "features", tmp_path / "features")
    part = tmp_path / "features" / "user_history" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"part-00000.parquet is missing or was changed"):
        publish(tmp_path / "features", tmp_path / "workdir", REPO)
    with pytest.raises(DataError, match=r"manifest.json does not exist"):
        publish(tmp_path / "nothing", tmp_path / "workdir", REPO)
    with pytest.raises(
        StoreError, match=r"no feature repository at .*; found no feature_store.yaml"
    ):
        publish(store.root / "features", tmp_path / "workdir", tmp_path)
