"""The kernels of causal attention equal the padded groups, without a GPU and without padding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[4]
MAX_ERRORS = {"float32": 1e-6, "float16": 2e-3}


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Return the largest error of each case in Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.longrec.nn.kernels.interpreted_attention"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["transformer", "hstu"])
@pytest.mark.parametrize(
    "size",
    ["mixed lengths", "no event", "no target", "one event", "a whole block"],
)
def test_values_and_gradients_equal_the_reference(
    kind: str,
    size: str,
    errors: dict[str, float],
) -> None:
    assert errors[f"{kind}, {size}, float32"] < MAX_ERRORS["float32"]


@pytest.mark.parametrize("kind", ["transformer", "hstu"])
def test_sixteen_bits_stay_within_their_step(kind: str, errors: dict[str, float]) -> None:
    assert errors[f"{kind}, mixed lengths, float16"] < MAX_ERRORS["float16"]
