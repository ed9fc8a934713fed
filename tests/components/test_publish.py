"""The publish step holds the version that its run reads, until the step finish ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from kfp import dsl

from components.publish import publish
from longrec.config import DataConfig
from longrec.data import features
from longrec.data.store.versions import PublishedVersion, is_held
from longrec.runs.outcome import conclude
from tests.conftest import ROOT
from tests.longrec.data import random_log

TOLD = {
    "pipeline": "longrec-training",
    "run_id": "",
    "job_id": "0b5d3e63",
    "data_uri": "s3://logs/dataset",
    "state": "SUCCEEDED",
    "error": None,
    "workflow": "",
}


def publish_tables(tables: Path, workdir: Path, out: Path) -> str:
    """Call the step; return the digest of the features."""
    out.mkdir(exist_ok=True)
    digest: str = publish.python_func(
        features=dsl.Dataset(uri=str(tables)),
        code_key="k",
        workdir=str(workdir),
        repo_dir=str(ROOT / "feature_repo"),
        published=dsl.Artifact(uri=str(out / "published")),
        metrics=dsl.Metrics(uri=str(out / "metrics")),
    )
    return digest


@pytest.mark.parametrize("told", ["SUCCEEDED", "FAILED", "RUNNING"])
def test_refreshes_beside_a_training_leave_it_its_features(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "home"
    monkeypatch.setenv("LONGREC_HOME", str(workdir))
    digests = {}
    for seed, run in enumerate(("training", "refresh-1", "refresh-2")):
        source = random_log.write(tmp_path / run, seed=seed)
        tables = tmp_path / f"{run}-features"
        features.build_features(source.path, tables, DataConfig())
        monkeypatch.setenv("LONGREC_RUN", run)
        digests[run] = publish_tables(tables, workdir, tmp_path / "out")
    own = PublishedVersion.open(workdir, digests["training"])
    assert own.manifest["version"] == digests["training"] != digests["refresh-2"]
    monkeypatch.setenv("LONGREC_RUN", "training")
    conclude(tmp_path / "outcome", "", {**TOLD, "state": told})
    assert not is_held(own.path), "however the run ended"
    assert is_held(PublishedVersion.open(workdir, digests["refresh-1"]).path)
