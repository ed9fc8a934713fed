"""Published versions: a run reads the one that it published until it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from redis import Redis

from longrec.data import features, history
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import retrieve
from longrec.data.store.versions import (
    MAX_HOLD_SECONDS,
    READERS_FOLDER,
    PublishedVersion,
    release,
)
from longrec.errors import StoreError
from longrec.runs.gc import collect_garbage
from tests.longrec.data import random_log, redis_server
from tests.longrec.data.random_log import SCHEMA
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore

ALL_RUNS = 99


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the feature tables of three other datasets."""
    tables = []
    for seed in (7, 8, 9):
        folder = tmp_path_factory.mktemp("other")
        source = random_log.write(folder / "data", seed=seed)
        features.build_features(source.path, folder / "features", SMALL)
        tables.append(folder / "features")
    return tables


def packed(store: OnlineStore | OfflineStore, users: list[int]) -> list[bytes]:
    return [history.pack(record.history, SCHEMA) for record in store.fetch(users)]


def test_a_run_reads_its_version_while_refreshes_publish_others(
    store: PublishedStore, others: list[Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "workdir"
    own = publish(store.root / "features", workdir, REPO, run="training")
    reader = OnlineStore(workdir, digest=own.digest)
    for tables in others:
        publish(tables, workdir, REPO)
    out_dir = tmp_path / "histories"
    report = retrieve(store.source.path, workdir, REPO, out_dir, SMALL, 0, digest=own.digest)
    assert report == store.report
    users = list(store.events())
    expected = packed(OnlineStore(store.workdir), users)
    assert packed(reader, users) == expected
    assert packed(OnlineStore(workdir, digest=own.digest), users) == expected
    assert packed(OnlineStore(workdir), users) != expected
    with pytest.raises(StoreError, match="features of another dataset"):
        retrieve(store.source.path, workdir, REPO, out_dir, SMALL, 0)


def test_a_version_in_use_is_kept_until_the_last_run_that_reads_it_ends(
    store: PublishedStore, others: list[Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "workdir"
    first = publish(store.root / "features", workdir, REPO, key="same", run="one")
    again = publish(store.root / "features", workdir, REPO, key="same", run="two[*]")
    assert again.was_current
    version = Path(first.version)
    release(workdir, "one")
    for tables in others:
        publish(tables, workdir, REPO)
    collect_garbage(workdir, ALL_RUNS)
    assert PublishedVersion.open(workdir, first.digest).path == version
    release(workdir, "two[*]")
    removal, _ = collect_garbage(workdir, ALL_RUNS)
    assert removal.versions == (version,)
    with pytest.raises(StoreError, match=rf"features {first.digest} are not in .* Start the run"):
        PublishedVersion.open(workdir, first.digest)


def test_a_run_that_never_told_its_end_holds_its_version_for_a_week(
    store: PublishedStore, others: list[Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "workdir"
    version = Path(publish(store.root / "features", workdir, REPO, run="killed").version)
    for tables in others[:2]:
        publish(tables, workdir, REPO)
    assert version.is_dir()
    long_ago = time.time() - MAX_HOLD_SECONDS - 1
    os.utime(version / READERS_FOLDER / "killed", (long_ago, long_ago))
    publish(others[2], workdir, REPO)
    assert not version.exists()


def test_a_version_that_is_being_published_is_not_read(
    store: PublishedStore, tmp_path: Path
) -> None:
    workdir = tmp_path / "workdir"
    report = publish(store.root / "features", workdir, REPO)
    (Path(report.version) / "feast" / "key.json").unlink()
    with pytest.raises(StoreError, match="found no version; expected the version that this run"):
        PublishedVersion.open(workdir, report.digest)


def test_keys_in_redis_stay_with_the_version_that_a_run_reads(
    store: PublishedStore, others: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "workdir"
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv("LONGREC_REDIS", address)
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        own = publish(store.root / "features", workdir, REPO, run="training")
        for tables in others[:2]:
            publish(tables, workdir, REPO)
        users = list(store.events())
        expected = packed(OnlineStore(store.workdir), users)
        assert packed(OnlineStore(workdir, digest=own.digest), users) == expected
        project = Path(own.version).name.replace("-", "_")
        server = Redis.from_url(f"redis://{address}")
        assert set(server.scan_iter(f"*{project}*"))
        release(workdir, "training")
        publish(others[2], workdir, REPO)
        assert not set(server.scan_iter(f"*{project}*"))
