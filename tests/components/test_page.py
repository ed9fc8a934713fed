"""A component is a page: imports, one configuration line, one call, metrics."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for path in (ROOT / "components").rglob("*.py")
    if path != ROOT / "components" / "__init__.py"
)
MODULE_IMPORTS = {"kfp", "components", "typing"}
MAX_STATEMENTS = 15
BRANCHES = (ast.If, ast.IfExp, ast.Try, ast.While, ast.FunctionDef)


def _functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _statements(function: ast.FunctionDef) -> int:
    """Return the number of statements in the body, nested ones included, without its docstring."""
    return (
        sum(isinstance(node, ast.stmt) for node in ast.walk(function))
        - 1
        - (ast.get_docstring(function) is not None)
    )


def _roots(nodes: list[ast.stmt]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def test_there_is_a_component_per_step() -> None:
    names = {function.name for path in FILES for function in _functions(path)}
    assert {
        "fingerprint",
        "build_features",
        "check_events",
        "publish",
        "retrieve",
        "check_histories",
        "train",
        "evaluate",
        "package",
        "finish",
    } <= names


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_component_has_at_most_fifteen_statements_and_no_branches(path: Path) -> None:
    for function in _functions(path):
        assert _statements(function) <= MAX_STATEMENTS, function.name
        branches = [
            node
            for node in ast.walk(function)
            if isinstance(node, BRANCHES) and node is not function
        ]
        assert not branches, f"{function.name} line {branches[0].lineno}"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_component_imports_longrec_inside_its_body_and_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert _roots(tree.body) <= MODULE_IMPORTS
    for function in _functions(path):
        assert _roots([node for node in ast.walk(function) if isinstance(node, ast.stmt)]) <= {
            "longrec",
            "shutil",
        }


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_the_names_that_a_component_imports_exist(path: Path) -> None:
    """KFP embeds the source, so neither mypy nor an import of the file looks into the body."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longrec"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_component_file_holds_one_decorated_function_and_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    others = [
        node
        for node in tree.body
        if not isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
    ]
    assert ast.get_docstring(tree)
    assert len(others) <= 1, "only imports and functions beside the docstring"
    for function in _functions(path):
        assert [ast.unparse(decorator) for decorator in function.decorator_list] == ["component"]
        assert ast.get_docstring(function)
    assert len(_functions(path)) <= 1


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_metrics_artifact_is_written_so_that_the_cache_can_hit(path: Path) -> None:
    source = path.read_text()
    assert ("metrics: Output[Metrics]" in source) == (
        "write_json(metrics.path, metrics.metadata)" in source
    )


def test_statement_counting_counts_nested_statements() -> None:
    function = ast.parse(
        inspect.cleandoc('''
        def f():
            """Doc."""
            import a
            for x in a:
                b(x)
            return 1
    ''')
    ).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert _statements(function) == 4
