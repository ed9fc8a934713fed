"""Published stores: one that all tests read, and private ones that a test may change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from longrec.data.store.publish import publish
from tests.longrec.data.store.published_store import REPO, PublishedStore, make


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> PublishedStore:
    return make(tmp_path_factory.mktemp("store"))


@pytest.fixture
def private_store(store: PublishedStore, tmp_path: Path) -> PublishedStore:
    """A published work directory that the test may change."""
    publish(store.root / "features", tmp_path / "workdir", REPO)
    for name in ("data", "features", "histories"):
        (tmp_path / name).symlink_to(store.root / name)
    return dataclasses.replace(store, root=tmp_path)
