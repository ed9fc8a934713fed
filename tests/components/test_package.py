"""The package step, called as a function on real artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kfp import dsl

from components.package import package
from tests.conftest import ROOT, ServedWorld


def test_the_step_declares_what_the_pipeline_gives_and_reads() -> None:
    specification = package.component_spec
    assert set(specification.inputs) == {
        "bundle",
        "evaluation",
        "histories",
        "code_key",
        "gate",
        "version",
        "workdir",
        "repo_dir",
        "seed",
    }
    assert set(specification.outputs) == {"bento", "parity", "packaged", "metrics"}


@pytest.mark.slow
def test_the_step_leaves_bento_verdict_and_metrics(
    served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    world, out = served_world.path, tmp_path / "out"
    out.mkdir()
    outputs = {
        "bento": dsl.Artifact(uri=str(out / "bento")),
        "parity": dsl.Artifact(uri=str(out / "parity")),
        "packaged": dsl.Artifact(uri=str(out / "packaged")),
        "metrics": dsl.Metrics(uri=str(out / "metrics")),
    }
    package.python_func(
        bundle=dsl.Model(uri=str(world / "bundle")),
        evaluation=dsl.Artifact(uri=str(world / "evaluation")),
        histories=dsl.Dataset(uri=str(world / "histories")),
        gate={"max_parity_error": 1e-5},
        code_key="0c0de0f",
        version="",
        workdir=str(world / "home"),
        repo_dir=str(ROOT / "feature_repo"),
        seed=1,
        **outputs,
    )
    version = f"{json.loads((world / 'bundle' / 'bundle.json').read_text())['version'][:12]}-0c0de0"
    assert (out / "bento" / "bento.yaml").is_file()
    assert (out / "bento" / "models" / "longrec-ranker" / version).is_dir()
    facts = json.loads((out / "packaged").read_text())
    assert facts["tag"] == outputs["bento"].metadata["tag"] == f"longrec-ranker:{version}"
    assert facts["path"] == str(out / "bento")
    assert json.loads((out / "parity").read_text()) == {**facts["parity"], "problems": []}
    assert facts["parity"]["bound"] == 1e-5
    assert json.loads((out / "metrics").read_text())["parity.http_error"] <= 1e-5
