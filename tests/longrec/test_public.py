"""The public face of the package is small, frozen and lazy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import longrec

PUBLIC = [
    "Dataset",
    "Feature",
    "LongrecError",
    "Ranker",
    "RequestBatch",
    "RequestRows",
    "RunConfig",
    "Schema",
    "Scorer",
    "Task",
]


def test_the_public_names_are_these_and_resolve() -> None:
    assert longrec.__all__ == PUBLIC and set(longrec.__all__) <= set(dir(longrec))
    for name in longrec.__all__:
        assert getattr(longrec, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Rankers'"):
        _ = longrec.Rankers


def test_the_schema_loads_neither_torch_nor_pyarrow() -> None:
    code = "import sys, longrec.schema; print([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
