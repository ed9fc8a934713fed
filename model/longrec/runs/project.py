"""The project folders around the library: pipelines, components, feature_repo, bento, configs.

They lie in a checkout. An installed wheel carries a copy in `longrec/_project`. The library imports
none of them at module level.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from longrec.errors import LongrecError

VARIABLE = "LONGREC_ROOT"
"""Environment variable with the folder of the project."""
PACKAGED_FOLDER = "_project"
"""Folder below the library with the project of an installed wheel; setup.py fills it."""
INSTALL_FIX = "Install everything: pip install -e '.[all]' -c constraints.txt"


class ProjectError(LongrecError):
    """A project folder or one of its packages is missing."""


def find_root() -> Path:
    """Return the folder of the project.

    `LONGREC_ROOT` comes first, then the nearest checkout above the current directory, then the
    checkout of an editable install, then the copy in the installed wheel.

    Raises:
        ProjectError: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _named_root(Path(named))
    for folder in _candidates():
        if _is_project(folder):
            return folder
    raise ProjectError(
        "no checkout of longrec was found",
        found=f"the current directory {Path.cwd()}",
        expected="a folder with pipelines/ and feature_repo/",
        fix=f"Change into your clone, or set {VARIABLE} to it.",
    )


def import_module(name: str) -> ModuleType:
    """Return a module of the project, for example `pipelines.local_runner`.

    Raises:
        ProjectError: there is no project, or a package that the module needs is not installed.
    """
    root = str(find_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ProjectError(
            f"{name} cannot be imported", found=f"no module {error.name}", fix=INSTALL_FIX
        ) from error


def find_file(path: Path) -> Path:
    """Return a path as it is, or below the project if it is relative and exists only there."""
    if path.exists() or path.is_absolute():
        return path
    try:
        in_project = find_root() / path
    except ProjectError:
        return path
    return in_project if in_project.exists() else path


def benchmarks() -> dict[str, tuple[Path, str]]:
    """Return the benchmarks by name: the script and the first line of its docstring.

    Raises:
        ProjectError: there is no checkout; a wheel holds no benchmarks.
    """
    folder = find_root() / "model" / "benchmarks"
    if not folder.is_dir():
        raise ProjectError(
            "benchmarks run in a checkout only",
            found=f"no folder {folder}",
            fix=f"Change into your clone, or set {VARIABLE} to it.",
        )
    scripts = {}
    for path in sorted(folder.glob("[a-z]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        scripts[path.stem] = (path, docstring.partition("\n")[0])
    return scripts


def _named_root(folder: Path) -> Path:
    if _is_project(folder):
        return folder.resolve()
    raise ProjectError(
        f"{VARIABLE} is not a checkout of longrec",
        found=folder,
        expected="a folder with pipelines/ and feature_repo/",
    )


def _candidates() -> Iterator[Path]:
    current = Path.cwd()
    library = Path(__file__).resolve().parents[1]
    yield current
    yield from current.parents
    yield from library.parents
    yield library / PACKAGED_FOLDER


def _is_project(folder: Path) -> bool:
    return (folder / "pipelines" / "training.py").is_file() and (folder / "feature_repo").is_dir()
