"""An exported bento on an empty machine: another folder, no store, no checkout, the wheel instead
of the sources.
"""

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
REQUESTS = [
    {
        "user_id": user,
        "candidates": list(range(40)),
        "request_time": 1_710_000_000_000 + user * 40_000_000,
        "length": length,
    }
    for user in range(6)
    for length in (0, 9, 48)
]


def answers(host: str, port: int) -> list[dict]:
    return [post_rank(host, port, body) for body in REQUESTS]


def test_every_way_to_serve_a_bento_gives_the_same_scores_bit_for_bit(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = served_world.workdir
    assert [change.action for change in registry.read_decisions(workdir)] == [
        "adopt"
    ]  # the first packaged model is the champion, no later one
    with serve_bento("longrec-ranker:run-1", workdir=workdir, store=packaged.store) as (host, port):
        stored = answers(host, port)
    assert {answer["model_version"] for answer in stored} == {"run-1"} and len(
        {answer["scores"]["label"][0] for answer in stored}
    ) > 6
    with serve_bento("bento.service:Ranker", workdir=workdir, store=packaged.store, folder=ROOT) as (
        host,
        port,
    ):
        assert answers(host, port) == stored

    unpacked, library = tmp_path / "elsewhere" / "bento", tmp_path / "library"
    shutil.copytree(packaged.report.path, unpacked)
    wheel = unpacked / "env" / "python" / "wheels" / packaged.report.wheel
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(library),
            str(wheel),
        ],
        check=True,
    )
    monkeypatch.setenv("PYTHONPATH", str(library))
    where = subprocess.run(
        [sys.executable, "-c", "import longrec; print(longrec.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(library)), (
        "the sources of the checkout are imported: nothing was tested"
    )
    for name in ("LONGREC_HOME", "LONGREC_FEATURE_REPO", "LONGREC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nobody").mkdir()
    with serve_bento(unpacked, workdir=workdir, variables={"HOME": str(tmp_path / "nobody")}) as (
        host,
        port,
    ):
        assert answers(host, port) == stored
        assert httpx.get(f"http://{host}:{port}/readyz").status_code == 200


def test_a_bento_serves_its_own_model_although_the_store_has_a_later_one(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path
) -> None:
    shutil.copytree(packaged.store, tmp_path / "store")
    script = (
        "import bentoml, shutil, sys\nold = bentoml.models.get('longrec-ranker:run-1')\n"
        "with bentoml.models.create('longrec-ranker:run-2') as model:\n    shutil.copytree(old.path, model.path_of('bundle'))\n"
    )
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path / "store"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert (tmp_path / "store/models/longrec-ranker/latest").read_text() == "run-2"
    with serve_bento(
        "longrec-ranker:run-1", workdir=served_world.workdir, store=tmp_path / "store"
    ) as (
        host,
        port,
    ):
        assert post_rank(host, port, REQUESTS[0])["model_version"] == "run-1"


def test_a_bento_without_a_feature_store_says_so_in_one_line(
    packaged: Packaged, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LONGREC_HOME"}
    environment |= {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", packaged.report.path, "--port", "0"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert "LONGREC_HOME is not set" in done.stderr.splitlines()[-1]
