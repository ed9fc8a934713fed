"""Kubeflow Model Registry follows the decisions about models: its client against a fake server.

The tests read what the server keeps, not what the client that wrote returns.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.release import catalog, kubeflow_adapter, registry
from longrec.release.catalog import CatalogError, NewVersion
from longrec.release.kubeflow_adapter import KubeflowCatalog
from longrec.release.model_store import MODEL_NAME
from tests.conftest import VERSION
from tests.longrec.release import kubeflow_server
from tests.longrec.release.kubeflow_server import FakeRegistry

pytest.importorskip("model_registry", reason="pip install 'longrec[model-registry]'")
pytestmark = pytest.mark.slow  # They share a trained model.
RUN = "20260101-120000-clicks"
LABELS = {"gate": "passed", "auc": "0.71", "note": ""}


@pytest.fixture(params=[False, True], ids=["keeps", "replaces"])
def server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeRegistry]:
    """A running server that keeps or removes the properties that an update does not name."""
    with kubeflow_server.running(FakeRegistry(replaces=request.param)) as running:
        monkeypatch.setenv("LONGREC_MODEL_REGISTRY", running.address)
        yield running


def _register(store: Path, *versions: str) -> None:
    for version in versions:
        bundle = store / "models" / MODEL_NAME / version / "bundle"
        catalog.announce_version(NewVersion(version, bundle, LABELS, run=RUN))


def _aliases(server: FakeRegistry) -> dict[str, str]:
    """Return the version by alias, from the true properties of the stored versions."""
    found = {}
    for version in server.versions:
        for name, value in version["customProperties"].items():
            if value == {"bool_value": True, "metadataType": "MetadataBoolValue"}:
                found[name] = version["name"]
    return found


def _models(store: Path, workdir: Path, *words: str) -> Any:
    options = ["--workdir", str(workdir), "--store", str(store)]
    return CliRunner().invoke(app, ["models", *words, *options])


def test_a_registered_version_has_its_facts_and_the_address_of_its_bundle(
    server: FakeRegistry, version_store: Path
) -> None:
    _register(version_store, VERSION, "v1", VERSION)
    (model,) = server.models
    assert model["name"] == MODEL_NAME
    assert [entry["name"] for entry in server.versions] == [VERSION, "v1"]
    properties = server.versions[0]["customProperties"]
    assert {name: value["string_value"] for name, value in properties.items()} == {
        **LABELS,
        "run": RUN,
    }
    artifact = server.artifacts[0]
    bundle = version_store / "models" / MODEL_NAME / VERSION / "bundle"
    assert artifact["uri"] == bundle.as_uri()
    assert artifact["modelFormatName"] == "safetensors"
    assert [entry["modelVersionId"] for entry in server.artifacts] == ["1", "2"]
    newest, oldest = KubeflowCatalog().entries()
    assert (newest.version, oldest.version) == ("v1", VERSION)
    assert (oldest.number, oldest.aliases) == ("1", ())
    assert oldest.labels == {**LABELS, "run": RUN}


def test_aliases_follow_the_commands(
    server: FakeRegistry, version_store: Path, undecided: Path
) -> None:
    _register(version_store, VERSION, "v1", "v2")
    for words, expected in (
        (("promote", VERSION), {"champion": VERSION}),
        (("shadow", "v2"), {"champion": VERSION, "challenger": "v2"}),
        (("promote", "v2"), {"champion": "v2"}),
        (("rollback",), {"champion": VERSION}),
    ):
        answer = _models(version_store, undecided, *words, "--why", "try")
        assert answer.exit_code == 0, answer.output
        assert _aliases(server) == expected
    for version in server.versions:
        assert version["customProperties"]["auc"]["string_value"] == LABELS["auc"]
    listed = _models(version_store, undecided, "list", "--registry", "kubeflow", "--json")
    models = {model["version"]: model for model in json.loads(listed.stdout)["models"]}
    assert set(models) == {VERSION, "v1", "v2"}
    assert models[VERSION]["aliases"] == ["champion"]


def test_a_registry_that_lacks_a_version_is_synchronized(
    server: FakeRegistry, version_store: Path, undecided: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.promote(undecided, version_store, VERSION, by="ann", why="first")
    assert "the registry kubeflow does not follow" in caplog.text
    assert KubeflowCatalog().entries() == []
    answer = _models(version_store, undecided, "sync")
    assert answer.output == f"kubeflow: champion {VERSION}\n"
    assert _aliases(server) == {"champion": VERSION}
    with pytest.raises(CatalogError, match="has no version v9"):
        KubeflowCatalog().assign("champion", "v9")
    assert _aliases(server) == {"champion": VERSION}


def test_an_alias_that_was_moved_there_becomes_a_decision(
    server: FakeRegistry, version_store: Path, undecided: Path
) -> None:
    _register(version_store, VERSION, "v1")
    registry.promote(undecided, version_store, VERSION, by="ann", why="first")
    KubeflowCatalog().assign("champion", "v1")
    answer = _models(version_store, undecided, "sync", "--from", "kubeflow")
    assert answer.output == "bentoml: champion v1\n"
    assert registry.read_registry(undecided).champion == "v1"


@pytest.mark.parametrize("is_listening", [False, True], ids=["down", "silent"])
def test_a_server_without_an_answer_undoes_no_decision(
    is_listening: bool,
    version_store: Path,
    undecided: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kubeflow_adapter, "TIMEOUT_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if is_listening:
            silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("LONGREC_MODEL_REGISTRY", address)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            after = registry.promote(undecided, version_store, VERSION, by="ann", why="first")
        answer = _models(version_store, undecided, "sync")
        assert time.monotonic() - started < 30
    assert after.champion == VERSION
    assert "the registry kubeflow does not follow" in caplog.text
    assert answer.exit_code == 1
    assert "the registry kubeflow cannot be used" in answer.output
