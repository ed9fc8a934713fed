"""Write the build context of a bento: everything in it except the model.

bento/                 the service
release.json           tag of its model
wheels/                the wheel of longrec
feature_repo/          Feast declarations
requirements.txt       pinned versions
bentofile.yaml         build options
MODEL_CARD.md          description
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.data import files
from longrec.errors import GateRefused
from longrec.release.bento_server import PackagingError
from longrec.release.model_store import MODEL_NAME
from longrec.release.wheel import build_wheel, pinned_requirements

log = logging.getLogger(__name__)

LABEL_METRICS = ("auc", "gauc", "logloss", "ne", "calibration")
"""Metrics of each task that become labels of the bento."""
PASSED_LABEL = "passed"
FORCED_LABEL = "refused-packaged-by-force"
"""Label `gate` of a model that failed its gate and was packaged all the same."""
FORCED_NOTE = "**This model failed its gate and was packaged by force.** See the section Gate."
MAX_VERSION_LENGTH = 63
BUILD_SCRIPT = "bento/build.py"
REQUIRED_FILES = ("bento/service.py", BUILD_SCRIPT, "feature_repo/definitions.py")
"""Files that a project folder must hold to make a bento."""


@dataclasses.dataclass(frozen=True, slots=True)
class StagedBento:
    """A build context that was written.

    Args:
        path: folder with bentofile.yaml.
        tag: of the bento and of its model, `longrec-ranker:<version>`.
        labels: fingerprints and metrics, as texts.
        wheel: file name of the wheel of longrec.
    """

    path: str
    tag: str
    labels: Mapping[str, str]
    wheel: str


def stage(
    bundle_dir: str | Path,
    evaluation_dir: str | Path,
    out_dir: str | Path,
    *,
    histories_dir: str | Path,
    repo_dir: str | Path,
    version: str,
    force: bool = False,
) -> StagedBento:
    """Write the build context of a bento to `out_dir`; return its description.

    `out_dir` is replaced in one step.

    Args:
        bundle_dir, evaluation_dir, histories_dir: the model, its evaluation and its data.
        out_dir: the build context.
        repo_dir: feature_repo of a checkout or of an installed wheel.
        version: of the bento.
        force: whether a model that failed its gate is staged too; labels and model card say so.

    Raises:
        GateRefused: the evaluation failed its gate, without `force`.
        PackagingError: the evaluation is of another bundle, or the wheel cannot be built.
    """
    root = project_root(repo_dir)
    version = clean_version(version)
    bundle = files.read_json(Path(bundle_dir) / "bundle.json")
    evaluation = files.read_json(Path(evaluation_dir) / "metrics.json")
    manifest = files.read_json(Path(histories_dir) / "manifest.json")
    _check_evaluation(bundle, evaluation)
    if not force:
        _require_passed_gate(evaluation["gate"])
    labels = make_labels(bundle, evaluation, manifest)
    tag = f"{MODEL_NAME}:{version}"
    with files.atomic_replace(out_dir) as context:
        context.mkdir()
        wheel = build_wheel(root, context / "wheels")
        _copy_service(root / "bento", context / "bento")
        files.write_json(context / "release.json", {"model": tag, "labels": labels})
        card = (Path(evaluation_dir) / "MODEL_CARD.md").read_text(encoding="utf-8")
        card = _mark_forced(card, evaluation["gate"])
        (context / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        ignored = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(repo_dir, context / "feature_repo", ignore=ignored)
        requirements = "\n".join(pinned_requirements(wheel)) + "\n"
        (context / "requirements.txt").write_text(requirements, encoding="utf-8")
        # JSON is YAML.
        files.write_json(context / "bentofile.yaml", _build_options(labels, wheel.name))
    return StagedBento(
        str(Path(out_dir).resolve()),
        tag,
        labels,
        wheel.name,
    )


def project_root(repo_dir: str | Path) -> Path:
    """Return the project folder around a feature repository.

    Raises:
        PackagingError: a part of a bento is missing in it.
    """
    root = Path(repo_dir).resolve().parent
    for part in REQUIRED_FILES:
        if not (root / part).is_file():
            raise PackagingError(
                f"{root} is not a project folder of longrec",
                found=f"no {part}",
                fix="Give the feature_repo of a checkout or of the installed wheel.",
            )
    return root


def clean_version(version: str) -> str:
    """Return a version as a BentoML tag accepts it.

    A tag holds at most 63 of lower case letters, digits, `.`, `_` and `-`.

    Raises:
        PackagingError: nothing is left of it.
    """
    allowed = re.sub(r"[^a-z0-9._-]+", "-", version.lower())
    clean = allowed[:MAX_VERSION_LENGTH].strip("._-")
    if not clean or clean == "latest":
        raise PackagingError(
            "a bento needs a version",
            found=repr(version),
            expected="the id of a run",
        )
    if clean != version:
        log.warning("version %r becomes %r, which a BentoML tag allows", version, clean)
    return clean


def make_labels(
    bundle: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, str]:
    """Return the labels of a bento: fingerprints, served length, metrics as `<task>.<metric>`.

    Args:
        bundle: content of bundle.json.
        evaluation: content of metrics.json.
        manifest: of the histories.
    """
    dataset_hash = manifest.get("dataset_hash") or "unknown"
    labels = {
        "dataset": manifest.get("dataset"),
        "data": dataset_hash[:16],
        "schema": bundle["schema_fingerprint"],
        "bundle": bundle["version"],
        "served_length": bundle["served_length"],
        "longrec": importlib.metadata.version("longrec"),
        "gate": PASSED_LABEL if evaluation["gate"]["passed"] else FORCED_LABEL,
    }
    for task, metrics in evaluation["metrics"].items():
        for name in LABEL_METRICS:
            if metrics.get(name) is not None:
                labels[f"{task}.{name}"] = f"{metrics[name]:.5g}"
    return {name: str(value) for name, value in labels.items()}


def _check_evaluation(bundle: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    evaluated = evaluation["bundle"]["version"]
    if evaluated != bundle["version"]:
        raise PackagingError(
            "the evaluation is of another bundle",
            found=evaluated,
            expected=bundle["version"],
            fix="Evaluate this bundle.",
        )


def _require_passed_gate(gate: Mapping[str, Any]) -> None:
    if gate["passed"]:
        return
    raise GateRefused(
        "the model did not pass its gate",
        found=" ".join(gate["reasons"]).rstrip("."),
        fix="Look at the report of the evaluation. To package it anyway: longrec package --force",
    )


def _mark_forced(card: str, gate: Mapping[str, Any]) -> str:
    """Return a model card that says first if the model failed its gate."""
    return card if gate["passed"] else f"{FORCED_NOTE}\n\n{card}"


def _copy_service(source: Path, target: Path) -> None:
    """Copy the modules of the service, without the build script."""
    ignored = shutil.ignore_patterns(
        "__pycache__",
        Path(BUILD_SCRIPT).name,
        "wheels",
    )
    shutil.copytree(source, target, ignore=ignored)


def _build_options(labels: Mapping[str, str], wheel: str) -> dict[str, Any]:
    """Return the content of bentofile.yaml.

    BentoML does not lock the packages: that needs the network, and they are pinned already.
    """
    return {
        "service": "bento.service:Ranker",
        "name": MODEL_NAME,
        "labels": dict(labels),
        "description": "file:./MODEL_CARD.md",
        "include": ["bento/**", "release.json", "MODEL_CARD.md", "feature_repo/**"],
        "python": {
            "requirements_txt": "requirements.txt",
            "wheels": [f"wheels/{wheel}"],
            "lock_packages": False,
        },
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
    }
