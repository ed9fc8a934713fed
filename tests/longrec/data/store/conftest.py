"""One published world for all tests of the feature store that only look."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from longrec.data.store.publish import publish
from tests.longrec.data.store.worlds import REPO, World, make


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """A published home that the test may change."""
    publish(world.root / "features", tmp_path / "home", REPO)
    for name in ("data", "features", "histories"):
        (tmp_path / name).symlink_to(world.root / name)
    return dataclasses.replace(world, root=tmp_path)
