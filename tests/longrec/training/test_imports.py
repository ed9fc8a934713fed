"""What a training needs: few packages, and no warning that a user cannot act on."""

from __future__ import annotations

import subprocess
import sys

BLOCK_OPTIONAL_PACKAGES = """
import sys

OPTIONAL = {
    "bentoml", "duckdb", "feast", "great_expectations", "kfp", "matplotlib", "pandas", "pydantic",
    "rich", "tenacity", "yaml",
}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
"""
IMPORT = """
import longrec.scoring.scorer
import longrec.training.sharded_tables
import longrec.training.train
"""
MAKE_SPARSE_TENSOR = """
import torch
from longrec.training.loop import ignore_sparse_warning

ignore_sparse_warning()
rows = torch.tensor([[1]])
torch.sparse_coo_tensor(rows, torch.ones(1, 4), (10, 4))
"""


def run(program: str) -> str:
    """Run a program in a process of its own; return its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_training_and_scoring_import_without_optional_packages() -> None:
    assert run(BLOCK_OPTIONAL_PACKAGES + IMPORT) == ""


def test_sparse_gradients_cause_no_warning() -> None:
    assert run(MAKE_SPARSE_TENSOR) == ""
