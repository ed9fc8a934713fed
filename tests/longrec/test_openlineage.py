"""OpenLineage events reach a receiver as they were meant, and no receiver disturbs a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longrec import openlineage
from longrec.data.files import write_json
from longrec.errors import DataError
from longrec.openlineage import LineageDataset, LineageJob, LineageRun, dataset_name, emitted
from longrec.runs.record.artifacts import step_input
from longrec.runs.record.attempts import recorded
from tests.conftest import ROOT
from tests.longrec.openlineage_receiver import Receiver, problems, receiver

RUN = "20260101-120000-clicks"


@pytest.fixture(autouse=True)
def unconfigured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what this machine configures."""
    for name in list(os.environ):
        if name.startswith("OPENLINEAGE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path))
    monkeypatch.setenv("LONGREC_RUN", RUN)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiver() as running:
        _use(running, monkeypatch)
        yield running


def _use(running: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", running.url)


def _training(folder: Path) -> dict[str, object]:
    """Return the input of a step train that reads histories and has written a bundle."""
    write_json(folder / "histories" / "manifest.json", {"store_version": "86afdda6"})
    write_json(folder / "bundle" / "bundle.json", {"version": "13e4bcdd33957abc"})
    return step_input({"histories": folder / "histories"}, {"bundle": folder / "bundle"})


def test_a_step_sends_start_and_complete_with_versions(server: Receiver, tmp_path: Path) -> None:
    with recorded("train", _training(tmp_path)):
        pass
    start, complete = server.events
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"]["namespace"] == "longrec"
    assert start["job"]["name"] == "train"
    assert (start["outputs"], start["inputs"]) == ([], complete["inputs"])
    (bundle,) = complete["outputs"]
    assert (bundle["namespace"], bundle["name"]) == ("longrec", "bundle")
    assert bundle["facets"]["version"]["datasetVersion"] == "13e4bcdd33957abc"
    assert bundle["facets"]["dataSource"]["uri"] == (tmp_path / "bundle").as_uri()


def test_every_event_is_valid_by_the_published_schemas(server: Receiver, tmp_path: Path) -> None:
    with recorded("train", _training(tmp_path)):
        pass
    with pytest.raises(DataError), recorded("train", _training(tmp_path)):
        raise DataError("no events")
    assert len(server.events) == 4
    assert [problems(event) for event in server.events] == [[]] * 4


def test_the_receiver_of_these_tests_finds_a_wrong_event(server: Receiver) -> None:
    with emitted(LineageJob("train"), LineageRun()):
        pass
    event = server.events[0]
    assert problems({**event, "eventTime": 3})
    event["job"]["facets"]["jobType"]["integration"] = None
    assert problems(event)


def test_a_failed_step_sends_its_error(server: Receiver, tmp_path: Path) -> None:
    with pytest.raises(DataError), recorded("train", _training(tmp_path)):
        raise DataError("no events", fix="Import some.")
    _, failed = server.events
    facet = failed["run"]["facets"]["errorMessage"]
    assert (failed["eventType"], facet["message"]) == ("FAIL", "no events. Import some.")
    assert "Traceback" in facet["stackTrace"]
    assert failed["outputs"] == []


def test_the_steps_of_a_run_have_one_parent(
    server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = "0b5d3e63-87b1-4fa6-b888-12266eeea82e"
    for run in (RUN, RUN, uuid):
        monkeypatch.setenv("LONGREC_RUN", run)
        with recorded("plan", {}):
            pass
    parents = [event["run"]["facets"]["parent"]["run"]["runId"] for event in server.events[::2]]
    assert parents[0] == parents[1]
    assert parents[2] == uuid


def test_variables_of_the_standard_name_namespace_and_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with receiver() as running:
        monkeypatch.setenv("OPENLINEAGE_URL", running.url)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "secret")
        monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
        with emitted(LineageJob("train"), LineageRun([LineageDataset("bundle", "1")])):
            pass
        for name in list(os.environ):  # The client makes variables of its own of these.
            if name.startswith("OPENLINEAGE__"):
                os.environ.pop(name)
    event = running.events[0]
    assert (event["job"]["namespace"], event["inputs"][0]["namespace"]) == ("shop", "shop")
    assert running.keys[0] == "Bearer secret"


def test_openlineage_yml_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    text = f"transport: {{type: file, log_file_path: {path}, append: true}}\n"
    (tmp_path / "openlineage.yml").write_text(text)
    with emitted(LineageJob("train"), LineageRun()):
        pass
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    assert [problems(event) for event in events] == [[], []]


@pytest.mark.parametrize("status", [400, 500])
def test_a_receiver_that_refuses_is_a_warning(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(openlineage, "MAX_WAIT_SECONDS", 0.5)
    with receiver(status) as running:
        _use(running, monkeypatch)
        with caplog.at_level(logging.WARNING), recorded("train", _training(tmp_path)):
            pass
    assert "lineage of train was not sent" in caplog.text


def test_a_receiver_that_hangs_costs_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openlineage, "MAX_WAIT_SECONDS", 0.3)
    with receiver(delay_seconds=2.0) as running:
        _use(running, monkeypatch)
        started = time.monotonic()
        with emitted(LineageJob("train"), LineageRun()):
            pass
        seconds = time.monotonic() - started
    assert seconds < 1.5
    assert "no answer within 0.3 s" in caplog.text


def test_a_configuration_that_is_wrong_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "pigeon")
    with emitted(LineageJob("train"), LineageRun()):
        pass
    assert "lineage of train was not sent" in caplog.text


def test_a_missing_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    with emitted(LineageJob("train"), LineageRun()):
        pass
    assert "pip install 'longrec[lineage]'" in caplog.text


@pytest.mark.parametrize(
    "variables", [{}, {"OPENLINEAGE_DISABLED": "true", "OPENLINEAGE_URL": "x"}]
)
def test_without_configuration_nothing_is_imported(
    variables: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys, longrec.step\n"
        "from longrec.runs.record.attempts import recorded\n"
        "with recorded('train', {}): pass\n"
        "found = [name for name in sys.modules if name.startswith(('openlineage', 'mlflow'))]\n"
        "assert not found, found\n"
    )
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT / "model")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


def test_datasets_are_named_by_the_rules_for_storage() -> None:
    local = LineageDataset("dataset", "1", "/srv/clicks")
    remote = LineageDataset("dataset", "1", "s3://bucket/logs/clicks")
    assert dataset_name(local) == ("file", "/srv/clicks")
    assert dataset_name(remote) == ("s3://bucket", "logs/clicks")


def test_feast_uses_the_same_namespace_and_receiver(
    server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64

    from longrec.data.store import feast_adapter

    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(feast_adapter.atexit, "register", registered.append)
    emitter = feast_adapter._lineage_emitter.__wrapped__()
    assert emitter.namespace_for("longrec_86afdda6") == "shop"
    user = Entity(name="user", value_type=ValueType.INT64)
    source = FileSource(name="log", path="log.parquet", timestamp_field="time")
    fields = [Field(name="age", dtype=Int64)]
    view = FeatureView(name="user_features", entities=[user], schema=fields, source=source)
    emitter.emit_apply([user, source, view], "longrec_86afdda6")
    (close,) = registered
    close()
    assert server.events
    assert {event["job"]["namespace"] for event in server.events} == {"shop"}
    assert [problems(event) for event in server.events] == [[]] * len(server.events)
