"""Errors of the script that builds bentos, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.release.bento_server import PackagingError
from longrec.release.build_script import BuildScript

FULL_DISK = "raise OSError(28, 'No space left on device', 'a/wheel')"
OTHER = "raise ValueError('no such model')"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FULL_DISK, "no space is left to check ranker:1; .*Free some space and run it again"),
        (OTHER, "bentoml could not check ranker:1; found ValueError: no such model"),
    ],
    ids=["full disk", "other"],
)
def test_a_failure_is_one_line(tmp_path: Path, source: str, message: str) -> None:
    script = tmp_path / "build.py"
    script.write_text(source)
    with pytest.raises(PackagingError, match=message) as caught:
        BuildScript(script).check("ranker:1")
    assert "\n" not in str(caught.value)
