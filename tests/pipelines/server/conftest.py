"""A fake Kubeflow Pipelines server, at which the commands look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.kfp_server import FakeServer, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("LONGREC_KFP_TOKEN", "LONGREC_KFP_COOKIE", "LONGREC_KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LONGREC_POLL_SECONDS", "0.01")
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "0")
    with running() as fake:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.url)
        yield fake
