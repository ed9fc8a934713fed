"""A work directory with fake engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.longrec.serving.rollout.fake_engines import FakeRollout


@pytest.fixture()
def rollout(tmp_path: Path) -> FakeRollout:
    return FakeRollout(tmp_path)
