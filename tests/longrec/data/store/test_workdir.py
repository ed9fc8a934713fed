"""The work directory: its format version, its identity, and its independence of its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from redis import Redis

from longrec.data import files, history
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import give_own_keys, publish
from longrec.data.store.push import Pusher
from longrec.data.store.retrieve import retrieve
from longrec.data.store.versions import PublishedVersion
from longrec.data.store.workdir import check_workdir, initialize_workdir
from longrec.errors import StoreError
from tests.longrec.data import redis_server
from tests.longrec.data.random_log import SCHEMA, live
from tests.longrec.data.store.published_store import REPO, SMALL, PublishedStore
from tests.longrec.mounts import mounted


def set_version(path: Path, version: int) -> None:
    """Write another format version into a JSON file."""
    content = json.loads(path.read_text())
    content["format_version"] = version
    path.write_text(json.dumps(content))


def test_a_publish_records_the_format_version(store: PublishedStore) -> None:
    recorded = files.read_json(store.workdir / "workdir.json")
    assert recorded["format_version"] == 2
    assert recorded["inode"] == (store.workdir / "store").stat().st_ino


def test_the_first_use_writes_the_file_and_later_ones_keep_it(tmp_path: Path) -> None:
    initialize_workdir(tmp_path)
    before = (tmp_path / "workdir.json").stat().st_mtime_ns
    initialize_workdir(tmp_path)
    assert (tmp_path / "workdir.json").stat().st_mtime_ns == before
    check_workdir(tmp_path)


def test_an_unknown_format_version_is_refused_by_every_user(private_store: PublishedStore) -> None:
    set_version(private_store.workdir / "workdir.json", 3)
    message = (
        r"has another format version; found 3; expected 2\. "
        r"Rebuild it in a new directory \(longrec refresh --workdir NEW"
    )
    with pytest.raises(StoreError, match=message):
        OnlineStore(private_store.workdir)
    with pytest.raises(StoreError, match=message):
        Pusher(private_store.workdir)
    with pytest.raises(StoreError, match=message):
        publish(private_store.root / "features", private_store.workdir, REPO)


def test_version_0_without_the_file_is_read_as_it_is(private_store: PublishedStore) -> None:
    (private_store.workdir / "workdir.json").unlink()
    published = PublishedVersion.open(private_store.workdir)
    assert published.schema == private_store.source.schema
    assert OnlineStore(private_store.workdir).fetch([0])[0].history.num_rows > 0


def test_version_0_with_unreadable_feature_tables_is_refused_until_published_again(
    private_store: PublishedStore,
) -> None:
    (private_store.workdir / "workdir.json").unlink()
    manifest = (private_store.workdir / "features" / "manifest.json").resolve()
    set_version(manifest, 0)
    message = (
        r"was made by an older version of longrec; "
        r"found feature tables of format version 0; expected 1\. "
        r"Publish its dataset again \(longrec refresh or longrec run\)"
    )
    with pytest.raises(StoreError, match=message):
        PublishedVersion.open(private_store.workdir)
    publish(private_store.root / "features", private_store.workdir, REPO)
    assert PublishedVersion.open(private_store.workdir).path != manifest.parents[1]


def test_published_tables_of_another_format_version_are_refused(
    private_store: PublishedStore,
) -> None:
    manifest = (private_store.workdir / "features" / "manifest.json").resolve()
    set_version(manifest, 9)
    message = r"have another format version; found 9; expected 1\. Publish the dataset again"
    with pytest.raises(StoreError, match=message):
        OnlineStore(private_store.workdir)


ODD_NAMES = (
    "a #b: c",
    "quotes ' and \"",
    "$HOME {{$}} {{$.inputs}}",
    "naïve 数据",
    "[x]*?y%20",
    "python3",
)


def users_of(store: PublishedStore) -> list[int]:
    return list(store.events())


def served(workdir: Path, store: PublishedStore) -> list[bytes]:
    """Return the packed histories that a work directory serves, online and offline."""
    users = users_of(store)
    records = [*OnlineStore(workdir).fetch(users), *OfflineStore(workdir).fetch(users)]
    return [history.pack(record.history, SCHEMA) for record in records]


def texts_of(workdir: Path) -> str:
    """Return the content of all files that a work directory's version holds besides tables."""
    folder = workdir / "store" / "current" / "feast"
    texts = [path.read_bytes().decode(errors="replace") for path in folder.iterdir()]
    return "\n".join(texts)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_legal_path_works(store: PublishedStore, tmp_path: Path, name: str) -> None:
    root = tmp_path / "out" / name
    shutil.copytree(store.root / "features", root / "features")
    workdir = root / "workdir"
    publish(root / "features", workdir, REPO)
    assert served(workdir, store) == served(store.workdir, store)
    Pusher(workdir).push(live(np.random.default_rng(0), 40, users_of(store)))
    retrieve(
        store.source.path,
        workdir,
        REPO,
        root / "histories",
        SMALL,
        0,
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_path_that_duckdb_cannot_name_is_refused(store: PublishedStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="folder with a backslash in its name"):
        publish(store.root / "features", tmp_path / "back\\slash", REPO)


def test_no_file_of_a_version_holds_its_place(store: PublishedStore) -> None:
    assert str(store.root) not in texts_of(store.workdir)


def test_a_moved_work_directory_works_without_its_former_place(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    before = files.read_json(private_store.workdir / "workdir.json")
    moved = tmp_path / "else where" / "moved"
    moved.parent.mkdir()
    private_store.workdir.rename(moved)
    assert served(moved, private_store) == served(moved, private_store)
    report = Pusher(moved).push(live(np.random.default_rng(0), 40, users_of(private_store)))
    assert report.num_new > 0
    publish(private_store.root / "features", moved, REPO)
    assert not private_store.workdir.exists()
    assert files.read_json(moved / "workdir.json") == before


def test_a_copy_reads_and_writes_its_own_store_and_gets_its_own_id(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    original = private_store.workdir
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, symlinks=True)
    before = served(original, private_store)
    assert served(copy, private_store) == before
    events = live(np.random.default_rng(0), 40, users_of(private_store))
    Pusher(copy).push(events)
    assert served(original, private_store) == before
    assert served(copy, private_store) != before
    shutil.rmtree(original)
    assert served(copy, private_store) != before
    publish(private_store.root / "features", copy, REPO)
    assert served(copy, private_store) != before


def test_a_copy_has_an_id_of_its_own_after_its_first_write(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(private_store.workdir, copy, symlinks=True)
    ids = [initialize_workdir(path) for path in (private_store.workdir, copy, copy)]
    assert ids[0] != ids[1]
    assert ids[1] == ids[2]
    assert initialize_workdir(private_store.workdir) == ids[0]


def test_a_work_directory_that_cannot_be_written_is_read(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    """The test runs as root in a container, so it mounts the folder read-only."""
    expected = served(private_store.workdir, private_store)
    place = tmp_path / "mounted"
    place.mkdir()
    with mounted(private_store.workdir, place, "bind", "remount,bind,ro"):
        assert served(place, private_store) == expected


def test_a_version_of_format_1_is_read_in_another_place_too(
    private_store: PublishedStore, tmp_path: Path
) -> None:
    """Its settings hold the absolute paths of the place where it was published."""
    version = PublishedVersion.open(private_store.workdir).path
    settings_path = version / "feast" / "feature_store.yaml"
    settings = yaml.safe_load(settings_path.read_text())
    settings["registry"]["path"] = str(version / "feast" / "registry.db")
    settings["online_store"]["path"] = str(version / "feast" / "online.db")
    settings_path.write_text(yaml.safe_dump(settings))
    files.write_json(private_store.workdir / "workdir.json", {"format_version": 1})
    expected = served(private_store.workdir, private_store)
    moved = tmp_path / "moved"
    private_store.workdir.rename(moved)
    assert served(moved, private_store) == expected


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with redis_server.running(tmp_path) as address:
        monkeypatch.setenv("LONGREC_REDIS", address)
        monkeypatch.setenv("LONGREC_FEATURE_OVERLAY", "redis")
        yield address


def keys_of(address: str) -> dict[bytes, dict[bytes, bytes]]:
    """Return the content of a Redis server."""
    host, port = address.split(":")
    client = Redis(host, int(port))
    return {key: client.hgetall(key) for key in client.keys("*")}


def test_a_copy_never_writes_the_keys_of_its_original_in_redis(
    store: PublishedStore, tmp_path: Path, redis: str
) -> None:
    original = tmp_path / "original"
    copy = tmp_path / "copy"
    publish(store.root / "features", original, REPO)
    events = live(np.random.default_rng(0), 40, users_of(store))
    Pusher(original).push(events)
    shutil.copytree(original, copy, symlinks=True)
    before = keys_of(redis)
    expected = served(original, store)
    with pytest.raises(StoreError, match=r"is a copy .* longrec push"):
        Pusher(copy).push(events)
    assert give_own_keys(copy)
    assert not give_own_keys(copy)
    assert served(copy, store) == expected
    Pusher(copy).push(live(np.random.default_rng(1), 40, users_of(store)))
    for _ in range(3):  # each removes the keys of the version before the last one
        publish(store.root / "features", copy, REPO)
    found = keys_of(redis)
    assert {key: found[key] for key in before} == before
    assert served(original, store) == expected


def test_a_publish_says_that_unreadable_pushed_events_are_lost(
    private_store: PublishedStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_version((private_store.workdir / "features" / "manifest.json").resolve(), 9)
    publish(private_store.root / "features", private_store.workdir, REPO)
    assert "pushed events are not carried over" in caplog.text


def test_feature_tables_of_another_format_version_are_not_published(
    store: PublishedStore,
    tmp_path: Path,
) -> None:
    tables = tmp_path / "features"
    shutil.copytree(store.root / "features", tables)
    set_version(tables / "manifest.json", 0)
    message = r"manifest.json has another format version; found 0; expected 1\. Build the features"
    with pytest.raises(Exception, match=message):
        publish(tables, tmp_path / "workdir", REPO)
