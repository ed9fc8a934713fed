"""Histories with validation requests, which the tests of training settings share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.longrec import small_histories


@pytest.fixture(scope="package")
def validated_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small histories with validation requests; tests must not change them."""
    folder = tmp_path_factory.mktemp("validated")
    return small_histories.write(folder / "histories", validation_fraction=0.2)
