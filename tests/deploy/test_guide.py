"""The commands of the guide to autoscaling and alerts, in a copy of the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy import manifests
from tests.docs.pages import bash_blocks, run_block

PAGE = manifests.ROOT / "docs" / "guides" / "autoscale-and-alert.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed"),
    pytest.mark.skipif(not manifests.KUBECTL.exists(), reason="kubectl is not installed"),
]


def test_the_guide_runs(tmp_path: Path) -> None:
    for folder in ("deploy", "tests/deploy"):
        shutil.copytree(manifests.ROOT / folder, tmp_path / folder)
    outputs = [run_block(block, tmp_path) for block in bash_blocks(PAGE)]
    assert len(outputs) == 3
    _, rendered, checked = outputs
    assert "kind: ScaledObject" in rendered
    text = PAGE.read_text(encoding="utf-8")
    (query,) = [line.partition("query: ")[2] for line in rendered.splitlines() if "query:" in line]
    assert f"`{query}`" in text
    assert checked.count("SUCCESS") == 2
