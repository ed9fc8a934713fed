"""Fingerprints of the code behind each pipeline step.

A fingerprint covers the step's file in `components`, the files of longrec that it can import, the
versions of the packages that they import, and the project folders that the step reads. Kubeflow's
cache knows the command of a step and its inputs, but not the code that it runs. So the fingerprint
is an input of each step: an edit re-runs the steps that can reach it, and no other.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from longrec.runs.steps import PipelineStep, steps_by_code_key

LIBRARY = Path(__file__).resolve().parents[1]
TEMPLATES = LIBRARY / "reporting" / "templates"
"""Files that a step reads whose modules import Jinja2."""
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "great_expectations": "great-expectations",
}
"""Import name -> name of the distribution, for packages where the two differ."""
SHARED_MODULES = ("longrec.config_file", "longrec.data.location", "longrec.reporting.summary")
"""Modules that every step calls."""
GENERATED_FOLDERS = (("feature_repo", "data"), ("bento", "wheels"))
FINGERPRINT_LENGTH = 16


class _Module:
    """One module of longrec: the hash of its source and the names that it imports."""

    def __init__(self, path: Path) -> None:
        source = path.read_bytes()
        self.sha256 = hashlib.sha256(source).hexdigest()
        self.imports = _imports_of(source)


@functools.cache
def _imports_of(source: bytes) -> frozenset[str]:
    return frozenset(_imports(ast.parse(source)))


def of_steps(repo_dir: str | Path) -> dict[str, str]:
    """Return the fingerprint of each step's code by its code key, in the order of the table.

    Args:
        repo_dir: the feature repository; the other project folders lie in the same folder.
    """
    project = Path(repo_dir).resolve().parent
    modules: dict[str, _Module] = {}
    groups = steps_by_code_key()
    return {key: _fingerprint(steps, project, modules) for key, steps in groups.items()}


def _fingerprint(steps: Sequence[PipelineStep], project: Path, modules: dict[str, _Module]) -> str:
    """Return the fingerprint of the code of steps that share one code key."""
    digest = hashlib.sha256()
    packages: set[str] = set()
    called = [name for step in steps for name in step.modules]
    for name in _reachable((*called, *SHARED_MODULES), modules):
        module = modules[name]
        digest.update(f"{name} {module.sha256}\n".encode())
        packages |= {imported.partition(".")[0] for imported in module.imports}
    templates = _files_below(TEMPLATES) if "jinja2" in packages else []
    for line in _versions(packages):
        digest.update(f"{line}\n".encode())
    for path in [*templates, *(path for step in steps for path in _files(step, project))]:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{_relative(path, project)} {content}\n".encode())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def _reachable(names: Iterable[str], modules: dict[str, _Module]) -> list[str]:
    """Return the modules of longrec that importing `names` can load, sorted; read new ones."""
    pending = list(names)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        path = _path_of(name)
        if name in seen or path is None:
            continue
        seen.add(name)
        if name not in modules:
            modules[name] = _Module(path)
        imported = [each for each in modules[name].imports if _is_of_longrec(each)]
        pending += [*imported, *_parents(name)]
    return sorted(seen)


def _is_of_longrec(name: str) -> bool:
    return name == "longrec" or name.startswith("longrec.")


def _parents(name: str) -> list[str]:
    """Return the packages of a module: `a.b.c` lies in `a.b` and `a`."""
    return [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]


def _path_of(name: str) -> Path | None:
    """Return the file of a module of longrec; None for a name inside a module."""
    base = LIBRARY.joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the full names that a module imports, except below `if TYPE_CHECKING`."""
    if _is_type_checking(node):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _versions(packages: set[str]) -> Iterator[str]:
    for name in sorted(packages - {"longrec"}):
        version = _version(DISTRIBUTIONS.get(name, name))
        if version is not None:
            yield f"{name} {version}"


@functools.cache
def _version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None for a module of Python."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _files(step: PipelineStep, project: Path) -> list[Path]:
    """Return the files that a step reads besides the modules that it imports."""
    component = project / "components" / f"{step.component}.py"
    roots = [component, *(project / folder for folder in step.folders)]
    if step.reads_library:
        roots += [LIBRARY, project / "pyproject.toml"]
    paths = [path for root in roots for path in _files_below(root)]
    return [path for path in paths if not _is_generated(path, project)]


def _files_below(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.is_file())


def _is_generated(path: Path, project: Path) -> bool:
    folders = _relative(path, project).parts[:2]
    return "__pycache__" in path.parts or folders in GENERATED_FOLDERS


def _relative(path: Path, project: Path) -> Path:
    """Return a path that does not depend on the location of the project on this machine."""
    if path.is_relative_to(LIBRARY):
        return path.relative_to(LIBRARY.parent)
    return path.relative_to(project)
