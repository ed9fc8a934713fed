"""Fixtures of this folder: the wheel of this checkout, installed by pip, and stores of models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longrec.release.model_store import MODEL_NAME
from longrec.release.wheel import build_wheel
from tests.conftest import ROOT, VERSION, ServedWorld
from tests.longrec.release.staging import install


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    before = sorted(ROOT.iterdir())
    wheel = build_wheel(ROOT, tmp_path_factory.mktemp("wheel") / "wheels")
    assert sorted(ROOT.iterdir()) == before, "building left something in the checkout"
    return wheel


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    install(wheel, folder)
    return folder


@pytest.fixture(scope="session")
def version_store(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML store with a model and its copies v1 and v2, for tests that only read it."""
    path = tmp_path_factory.mktemp("store") / "bentoml"
    source = served_world.store / "models" / MODEL_NAME / VERSION
    for version in (VERSION, "v1", "v2"):
        shutil.copytree(source, path / "models" / MODEL_NAME / version)
    return path


@pytest.fixture
def undecided(served_world: ServedWorld, tmp_path: Path) -> Path:
    """A work directory with published features and without a decision about models."""
    (tmp_path / "features").symlink_to((served_world.workdir / "features").resolve())
    return tmp_path
