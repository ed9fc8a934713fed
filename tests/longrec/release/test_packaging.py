"""Test packaging: a bento is packaged once, and a refused one leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longrec.errors import GateRefused
from longrec.release import packaging
from longrec.release.bento_server import PackagingError
from longrec.release.parity import ParityReport
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


@pytest.mark.slow
def test_a_bento_that_is_gone_from_the_store_is_restored(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    packaging.restore_bento(TAG, packaged.report.path, FEATURE_REPO)
    restored = dataclasses.replace(packaged, store=tmp_path / "store")
    assert restored.listed() == ([TAG], [TAG])
