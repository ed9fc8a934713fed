"""Staged and packaged bentos of the served test dataset, shared by the tests of this folder."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution
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
    force: bool = False,
) -> StagedBento:
    """Stage the bundle as version `Run 1`."""
    return stage(
        world.path / "bundle",
        evaluation_dir or world.path / "evaluation",
        out_dir,
        histories_dir=world.path / "histories",
        repo_dir=repo_dir,
        version="Run 1",
        force=force,
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


def install(wheel: Path, folder: Path) -> None:
    """Install a wheel into a folder with pip, without its requirements."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)


def installed_distribution(folder: Path) -> Distribution:
    """Return longrec as it is installed in a folder."""
    (distribution,) = importlib.metadata.distributions(name="longrec", path=[str(folder)])
    return distribution
