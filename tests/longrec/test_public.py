"""The public face of the package is small, frozen, documented and lazy."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import longrec

PUBLIC = [
    "Bundle",
    "ChecksConfig",
    "DataConfig",
    "Dataset",
    "DriftConfig",
    "EvaluateConfig",
    "EventMapping",
    "Feature",
    "GateConfig",
    "LengthConfig",
    "LongrecError",
    "ModelConfig",
    "OfflineStore",
    "OnlineStore",
    "Ranker",
    "RequestBatch",
    "RequestRows",
    "RunConfig",
    "Schema",
    "Scorer",
    "Task",
    "TrainConfig",
    "build_features",
    "evaluate",
    "import_events",
    "load_config",
    "publish",
    "retrieve",
    "synthesize",
    "train",
]
"""The contract: what a later version must still offer."""


def test_the_public_names_are_these_and_resolve() -> None:
    assert longrec.__all__ == PUBLIC
    assert set(longrec.__all__) <= set(dir(longrec))
    for name in longrec.__all__:
        assert getattr(longrec, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Rankers'"):
        _ = longrec.Rankers


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_and_types(name: str) -> None:
    value = getattr(longrec, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        annotations = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Signature.empty not in (*annotations, signature.return_annotation)


def test_type_checkers_see_the_public_names_too() -> None:
    tree = ast.parse(Path(longrec.__file__).read_text())
    imported = [
        alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]
    assert sorted(imported) == PUBLIC


def test_the_schema_loads_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys, longrec.schema; "
        "print([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
