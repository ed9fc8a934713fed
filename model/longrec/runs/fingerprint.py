"""Fingerprints of the code of the pipeline's steps: the files of longrec that a step can reach by
imports, and the packages they use.

Kubeflow's caches know the text of a component and its inputs, but not the library that it calls. So
each step gets the fingerprint of
its code as an input: an edit re-runs the steps that can reach it and no other.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

STEPS = {
    "profile_events": ("longrec.data.quality.checks",),
    "check_events": ("longrec.data.quality.checks",),
    "build_features": ("longrec.data.features",),
    "join_features": ("longrec.data.features",),
    "publish": ("longrec.data.store.publish",),
    "retrieve": ("longrec.data.store.retrieve",),
    "profile_histories": ("longrec.data.quality.checks",),
    "join_histories": ("longrec.data.store.retrieve",),
    "check_histories": ("longrec.data.quality.checks",),
    "train": ("longrec.training.train",),
    "evaluate": ("longrec.evaluation.evaluate",),
    "package": ("longrec.release.packaging", "longrec.scoring.scorer"),
    "study": ("longrec.study.runner",),
}
"""Modules that the component of a step calls."""
ROOMS = {
    "publish": ("feature_repo",),
    "retrieve": ("feature_repo",),
    "package": ("feature_repo", "bento", "model", "pyproject.toml"),
}
"""What a step uses of the checkout, beside the library."""
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "great_expectations": "great-expectations",
}
"""Packages whose distribution has another name."""
SHARED = ("longrec.data.location", "longrec.reporting.summary")
"""Modules of every step."""


def of_steps(repo_dir: str | Path) -> dict[str, str]:
    """Returns the fingerprint of each step's code by the name of its component.

    Args:
        repo_dir: the feature repository; the other rooms are beside it.
    """
    root, known = Path(repo_dir).resolve().parent, dict[str, tuple[str, frozenset[str]]]()
    found = {}
    for step, modules in STEPS.items():
        digest, packages = hashlib.sha256(), set[str]()
        for name in _reached((*modules, *SHARED), known):
            content, imports = known[name]
            digest.update(f"{name} {content}\n".encode())
            packages |= {each.partition(".")[0] for each in imports}
        for line in (*_versions(packages), *_room_files(root, step)):
            digest.update(f"{line}\n".encode())
        found[step] = digest.hexdigest()[:16]
    return found


def _reached(modules: tuple[str, ...], known: dict[str, tuple[str, frozenset[str]]]) -> list[str]:
    """Returns all modules of longrec that importing `modules` can load, sorted; `known` gets their
    content and imports.
    """
    waiting, seen = list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if name in seen or path is None:
            continue
        seen.add(name)
        if name not in known:
            source = path.read_bytes()
            known[name] = hashlib.sha256(source).hexdigest(), frozenset(_imports(ast.parse(source)))
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        waiting += [each for each in (*known[name][1], *parents) if each.startswith("longrec")]
    return sorted(seen)


def _path_of(name: str) -> Path | None:
    """Returns the file of a module of longrec, None where the name is that of something inside a
    module.
    """
    base = Path(__file__).resolve().parent.joinpath(*name.split(".")[1:])
    return next(
        (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None
    )


def _imports(node: ast.AST) -> Iterator[str]:
    """Yields the full names that a module imports, anywhere in it but under `if TYPE_CHECKING`."""
    if (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _versions(packages: set[str]) -> Iterator[str]:
    for name in sorted(packages - {"longrec"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(DISTRIBUTIONS.get(name, name))}"


def _room_files(root: Path, step: str) -> Iterator[str]:
    for room in ROOMS.get(step, ()):
        place = root / room
        paths = sorted(place.rglob("*")) if place.is_dir() else [place] if place.is_file() else []
        for path in paths:
            made = "__pycache__" in path.parts or path.relative_to(root).parts[:2] in (
                ("feature_repo", "data"),
                ("bento", "wheels"),
            )
            if path.is_file() and not made:
                yield f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
