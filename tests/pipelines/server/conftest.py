"""A fake Kubeflow Pipelines server, at which the commands look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.kfp_server import FakeServer, running_for_commands


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with running_for_commands(monkeypatch) as fake:
        yield fake
