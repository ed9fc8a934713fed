"""The commands of docs/guides/drift-reports.md, run as a reader would run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longrec.config import DriftConfig
from longrec.release import registry
from longrec.release.monitoring import measure_drift
from tests.clients.page import read_sections
from tests.conftest import ROOT, VERSION, ServedWorld
from tests.longrec.release.test_monitoring import log_reference

pytest.importorskip("evidently")
pytestmark = pytest.mark.slow
SECTIONS = read_sections(ROOT / "docs" / "guides" / "drift-reports.md")


@pytest.fixture(scope="module")
def folder(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the work directory of a service that has logged requests, and new data."""
    root = tmp_path_factory.mktemp("reader")
    workdir = root / ".longrec"
    evaluation = served_world.path / "evaluation"
    shutil.copytree(served_world.workdir, workdir, symlinks=True)
    shutil.copytree(evaluation, registry.reference_dir(workdir, VERSION))
    shutil.copytree(served_world.path / "dataset", root / "data" / "new")
    rows = pq.read_table(evaluation / "predictions.parquet")
    log_reference(workdir, rows, version=VERSION)
    return root


def run(section: str, folder: Path, store: Path) -> None:
    """Run the commands of a section, with the command `longrec` of this environment."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "BENTOML_HOME": str(store),
        "LONGREC_ROOT": str(ROOT),
    }
    for command in SECTIONS[section].commands:
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def read_report(folder: Path, name: str) -> dict[str, float]:
    """Return column -> index of a report; the page exists too."""
    reports = folder / ".longrec" / "reports"
    assert "html" in (reports / f"{name}.html").read_text(encoding="utf-8")[:200]
    content = json.loads((reports / f"{name}.json").read_text(encoding="utf-8"))
    return {entry["config"]["column"]: entry["value"] for entry in content["metrics"]}


def test_the_report_on_requests_has_the_numbers_of_the_gate(
    folder: Path, served_world: ServedWorld
) -> None:
    run("Drift of live requests", folder, served_world.store)
    report = measure_drift(
        folder / ".longrec",
        evaluation_dir=served_world.path / "evaluation",
        bundle_dir=served_world.path / "bundle",
        report_html=folder / "page.html",
        config=DriftConfig(),
    )
    values = read_report(folder, "drift")
    assert values["score label"] == pytest.approx(report.largest_score_psi, rel=1e-12)
    assert report.largest_score_psi > 0


def test_the_report_on_equal_data_finds_no_drift(folder: Path, served_world: ServedWorld) -> None:
    run("Drift of a new version of the data", folder, served_world.store)
    values = read_report(folder, "data")
    assert set(values) > {"history length", "label"}
    assert set(values.values()) == {0.0}
