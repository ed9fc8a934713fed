"""The work directory: its format version is recorded, checked, and refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longrec.data import files
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import Pusher
from longrec.data.store.versions import PublishedVersion
from longrec.data.store.workdir import check_workdir, initialize_workdir
from longrec.errors import StoreError
from tests.longrec.data.store.published_store import REPO, PublishedStore


def set_version(path: Path, version: int) -> None:
    """Write another format version into a JSON file."""
    content = json.loads(path.read_text())
    content["format_version"] = version
    path.write_text(json.dumps(content))


def test_a_publish_records_the_format_version(store: PublishedStore) -> None:
    assert files.read_json(store.workdir / "workdir.json") == {"format_version": 1}


def test_the_first_use_writes_the_file_and_later_ones_keep_it(tmp_path: Path) -> None:
    initialize_workdir(tmp_path)
    before = (tmp_path / "workdir.json").stat().st_mtime_ns
    initialize_workdir(tmp_path)
    assert (tmp_path / "workdir.json").stat().st_mtime_ns == before
    check_workdir(tmp_path)


def test_an_unknown_format_version_is_refused_by_every_user(private_store: PublishedStore) -> None:
    set_version(private_store.workdir / "workdir.json", 2)
    message = (
        r"has another format version; found 2; expected 1\. "
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
