"""The page about integrations names extras that exist, and what is off is not imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "platform.md").read_text(encoding="utf-8")
EXTRAS = ("evidently", "lineage", "mlflow", "model-registry", "otel")
IMPORT_ALL = """
import sys
import bento.service
import longrec.cli.main
import longrec.release.catalog, longrec.release.monitoring, longrec.step
print(" ".join(sys.modules))
"""
OPTIONAL_MODULES = {
    "evidently",
    "mlflow",
    "model_registry",
    "openlineage",
    "opentelemetry.exporter.otlp.proto.http",
}
VARIABLES = ("OPENLINEAGE", "MLFLOW", "OTEL", "LONGREC_MODEL_REGISTRY")


def read_extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["optional-dependencies"]


def test_the_page_measures_each_extra_that_an_integration_needs() -> None:
    measured = re.findall(r"^\| `longrec\[all,([a-z-]+)\]`", PAGE, re.MULTILINE)
    assert sorted(measured) == list(EXTRAS)
    assert set(measured) <= set(read_extras())


def test_no_integration_is_in_the_extra_all() -> None:
    (everything,) = read_extras()["all"]
    assert not set(re.findall(r"[a-z-]+", everything)) & set(EXTRAS)


def test_an_integration_that_is_off_is_not_imported(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)
    }
    environment |= {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "LONGREC_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert "bento.service" in modules
    assert not modules & OPTIONAL_MODULES
