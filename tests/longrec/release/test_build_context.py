"""Test the build context of a bento: its files, labels and versions, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from longrec.errors import GateRefused
from longrec.release.bento_server import PackagingError
from longrec.release.build_context import StagedBento, clean_version, project_root
from tests.conftest import LENGTH, ROOT, ServedWorld
from tests.longrec.release.staging import (
    FEATURE_REPO,
    copy_with_changes,
    files_below,
    stage_bento,
)


@pytest.fixture(scope="module")
def staged(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> StagedBento:
    return stage_bento(served_world, tmp_path_factory.mktemp("staged") / "context")


@pytest.mark.parametrize(
    ("version", "clean"),
    [
        ("20260102-030405-quickstart", "20260102-030405-quickstart"),
        ("Nightly 1/2", "nightly-1-2"),
        ("-a-", "a"),
        ("a" * 99, "a" * 63),
        ("1.0_b", "1.0_b"),
    ],
)
def test_a_version_is_written_as_a_tag_accepts_it(version: str, clean: str) -> None:
    assert clean_version(version) == clean


@pytest.mark.parametrize("version", ["", "///", "latest", "Latest"])
def test_an_unusable_version_is_refused(version: str) -> None:
    with pytest.raises(PackagingError, match="a bento needs a version"):
        clean_version(version)


def test_a_build_context_holds_everything_except_the_model(staged: StagedBento) -> None:
    features = {
        f"feature_repo/{path}"
        for path in files_below(FEATURE_REPO)
        if path.endswith((".py", ".md", ".yaml"))
    }
    service = {f"bento/{path.name}" for path in (ROOT / "bento").glob("*.py")}
    service.remove("bento/build.py")
    assert files_below(Path(staged.path)) == {
        "bentofile.yaml",
        "release.json",
        "MODEL_CARD.md",
        "requirements.txt",
        f"wheels/{staged.wheel}",
        *service,
        *features,
    }
    assert "bento/service.py" in service
    assert {"feature_repo/definitions.py", "feature_repo/feature_store.yaml"} <= features


def test_the_build_options_name_requirements_and_wheel(staged: StagedBento) -> None:
    options = json.loads((Path(staged.path) / "bentofile.yaml").read_text())
    assert options["python"] == {
        "requirements_txt": "requirements.txt",
        "wheels": [f"wheels/{staged.wheel}"],
        "lock_packages": False,
    }


def test_the_release_names_the_model(staged: StagedBento) -> None:
    release = json.loads((Path(staged.path) / "release.json").read_text())
    assert release["model"] == staged.tag == "longrec-ranker:run-1"


def test_labels_name_data_schema_bundle_and_metrics(
    staged: StagedBento, served_world: ServedWorld
) -> None:
    labels = staged.labels
    bundle = read_json(served_world.path / "bundle" / "bundle.json")
    results = read_json(served_world.path / "evaluation" / "metrics.json")
    facts = read_json(served_world.path / "dataset" / "dataset.json")["facts"]
    assert labels["schema"] == bundle["schema_fingerprint"]
    assert labels["bundle"] == bundle["version"]
    assert labels["data"] == facts["content_hash"][:16]
    assert labels["dataset"] == "synthetic"
    assert labels["served_length"] == str(LENGTH)
    auc = results["metrics"]["label"]["auc"]
    assert float(labels["label.auc"]) == pytest.approx(auc, rel=1e-4)
    assert all(isinstance(value, str) and value for value in labels.values())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_model_that_failed_its_gate_is_not_staged(
    served_world: ServedWorld, tmp_path: Path
) -> None:
    failed = copy_with_changes(
        served_world.path / "evaluation",
        tmp_path / "evaluation",
        lambda results: results.update(gate={"passed": False, "reasons": ["The AUC is low."]}),
    )
    with pytest.raises(GateRefused, match=r"The AUC is low. .*longrec package --force"):
        stage_bento(served_world, tmp_path / "context", failed)
    assert not (tmp_path / "context").exists()


def test_a_model_staged_by_force_says_so_in_labels_and_card(
    staged: StagedBento, served_world: ServedWorld, tmp_path: Path
) -> None:
    failed = copy_with_changes(
        served_world.path / "evaluation",
        tmp_path / "evaluation",
        lambda results: results.update(gate={"passed": False, "reasons": ["The AUC is low."]}),
    )
    forced = stage_bento(served_world, tmp_path / "context", failed, force=True)
    assert forced.labels["gate"] == "refused-packaged-by-force"
    assert staged.labels["gate"] == "passed"
    card = (tmp_path / "context" / "MODEL_CARD.md").read_text()
    assert card.startswith("**This model failed its gate and was packaged by force.**")
    assert "packaged by force" not in (Path(staged.path) / "MODEL_CARD.md").read_text()


def test_the_evaluation_of_another_bundle_is_refused(
    served_world: ServedWorld, tmp_path: Path
) -> None:
    other = copy_with_changes(
        served_world.path / "evaluation",
        tmp_path / "evaluation",
        lambda results: results["bundle"].update(version="0" * 16),
    )
    with pytest.raises(PackagingError, match="another bundle"):
        stage_bento(served_world, tmp_path / "context", other)


def test_a_project_without_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_repo").mkdir()
    message = r"not a project folder of longrec; found no bento/service\.py"
    with pytest.raises(PackagingError, match=message):
        project_root(tmp_path / "feature_repo")


STAGE_SCRIPT = """\
import json, sys
from pathlib import Path
import longrec
from longrec.release.build_context import stage
world, repo_dir, out_dir = map(Path, sys.argv[1:])
staged = stage(
    world / "bundle",
    world / "evaluation",
    out_dir,
    histories_dir=world / "histories",
    repo_dir=repo_dir,
    version="run-1",
)
print(json.dumps({"library": longrec.__file__, "wheel": staged.wheel}))
"""


def test_outside_a_checkout_the_installed_library_is_staged(
    served_world: ServedWorld, wheel: Path, installed: Path, tmp_path: Path
) -> None:
    repo_dir = installed / "longrec" / "_project" / "feature_repo"
    context = tmp_path / "context"
    arguments = [str(served_world.path), str(repo_dir), str(context)]
    done = subprocess.run(
        [sys.executable, "-c", STAGE_SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    output = json.loads(done.stdout)
    assert Path(output["library"]).is_relative_to(installed)
    assert output["wheel"] == wheel.name
    with zipfile.ZipFile(context / "wheels" / wheel.name) as archive:
        packed = archive.read("longrec/release/wheel.py")
    assert packed == (installed / "longrec" / "release" / "wheel.py").read_bytes()
    assert "bento/service.py" in files_below(context)
