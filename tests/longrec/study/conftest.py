"""Histories and a finished study that the tests of this package share."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.study.runner import run_study
from tests.longrec import small_histories
from tests.longrec.study.small_study import Finished, load_study


@pytest.fixture(scope="package")
def histories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small histories; tests must not change them."""
    return small_histories.write(
        tmp_path_factory.mktemp("small") / "histories",
        num_users=40,
        requests_per_user=6,
    )


@pytest.fixture(scope="package")
def finished(
    histories_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A study with all results; tests must not change them."""
    folder = tmp_path_factory.mktemp("study")
    study = load_study(folder)
    run_study(histories_dir, folder / "out", study)
    return study, folder / "out"
