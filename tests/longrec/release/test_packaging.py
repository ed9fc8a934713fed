"""Test packaging: a bento is packaged once, and a refused one leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longrec.config import DataConfig
from longrec.data.features import build_features
from longrec.data.importers.synthetic import synthesize
from longrec.data.store.publish import publish
from longrec.data.upkeep.forget_list import add_users
from longrec.errors import GateRefused
from longrec.release import packaging
from longrec.release.bento_server import PackagingError
from longrec.release.packaging import RegisterReport
from longrec.release.parity import ParityReport, check_parity
from longrec.release.registry import read_registry, reference_dir
from tests.conftest import LENGTH, Packaged, ServedWorld, make_world
from tests.longrec.release.staging import FEATURE_REPO

TAG = "longrec-ranker:run-1"
PASSED = ParityReport(
    num_requests=3,
    num_scores=6,
    longest_history=9,
    scorer_error=0.0,
    http_error=1e-7,
    bound=1e-4,
    problems=(),
    passed=True,
    ready_seconds=1.0,
    answer_ms=2.0,
)


def test_equal_scores_pass() -> None:
    packaging._require_parity(PASSED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"http_error": 2e-4}, r"HTTP 0\.0002"),
        ({"scorer_error": float("inf")}, "Scorer inf"),
        ({"problems": ("user 5: bad",)}, "user 5: bad"),
    ],
)
def test_different_scores_are_refused(change: dict[str, Any], message: str) -> None:
    failed = dataclasses.replace(PASSED, passed=False, **change)
    with pytest.raises(GateRefused, match=message):
        packaging._require_parity(failed)


def test_packaging_imports_no_bentoml() -> None:
    code = (
        "import sys, longrec.release.packaging\n"
        "assert not {'bentoml', 'torch', 'feast'} & sys.modules.keys()"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ},
    )


@pytest.mark.slow
def test_a_bento_is_packaged_with_equal_scores(packaged: Packaged) -> None:
    report = packaged.report
    parity = report.parity
    assert report.tag == TAG
    assert parity.passed
    assert not parity.problems
    assert max(parity.scorer_error, parity.http_error) <= 2e-6, "far below the bound"
    assert parity.longest_history == LENGTH
    assert parity.num_requests >= 24
    assert json.loads(packaged.parity_path.read_text())["passed"] is True
    assert packaged.listed() == ([TAG], [TAG])


@pytest.mark.slow
def test_a_version_is_packaged_once(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(packaged.store))
    with pytest.raises(PackagingError, match="a version is never used twice"):
        packaged.again(
            served_world,
            tmp_path / "bento",
            workdir=served_world.workdir,
        )
    assert not (tmp_path / "bento").exists()
    assert packaged.listed() == ([TAG], [TAG])


@pytest.mark.slow
def test_nothing_is_left_of_a_bento_with_other_scores(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same schema, but other events of the same users.
    other = make_world(tmp_path / "other", seed=9)
    out_dir = tmp_path / "out"
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    with pytest.raises(GateRefused, match=r"the service used .* events, expected"):
        packaged.again(served_world, out_dir / "bento", workdir=other.workdir)
    parity = json.loads((out_dir / "parity.json").read_text())
    assert not parity["passed"]
    assert parity["http_error"] > 1e-3
    assert parity["scorer_error"] < 1e-5
    assert sorted(path.name for path in out_dir.iterdir()) == ["parity.json"]
    for kind in ("models", "bentos"):
        assert not list((tmp_path / "store").glob(f"{kind}/longrec-ranker/*"))


@pytest.fixture
def new_workdir(served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a work directory with the published features and an empty model store."""
    workdir = tmp_path / "home"
    shutil.copytree(served_world.workdir / "store", workdir / "store", symlinks=True)
    for link in ("features", "feast"):
        (workdir / link).symlink_to(f"store/current/{link}")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    return workdir


def make_known(packaged: Packaged, world: ServedWorld, workdir: Path) -> RegisterReport:
    return packaging.register(
        packaged.report.path, world.path / "evaluation", workdir=workdir, repo_dir=FEATURE_REPO
    )


@pytest.mark.slow
def test_a_packaged_bento_is_made_known_to_a_new_work_directory(
    packaged: Packaged, served_world: ServedWorld, new_workdir: Path, tmp_path: Path
) -> None:
    report = make_known(packaged, served_world, new_workdir)
    assert report == RegisterReport(TAG, was_stored=False, was_adopted=True)
    assert dataclasses.replace(packaged, store=tmp_path / "store").listed() == ([TAG], [TAG])
    assert read_registry(new_workdir).champion == "run-1"
    reference = reference_dir(new_workdir, "run-1") / "predictions.parquet"
    evaluation = served_world.path / "evaluation" / "predictions.parquet"
    assert reference.read_bytes() == evaluation.read_bytes()
    again = make_known(packaged, served_world, new_workdir)
    assert again == RegisterReport(TAG, was_stored=True, was_adopted=False)


@pytest.mark.slow
def test_a_model_that_is_gone_from_the_store_is_stored_again(
    packaged: Packaged, served_world: ServedWorld, new_workdir: Path, tmp_path: Path
) -> None:
    make_known(packaged, served_world, new_workdir)
    shutil.rmtree(tmp_path / "store" / "models" / "longrec-ranker" / "run-1")
    assert not make_known(packaged, served_world, new_workdir).was_stored
    assert dataclasses.replace(packaged, store=tmp_path / "store").listed() == ([TAG], [TAG])


@pytest.mark.slow
def test_a_forgotten_user_does_not_come_back_with_the_reference(
    packaged: Packaged, served_world: ServedWorld, new_workdir: Path
) -> None:
    evaluation = pq.read_table(served_world.path / "evaluation" / "predictions.parquet")
    user = evaluation.column("user_id")[0].as_py()
    add_users(new_workdir, [user])
    make_known(packaged, served_world, new_workdir)
    reference = pq.read_table(reference_dir(new_workdir, "run-1") / "predictions.parquet")
    assert user not in reference.column("user_id").to_pylist()
    assert 0 < reference.num_rows < evaluation.num_rows


@pytest.mark.slow
def test_a_refresh_beside_a_training_does_not_change_the_scores_that_are_compared(
    packaged: Packaged, served_world: ServedWorld, new_workdir: Path, tmp_path: Path
) -> None:
    synthesize(tmp_path / "new-day", num_users=30, events_per_user=64, num_items=120, seed=9)
    build_features(tmp_path / "new-day", tmp_path / "tables", DataConfig())
    publish(tmp_path / "tables", new_workdir, FEATURE_REPO)
    report = check_parity(
        served_world.path / "bundle",
        served_world.path / "histories",
        packaged.report.path,
        workdir=new_workdir,
        bound=2e-6,
        seed=0,
    )
    assert report.passed, report.problems
