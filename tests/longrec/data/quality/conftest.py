"""A dataset and histories that pass all checks, fresh for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.longrec.data.quality.small_data import write_dataset, write_histories


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    return write_histories(tmp_path / "histories")
