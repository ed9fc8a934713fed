"""The fingerprint step, the first of a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.fingerprint import fingerprint
from longrec.data.importers.synthetic import synthesize
from longrec.runs.cache_generation import start_generation
from longrec.runs.workdir import WorkdirError
from tests.conftest import ROOT


def keys(dataset: Path, workdir: Path) -> tuple[str, ...]:
    """Call the step; return its keys."""
    found: tuple[str, ...] = fingerprint.python_func(
        data_uri=str(dataset), workdir=str(workdir), repo_dir=str(ROOT / "feature_repo")
    )
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset") / "data"
    synthesize(path, num_users=2, events_per_user=8)
    return path


def test_a_volume_that_no_step_can_write_ends_the_run_at_once(
    dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match="the work directory cannot be written at"):
        keys(dataset, tmp_path / "file" / "home")


def test_a_new_generation_changes_the_keys_of_all_steps_and_no_other(
    dataset: Path, tmp_path: Path
) -> None:
    before = keys(dataset, tmp_path)
    assert keys(dataset, tmp_path) == before
    start_generation(tmp_path)
    after = keys(dataset, tmp_path)
    assert after[:3] == before[:3], "the dataset, the one before it, the champion"
    assert not set(after[3:]) & set(before[3:])
