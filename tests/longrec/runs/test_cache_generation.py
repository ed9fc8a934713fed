"""A cached result whose artifact is gone makes the next run compute everything again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longrec.errors import DataError
from longrec.runs.cache_generation import (
    GENERATION_FILE,
    ArtifactGoneError,
    checked_artifacts,
    generation,
    keys_of_steps,
    start_generation,
)
from longrec.runs.code_fingerprint import of_steps

ROOT = Path(__file__).parents[3]


def inputs(*uris: object) -> dict[str, Any]:
    """Return the inputs of a step that reads artifacts, as kfp passes them."""
    artifacts = [{"name": "", "uri": str(uri), "metadata": {}} for uri in uris]
    return {"inputs": {"artifacts": {"features": {"artifacts": artifacts}}}}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Return a folder with a manifest and a part."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "part-0.parquet").write_text("rows")
    return folder


def test_the_first_generation_leaves_the_keys_as_they_are(tmp_path: Path) -> None:
    repo = ROOT / "feature_repo"
    assert keys_of_steps(repo, tmp_path) == of_steps(repo)
    name = start_generation(tmp_path)
    keys = keys_of_steps(repo, tmp_path)
    assert all(key.endswith(f"-{name}") for key in keys.values())
    assert start_generation(tmp_path) != name


def test_artifacts_that_are_there_start_no_generation(artifact: Path, tmp_path: Path) -> None:
    with checked_artifacts(inputs(artifact, artifact / "manifest.json"), tmp_path):
        pass
    assert generation(tmp_path) == ""


@pytest.mark.parametrize("remains", ["nothing", "an empty folder"])
def test_a_deleted_artifact_is_found_before_the_step_and_both_remedies_are_named(
    remains: str, artifact: Path, tmp_path: Path
) -> None:
    shutil.rmtree(artifact)
    if remains == "an empty folder":
        artifact.mkdir()
    message = (
        r"is gone, but the cache still names it; found .* at .*/artifact\. "
        r"Start the run again: it takes nothing from the cache now\. .* lifecycle rule .*"
        r"platform\.steps\.all\.cache=false"
    )
    checked = checked_artifacts(inputs(artifact), tmp_path)
    with pytest.raises(ArtifactGoneError, match=message), checked:
        raise AssertionError("the step must not begin")
    assert generation(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "part-0.parquet"])
def test_an_error_about_a_deleted_file_of_an_artifact_is_told_so(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactGoneError), checked_artifacts(inputs(artifact), tmp_path):
        raise DataError(f"{artifact}/{name} is missing or was changed", fix="Build it again.")
    assert generation(tmp_path)


def test_other_errors_stay_as_they_are(artifact: Path, tmp_path: Path) -> None:
    other = f"{artifact}/part-0.parquet is damaged; the report is at {tmp_path}/gone.html"
    with pytest.raises(DataError, match="is damaged"), checked_artifacts(inputs(artifact), ""):
        raise DataError(other)
    assert generation(tmp_path) == ""


@pytest.mark.parametrize("scheme", ["minio", "s3", "gs"])
def test_an_address_in_a_store_is_looked_up_where_the_launcher_puts_it(
    scheme: str, tmp_path: Path
) -> None:
    uri = f"{scheme}://bucket/no-such/{tmp_path.name}"
    checked = checked_artifacts(inputs(uri), tmp_path)
    with pytest.raises(ArtifactGoneError, match=re.escape(uri)), checked:
        pass


def test_without_a_work_directory_the_setting_is_the_remedy(tmp_path: Path) -> None:
    for workdir in ("", tmp_path / "absent"):
        message = "Start the run again with --set platform.steps.all.cache=false"
        checked = checked_artifacts(inputs(tmp_path / "gone"), workdir)
        with pytest.raises(ArtifactGoneError, match=message), checked:
            pass


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / GENERATION_FILE).write_text("{")
    with pytest.raises(DataError, match=GENERATION_FILE):
        generation(tmp_path)
    (tmp_path / GENERATION_FILE).write_text(json.dumps({"generation": "a1"}))
    assert generation(tmp_path) == "a1"


def test_a_step_whose_artifact_a_lifecycle_rule_deleted_tells_it_and_starts_a_generation(
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "home"
    workdir.mkdir()
    text = json.dumps(inputs(tmp_path / "gone") | {"outputs": {}})
    command = [sys.executable, "-m", "longrec.step", "kfp.dsl.executor_main"]
    environment = {**os.environ, "LONGREC_HOME": str(workdir), "LONGREC_RUN": "nightly"}
    done = subprocess.run(
        [*command, "--executor_input", text, "--function_to_execute", "publish"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 1
    assert "it takes nothing from the cache now" in done.stderr
    assert generation(workdir)
    (record,) = (workdir / "runs" / "nightly" / "steps").glob("*-publish-*.json")
    assert "the cache still names it" in json.loads(record.read_text())["error"]
