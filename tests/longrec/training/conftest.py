"""Histories that the training tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.longrec import small_histories


@pytest.fixture(scope="package")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small histories; tests must not change them."""
    folder = tmp_path_factory.mktemp("small")
    return small_histories.write(folder / "histories")
