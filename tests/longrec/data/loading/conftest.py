"""Encoded histories for the tests of loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.training.encoded_cache import fit_encoder
from tests.longrec import small_histories


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of small histories."""
    return small_histories.write(tmp_path_factory.mktemp("loading") / "histories")


@pytest.fixture(scope="session")
def encoded(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedHistories:
    histories = Histories.open(directory)
    cache = tmp_path_factory.mktemp("cache") / "encoded"
    return EncodedHistories.encode(histories, fit_encoder(histories), cache)
