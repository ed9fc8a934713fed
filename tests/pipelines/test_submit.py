"""submit, schedule and status, over real HTTP to a fake server."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from longrec.cli.main import app
from pipelines import compiler
from pipelines.server.cron import cron_fields
from tests.pipelines.compiled_once import compiled_once
from tests.pipelines.kfp_server import FakeServer, running_for_commands
from tests.pipelines.server.argo_tasks import Step, executor_paths, pod_of, tasks_of

ROOT = Path(__file__).parents[2]

STUDY = ROOT / "configs" / "study-kuairand.yaml"
DATA = ("--data-uri", "s3://bucket/data")
TASKS = tasks_of([Step("fingerprint", start="2026-01-01T00:00:00Z"), Step("train")])


_commands = functools.cache(get_command)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(compiler, "pipeline", compiled_once)
    monkeypatch.setattr("typer.testing._get_command", _commands)
    with running_for_commands(monkeypatch) as fake:
        fake.tasks = TASKS
        yield fake


def _type(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def _json(*arguments: str) -> dict[str, Any]:
    answer = _type(*arguments, "--json")
    assert answer.exit_code == 0, answer.output
    value: dict[str, Any] = json.loads(answer.stdout)
    return value


@pytest.fixture
def config(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "team.yaml"
    path.write_text(
        "name: team\nseed: 3\nmodel: {width: 128}\n"
        "platform: {image: team/python:4, service_account: trainer, steps: {train: {gpu: 1}}}\n"
    )
    return "--config", str(path)


def test_a_run_arrives_with_parameters_graph_and_platform(
    server: FakeServer, config: tuple[str, str]
) -> None:
    made = _json(
        "submit",
        *DATA,
        *config,
        "--param",
        "webhook=https://chat/hook",
        "--param",
        "run_id=17",
        "--pipeline-root",
        "s3://bucket/a",
    )
    (run,) = server.runs.values()
    assert (
        made["run_id"] == run.run_id and made["url"] == f"{server.url}/#/runs/details/{run.run_id}"
    )
    parameters = run.runtime_config.parameters
    assert parameters["data_uri"] == "s3://bucket/data"
    assert parameters["seed"] == 3
    assert parameters["model"]["width"] == 128
    assert parameters["webhook"] == "https://chat/hook"
    assert parameters["run_id"] == "17"
    assert "platform" not in parameters
    assert run.display_name == "team"
    assert run.service_account == "trainer"
    assert run.runtime_config.pipeline_root == "s3://bucket/a"
    spec = server.spec_of(run)
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"]
    assert executors["exec-train"]["container"]["image"] == "team/python:4"
    assert executors["exec-train"]["container"]["resources"]["accelerator"]["resourceCount"] == "1"
    assert spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][
        "exec-publish"
    ]["pvcMount"]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("pipeline", ["training", "refresh", "drift", "study"])
def test_every_pipeline_is_taken(server: FakeServer, pipeline: str, shards: int) -> None:
    study = ("--study", str(STUDY)) if pipeline == "study" else ()
    data = () if pipeline == "drift" else DATA
    _json("submit", *data, "--pipeline", pipeline, *study, "--set", f"data.shards={shards}")
    (run,) = server.runs.values()
    spec = server.spec_of(run)["pipeline_spec"]
    assert spec["pipelineInfo"]["name"] == f"longrec-{pipeline}"
    items = [f"{number}/{shards}" for number in range(1, shards + 1)]
    assert run.runtime_config.parameters.get("shards", items) == items


def test_equal_pipelines_are_one_version_and_others_another(server: FakeServer) -> None:
    """Settings of a run are parameters; those of the platform are part of the version."""
    for _ in range(2):
        _json("submit", *DATA, "--set", "train.epochs=2")
    assert _json("schedule", *DATA, "--cron", "0 3 * * *")["done"] == "created"
    (schedule,) = json.loads(_type("schedules", "--json").stdout)["schedules"]
    assert schedule["pipeline"] == "longrec-training"
    (pipeline,) = server.pipelines.values()
    (version,) = server.versions.values()
    assert pipeline.display_name == "longrec-training"
    assert re.fullmatch("longrec-training-[0-9a-f]{12}", version.display_name)
    assert version.tags["longrec"]
    entries = [*server.runs.values(), *server.recurring.values()]
    ids = {entry.pipeline_version_reference.pipeline_version_id for entry in entries}
    assert ids == {version.pipeline_version_id}
    _json("submit", *DATA, "--set", "platform.steps.train.gpu=1")
    assert len(server.versions) == 2
    _json("submit", "--pipeline", "drift")
    assert len(server.pipelines) == 2


def test_a_run_that_is_too_large_is_told_before_it_is_sent(server: FakeServer) -> None:
    shards = ("--set", "data.shards=64")
    assert _type("submit", *DATA, *shards).stderr == ""
    server.refuse = (500, "database is locked")
    answer = _type("submit", *DATA, *shards, "--set", "platform.parallelism=64")
    first, second = answer.stderr.splitlines()
    assert re.search(r"makes a workflow of [3-9]\.\d MiB.*shows no progress", first)
    assert "database is locked" in second


def test_waiting_shows_steps_and_ends_with_the_run(server: FakeServer) -> None:
    answer = _type("submit", *DATA, "--wait")
    assert answer.exit_code == 0
    assert "submitted" in answer.stdout
    lines = answer.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["SUCCEEDED", "fingerprint"],
        ["SUCCEEDED", "train"],
    ]
    assert "60 s" in lines[1]


def test_waiting_for_a_run_that_fails_is_exit_code_1_and_names_the_step(server: FakeServer) -> None:
    server.states = ["PENDING", "FAILED"]
    train = Step("train", "FAILED")
    server.tasks = tasks_of([train])
    server.logs = {pod_of(path): "MemoryError: out of memory\n" for path in executor_paths(train)}
    answer = _type("submit", *DATA, "--wait")
    assert answer.exit_code == 1
    assert "ended FAILED; found train: MemoryError: out of memory" in answer.stderr
    assert re.search(r"longrec logs \S+ train$", answer.stderr.strip())


def test_waiting_ends_in_time(server: FakeServer) -> None:
    server.states = ["PENDING"]
    answer = _type("submit", *DATA, "--wait", "--timeout", "0.05")
    assert answer.exit_code == 1
    assert "has not ended after 0.05 s; found PENDING" in answer.stderr


def test_a_schedule_is_made_kept_and_replaced(server: FakeServer) -> None:
    nightly = ("schedule", *DATA, "--cron", "0 3 * * *")
    assert _json(*nightly)["done"] == "created"
    (first,) = server.recurring.values()
    assert first.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert first.no_catchup is True
    assert first.max_concurrency == "1"
    assert first.display_name == "training-quickstart"
    assert first.mode == "ENABLE"
    assert _json(*nightly)["done"] == "unchanged"
    assert list(server.recurring) == [first.recurring_run_id]
    assert _json(*nightly, "--set", "train.epochs=9")["done"] == "updated"
    (second,) = server.recurring.values()
    assert second.recurring_run_id != first.recurring_run_id
    assert second.runtime_config.parameters["train"]["epochs"] == 9
    assert _json(*nightly, "--pipeline", "refresh")["done"] == "created"
    assert len(server.recurring) == 2


def test_a_refused_update_leaves_the_schedule(server: FakeServer) -> None:
    _json("schedule", *DATA, "--cron", "0 3 * * *")
    before = list(server.recurring)
    server.refuse = (500, "database is locked")
    assert _type("schedule", *DATA, "--cron", "0 4 * * *").exit_code == 1
    assert list(server.recurring) == before


def test_status_shows_a_run_with_its_steps_and_the_newest_runs(server: FakeServer) -> None:
    first, second = (
        _json("submit", *DATA, "--name", "one")["run_id"],
        _json("submit", *DATA, "--name", "two")["run_id"],
    )
    answer = _type("status", first)
    assert (
        answer.exit_code == 0
        and answer.stdout.startswith("longrec-training  one  PENDING  ")
        and f"{server.url}/#/runs/details/{first}" in answer.stdout
    )
    for node in ("driver", "executor", "(0)", "root", "exit-handler"):
        assert node not in answer.stdout
    assert [run["run_id"] for run in _json("status")["runs"]] == [second, first]


def test_a_server_of_many_users_wants_a_namespace(server: FakeServer) -> None:
    server.multi_user = True
    lost = _type("status")
    assert lost.exit_code == 1
    assert "is a multi-user server" in lost.stderr
    assert "--namespace" in lost.stderr
    assert _json("status", "--namespace", "team") == {"runs": []}


def test_a_server_that_cannot_tell_an_exit_task_the_state_is_too_old(server: FakeServer) -> None:
    server.refuse = (0, "")
    server.refuse_post = (
        500,
        'Internal error: compiling DAG "root": failed to add implicit deps: '
        "task final status not supported yet",
    )
    old = _type("submit", *DATA)
    assert old.exit_code == 1
    assert "2.14 or newer" in old.stderr


def test_a_token_and_a_cookie_are_sent_and_never_an_option(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.token = "secret"
    (tmp_path / "token").write_text("secret\n")
    assert _type("status", "--token-file", str(tmp_path / "token")).exit_code == 0
    monkeypatch.setenv("LONGREC_KFP_TOKEN", "secret")
    monkeypatch.setenv("LONGREC_KFP_COOKIE", "authservice_session=abc")
    assert _type("status").exit_code == 0
    assert server.requests[-1][2]["Cookie"] == "authservice_session=abc"
    assert not any(
        option in _type("submit", "--help").output for option in ("--token ", "--cookie ")
    )


def _failing(server: FakeServer, refuse: tuple[int, str], *arguments: str) -> str:
    server.refuse = refuse
    answer = _type(*arguments)
    assert answer.exit_code == 1
    assert answer.stdout == "", answer.output
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    return answer.stderr


def test_every_failure_says_what_to_do(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = ("submit", *DATA)
    closed = _failing(server, (401, "no identity"), *submit)
    assert (
        "refused the credentials; found 401 no identity. Give a token in LONGREC_KFP_TOKEN"
        in closed
    )
    skewed = _failing(server, (404, "page not found"), *submit)
    assert "does not support this version of the API" in skewed
    assert "2.14 or newer (kfp 2.17.0)" in skewed
    assert "does not support" in _failing(
        server, (400, 'json: unknown field "platform_spec"'), *submit
    )
    assert "refused the request; found 500 database is locked" in _failing(
        server, (500, "database is locked"), *submit
    )
    assert "has no run 7; found 404 Run 7 not found" in _failing(server, (0, ""), "status", "7")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert "the address of the Kubeflow Pipelines server is missing. Give --host" in _failing(
        server, (0, ""), *submit
    )
    assert "no Kubeflow Pipelines server answers at http://127.0.0.1:9" in _failing(
        server, (0, ""), *submit, "--host", "http://127.0.0.1:9"
    )


def test_an_unknown_experiment_is_made_only_when_asked_for(server: FakeServer) -> None:
    _json("submit", *DATA)
    message = _failing(server, (0, ""), "submit", *DATA, "--experiment", "nightyl")
    assert (
        "there is no experiment 'nightyl'; expected longrec. "
        "Give one of these, or --create-experiment" in message
    )
    assert len(server.experiments) == len(server.runs) == 1
    _json("submit", *DATA, "--experiment", "nightly", "--create-experiment")
    assert {each.display_name for each in server.experiments.values()} == {"longrec", "nightly"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("submit", *DATA, "--param", "epochs=3"),
            "the training pipeline has no parameter 'epochs'; expected checks, data, ",
        ),
        (("submit", *DATA, "--param", "epochs"), "--param epochs has no value"),
        (("submit", *DATA, "--study", str(STUDY)), "has no parameter 'study'"),
        (("submit", *DATA, "--pipeline", "absent"), "there is no pipeline 'absent'"),
        (("schedule", *DATA, "--cron", "daily"), "a schedule has five fields"),
        (
            ("submit", *DATA, "--param", "seed=x"),
            "input parameter seed requires type NUMBER_INTEGER",
        ),
        (("submit", *DATA, "--token-file", "/absent/token"), "/absent/token cannot be read"),
    ],
)
def test_a_mistake_is_found(server: FakeServer, arguments: tuple[str, ...], message: str) -> None:
    assert message in _failing(server, (0, ""), *arguments)
    assert not server.runs
    assert not server.recurring


@pytest.mark.parametrize("command", [("submit",), ("schedule", "--cron", "0 3 * * *")])
@pytest.mark.parametrize(
    ("given", "missing"), [(DATA, "--study"), (("--study", str(STUDY)), "--data-uri")]
)
def test_a_pipeline_without_what_it_needs_is_refused_before_anything_is_sent(
    server: FakeServer, command: tuple[str, ...], given: tuple[str, ...], missing: str
) -> None:
    answer = _type(*command, "--pipeline", "study", *given)
    assert answer.exit_code == 2
    assert missing in answer.stderr
    assert server.requests == []


def test_a_page_that_is_no_server_is_named(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = server.RequestHandlerClass
    monkeypatch.setattr(
        handler, "_handle", lambda self: self._send(b"<html>log in</html>", kind="text/html")
    )
    monkeypatch.setattr(handler, "do_GET", handler._handle)  # type: ignore[attr-defined]
    assert "no Kubeflow Pipelines server of version 2" in _failing(server, (0, ""), "status")


def test_five_fields_begin_at_second_zero() -> None:
    assert cron_fields("15 3 * * 1") == "0 15 3 * * 1"
    assert cron_fields(" 5 0 3 * * *") == "5 0 3 * * *"
