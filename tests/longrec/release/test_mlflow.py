"""MLflow's server has what a run found, and follows the decisions about models.

The tests read the answers of its REST API, not of the client that wrote.
"""

from __future__ import annotations

import csv
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.data.files import read_json
from longrec.release import catalog, registry
from longrec.release.catalog import NewVersion
from longrec.release.mlflow_adapter import MlflowCatalog, MlflowRun
from longrec.release.model_store import MODEL_NAME
from longrec.runs.record.artifacts import step_input
from longrec.runs.record.attempts import recorded
from longrec.runs.record.tracking import end_tracking, tracked
from tests.conftest import VERSION, ServedWorld
from tests.longrec.release import mlflow_server

pytestmark = pytest.mark.slow
RUN = "20260101-120000-clicks"
EXPERIMENT = "ranker of the shop"
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")


class Server:
    """Reads an MLflow server.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, /, **query: str) -> dict[str, Any]:
        words = "&".join(f"{name}={urllib.request.quote(value)}" for name, value in query.items())
        return self._read(urllib.request.Request(f"{self.address}/api/2.0/mlflow/{path}?{words}"))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        url = f"{self.address}/api/2.0/mlflow/{path}"
        return self._read(urllib.request.Request(url, json.dumps(body).encode(), headers))

    def run(self) -> dict[str, Any]:
        """Return the run of MLflow that belongs to RUN."""
        found = self.get("experiments/get-by-name", experiment_name=EXPERIMENT)
        experiment = found["experiment"]["experiment_id"]
        runs = self.post(
            "runs/search", experiment_ids=[experiment], filter=f"tags.longrec_run='{RUN}'"
        )
        (run,) = runs["runs"]
        return run

    def history(self, run: str, metric: str) -> dict[int, float]:
        """Return the value of a metric by step."""
        rows = self.get("metrics/get-history", run_id=run, metric_key=metric)["metrics"]
        steps = [int(row["step"]) for row in rows]
        assert len(steps) == len(set(steps)), "a point was logged twice"
        return {int(row["step"]): row["value"] for row in rows}

    def files(self, run: str, path: str = "") -> list[str]:
        """Return the artifacts of a run, with their folders."""
        found = []
        for entry in self.get("artifacts/list", run_id=run, path=path).get("files", ()):
            is_folder = entry.get("is_dir", False)
            found += self.files(run, entry["path"]) if is_folder else [entry["path"]]
        return found

    def aliases(self) -> dict[str, str]:
        """Return our version by alias."""
        model = self.get("registered-models/get", name=MODEL_NAME)["registered_model"]
        found = {}
        for entry in model.get("aliases", ()):
            number = {"name": MODEL_NAME, "version": entry["version"]}
            tags = self.get("model-versions/get", **number)["model_version"]["tags"]
            by_key = {tag["key"]: tag["value"] for tag in tags}
            found[entry["alias"]] = by_key["longrec_version"]
        return found

    @staticmethod
    def _read(request: urllib.request.Request) -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
        return content


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def server(address: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    monkeypatch.setenv("LONGREC_RUN", RUN)
    return Server(address)


def _step(name: str, world: ServedWorld, read: str, written: str) -> None:
    def paths(names: str) -> dict[str, Path]:
        return {entry: world.path / entry for entry in names.split()}

    content = step_input(paths(read), paths(written))
    with recorded(name, content), tracked(name, content):
        pass


def test_a_run_has_settings_metrics_and_files(server: Server, served_world: ServedWorld) -> None:
    for _ in range(2):  # A retried step logs nothing twice.
        _step("train", served_world, "histories", "bundle")
        _step("evaluate", served_world, "bundle histories", "evaluation")
    end_tracking("SUCCEEDED")
    run = server.run()
    run_id = run["info"]["run_id"]
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == RUN
    bundle = read_json(served_world.path / "bundle" / "bundle.json")
    parameters = {entry["key"]: entry["value"] for entry in run["data"]["params"]}
    for name, value in bundle["model"].items():
        assert parameters[f"model.{name}"] == str(value)
    assert parameters["train.learning_rate"] == "0.01"
    assert parameters["seed"] == "0"
    _check_curve(server, run_id, served_world.path / "bundle")
    _check_evaluation(server, run_id, served_world.path / "evaluation")
    files = server.files(run_id)
    assert {"bundle/model.safetensors", "bundle/bundle.json", "evaluation/report.html"} <= {*files}
    assert not [name for name in files if name.endswith(PICKLES)]
    assert not [name for name in files if "predictions" in name]


def _check_curve(server: Server, run_id: str, bundle: Path) -> None:
    with open(bundle / "training_curve.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = {int(row["step"]): float(row["loss"]) for row in rows}
    assert server.history(run_id, "train.loss") == pytest.approx(expected)
    assert len(expected) > 1


def _check_evaluation(server: Server, run_id: str, evaluation: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    auc = server.history(run_id, "eval.label.auc")
    assert auc == pytest.approx({0: metrics["metrics"]["label"]["auc"]})
    expected = {row["length"]: row["auc"] for row in metrics["lengths"]}
    assert server.history(run_id, "by_length.auc") == pytest.approx(expected)


def test_a_failed_run_is_failed_there(
    server: Server, served_world: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_tracking("FAILED")  # `tracked` made the run in the test before.
    assert server.run()["info"]["status"] == "FAILED"
    monkeypatch.setenv("LONGREC_RUN", "20260101-130000-absent")
    end_tracking("FAILED")
    assert MlflowRun.find("20260101-130000-absent") is None


def test_a_registered_version_has_its_bundle_and_labels(
    server: Server, served_world: ServedWorld, version_store: Path
) -> None:
    folder = version_store / "models" / MODEL_NAME
    for version in (VERSION, "v1", VERSION):
        new = NewVersion(
            version,
            bundle=folder / version / "bundle",
            labels={"gate": "passed"},
            evaluation=served_world.path / "evaluation",
            run=RUN,
        )
        catalog.announce_version(new)
    entries = {entry.version: entry for entry in MlflowCatalog().entries()}
    assert set(entries) == {VERSION, "v1"}
    number = {"name": MODEL_NAME, "version": entries[VERSION].number}
    stored = server.get("model-versions/get", **number)["model_version"]
    assert stored["source"].endswith("/bundle")
    assert stored["run_id"] == server.run()["info"]["run_id"]
    assert {"key": "gate", "value": "passed"} in stored["tags"]
    assert entries[VERSION].labels == {"gate": "passed"}


def test_aliases_follow_the_decisions(server: Server, version_store: Path, undecided: Path) -> None:
    registry.promote(undecided, version_store, VERSION, by="ann", why="first")
    assert server.aliases()["champion"] == VERSION
    registry.start_shadow(undecided, version_store, "v1", 0.5, by="ann", why="compare")
    assert server.aliases() == {"champion": VERSION, "challenger": "v1"}
    registry.promote(undecided, version_store, "v1", by="ann", why="better")
    assert server.aliases() == {"champion": "v1"}
    registry.rollback(undecided, version_store, by="ann", why="worse")
    assert server.aliases() == {"champion": VERSION}


def test_a_version_that_mlflow_lacks_is_told_and_then_synchronized(
    server: Server, version_store: Path, undecided: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        registry.promote(undecided, version_store, "v2", by="ann", why="first")
    assert "the registry mlflow does not follow" in caplog.text
    assert "longrec models sync" in caplog.text
    options = ["--workdir", str(undecided), "--store", str(version_store)]
    answer = CliRunner().invoke(app, ["models", "sync", *options])
    assert answer.output == "mlflow: champion v2\n"
    assert server.aliases() == {"champion": "v2"}
    listed = CliRunner().invoke(app, ["models", "list", "--registry", "mlflow", *options, "--json"])
    models = {model["version"]: model for model in json.loads(listed.stdout)["models"]}
    assert models["v2"]["aliases"] == ["champion"]


def test_an_alias_that_was_moved_in_mlflow_becomes_a_decision(
    server: Server, version_store: Path, undecided: Path
) -> None:
    registry.promote(undecided, version_store, VERSION, by="ann", why="first")
    numbers = {entry.version: entry.number for entry in MlflowCatalog().entries()}
    server.post("registered-models/alias", name=MODEL_NAME, alias="champion", version=numbers["v1"])
    options = ["--workdir", str(undecided), "--store", str(version_store)]
    answer = CliRunner().invoke(app, ["models", "sync", "--from", "mlflow", *options])
    assert answer.output == "bentoml: champion v1\n"
    after = registry.read_registry(undecided)
    assert (after.champion, after.previous) == ("v1", VERSION)
    assert after.last is not None and after.last.why == "the aliases of mlflow"


def test_a_server_that_is_down_undoes_no_decision(
    version_store: Path,
    undecided: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    after = registry.promote(undecided, version_store, VERSION, by="ann", why="first")
    assert time.monotonic() - started < 60
    assert after.champion == VERSION
    assert "the registry mlflow does not follow" in caplog.text
    options = ["--workdir", str(undecided), "--store", str(version_store)]
    answer = CliRunner().invoke(app, ["models", "sync", *options])
    assert answer.exit_code == 1
    assert "the registry mlflow cannot be used" in answer.output
