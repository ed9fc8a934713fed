"""Fixtures of this folder: the wheel of this checkout and its installation by pip."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.release.wheel import build_wheel
from tests.conftest import ROOT
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
