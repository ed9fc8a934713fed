"""Staged and packaged bentos of the served test dataset, shared by the tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longrec.release.build_context import StagedBento, stage
from tests.conftest import ROOT, ServedWorld

FEATURE_REPO = ROOT / "feature_repo"


def stage_bento(
    world: ServedWorld,
    out_dir: Path,
    evaluation_dir: Path | None = None,
    repo_dir: Path = FEATURE_REPO,
) -> StagedBento:
    """Stage the bundle as version `Run 1`."""
    return stage(
        world.path / "bundle",
        evaluation_dir or world.path / "evaluation",
        out_dir,
        histories_dir=world.path / "histories",
        repo_dir=repo_dir,
        version="Run 1",
    )


def copy_with_changes(
    evaluation_dir: Path,
    out_dir: Path,
    change: Callable[[dict[str, Any]], None],
) -> Path:
    """Copy an evaluation and change its metrics.json."""
    shutil.copytree(evaluation_dir, out_dir)
    path = out_dir / "metrics.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))
    return out_dir


def files_below(folder: Path) -> set[str]:
    """Return the relative paths of all files."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix() for path in paths}
