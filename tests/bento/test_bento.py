"""An exported bento on an empty machine: no store, no checkout, and the wheel of longrec."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from longrec.release import registry
from longrec.release.bento_server import post_rank, serve_bento
from tests.conftest import ROOT, Packaged, ServedWorld

pytestmark = pytest.mark.slow
FIRST_MS = 1_710_000_000_000
STEP_MS = 40_000_000
REQUESTS = [
    {
        "user_id": user,
        "candidates": list(range(40)),
        "request_time": FIRST_MS + user * STEP_MS,
        "length": length,
    }
    for user in range(6)
    for length in (0, 9, 48)
]
COPY_AS_RUN_2 = """
import bentoml, shutil
old = bentoml.models.get('longrec-ranker:run-1')
with bentoml.models.create('longrec-ranker:run-2') as model:
    shutil.copytree(old.path, model.path_of('bundle'))
"""


def answers(host: str, port: int) -> list[dict]:
    return [post_rank(host, port, body) for body in REQUESTS]


def install_wheel(wheel: Path, target: Path) -> None:
    """Install a wheel into a folder, without the network."""
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)


def imported_longrec() -> str:
    """Return the file of longrec that a new process imports."""
    done = subprocess.run(
        [sys.executable, "-c", "import longrec; print(longrec.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_way_to_serve_a_bento_gives_the_same_scores_bit_for_bit(
    packaged: Packaged,
    served_world: ServedWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir = served_world.workdir
    # The first packaged model became the champion, later ones did not.
    decisions = registry.read_decisions(workdir)
    assert [decision.action for decision in decisions] == ["adopt"]
    with serve_bento("longrec-ranker:run-1", workdir=workdir, store=packaged.store) as address:
        stored = answers(*address)
    assert {answer["model_version"] for answer in stored} == {"run-1"}
    assert len({answer["scores"]["label"][0] for answer in stored}) > 6
    with serve_bento(
        "bento.service:Ranker",
        workdir=workdir,
        store=packaged.store,
        folder=ROOT,
    ) as address:
        assert answers(*address) == stored

    unpacked = tmp_path / "elsewhere" / "bento"
    library = tmp_path / "library"
    home = tmp_path / "nobody"
    home.mkdir()
    shutil.copytree(packaged.report.path, unpacked)
    install_wheel(unpacked / "env" / "python" / "wheels" / packaged.report.wheel, library)
    monkeypatch.setenv("PYTHONPATH", str(library))
    is_installed = imported_longrec().startswith(str(library))
    assert is_installed, "the sources of the checkout are imported: nothing was tested"
    for name in ("LONGREC_HOME", "LONGREC_FEATURE_REPO", "LONGREC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with serve_bento(unpacked, workdir=workdir, variables={"HOME": str(home)}) as (host, port):
        assert answers(host, port) == stored
        assert httpx.get(f"http://{host}:{port}/readyz").status_code == 200


def test_a_bento_serves_its_own_model_although_the_store_has_a_later_one(
    packaged: Packaged,
    served_world: ServedWorld,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(packaged.store, store)
    environment = {
        **os.environ,
        "BENTOML_HOME": str(store),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    subprocess.run(
        [sys.executable, "-c", COPY_AS_RUN_2],
        env=environment,
        check=True,
    )
    assert (store / "models/longrec-ranker/latest").read_text() == "run-2"
    with serve_bento(
        "longrec-ranker:run-1",
        workdir=served_world.workdir,
        store=store,
    ) as (host, port):
        assert post_rank(host, port, REQUESTS[0])["model_version"] == "run-1"


def test_a_bento_without_a_feature_store_says_so_in_one_line(
    packaged: Packaged,
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("LONGREC_HOME", None)
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", packaged.report.path, "--port", "0"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "LONGREC_HOME is not set" in done.stderr.splitlines()[-1]
