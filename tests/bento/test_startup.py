"""A service that cannot start says why in one line, and exits with code 1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, ServedWorld

ADD_MODEL = """
import bentoml, shutil, sys
with bentoml.models.create('longrec-ranker:damaged') as model:
    shutil.copytree(sys.argv[1], model.path_of('bundle'))
"""


def serve(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `bentoml serve` until it ends."""
    command = [sys.executable, "-m", "bentoml", "serve", "bento.service:Ranker", "--port", "0"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def error_of(environment: dict[str, str]) -> str:
    """Return the only line that a failed start prints."""
    done = serve(environment)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(("nanobind", " - "))]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stdout, done.stderr
    return errors[0]


def test_a_missing_model(served_world: ServedWorld, tmp_path: Path) -> None:
    error = error_of({**served_world.environment, "BENTOML_HOME": str(tmp_path)})
    assert "no model longrec-ranker:latest" in error
    assert "longrec run" in error
    other = {**served_world.environment, "LONGREC_MODEL": "longrec-ranker:other"}
    assert "no model longrec-ranker:other" in error_of(other)


def test_a_missing_feature_store(served_world: ServedWorld, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    error = error_of({**served_world.environment, "LONGREC_HOME": missing})
    assert "no feature store" in error
    assert "nothing" in error


def test_a_feature_store_of_another_schema(served_world: ServedWorld, tmp_path: Path) -> None:
    workdir = tmp_path / "home"
    version = workdir / "store" / "v1"
    (version / "features").mkdir(parents=True)
    (version / "feast").mkdir()
    (version / "feast" / "feature_store.yaml").write_text("project: longrec\n")
    published = served_world.workdir / "features"
    shutil.copyfile(published / "manifest.json", version / "features" / "manifest.json")
    schema = json.loads((published / "schema.json").read_text())
    (schema.get("schema") or schema)["user"][0]["name"] = "country"
    (version / "features" / "schema.json").write_text(json.dumps(schema))
    (workdir / "features").symlink_to(version / "features")
    error = error_of({**served_world.environment, "LONGREC_HOME": str(workdir)})
    assert "another schema" in error
    assert "user.region: missing" in error
    assert "user.country: unexpected" in error


@pytest.mark.slow
def test_damaged_weights(served_world: ServedWorld, tmp_path: Path) -> None:
    environment = {**served_world.environment, "BENTOML_HOME": str(tmp_path)}
    bundle = str(served_world.path / "bundle")
    subprocess.run(
        [sys.executable, "-c", ADD_MODEL, bundle],
        env=environment,
        check=True,
    )
    weights = next(tmp_path.rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "weights_sha256" in error_of(environment)


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_not_restarted_for_ever(served_world: ServedWorld) -> None:
    done = serve({**served_world.environment, "LONGREC_THREADS": "0"})
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("Error: longrec cannot serve: a forward pass needs a thread")


@pytest.mark.slow
def test_a_missing_gpu(served_world: ServedWorld) -> None:
    no_gpu = {"LONGREC_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    assert "no GPU is available" in error_of({**served_world.environment, **no_gpu})
