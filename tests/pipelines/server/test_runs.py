"""status, logs and --wait at recorded answers of a Kubeflow Pipelines 2.17 server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from longrec.cli.main import app
from pipelines.server import reading, runs
from pipelines.server.client import Submission, Submitted
from tests.pipelines.kfp_server import FakeServer
from tests.pipelines.server.argo_tasks import Step, executor_paths, loop_steps, pod_of, tasks_of
from tests.pipelines.server.recorded import NAMES, load, put_on

FEATURES = ["fingerprint", "profile-events", "check-events", "build-features", "join-features"]
HISTORIES = ["publish", "retrieve", "profile-histories", "join-histories", "check-histories"]
TRAINING = [*FEATURES, *HISTORIES, "train", "evaluate", "package", "finish"]
REFRESH = [*TRAINING[:6], "finish"]
STUDY = [*TRAINING[:10], "plan", "trial", "collect", "finish"]
NO_DATASET = "there is no dataset at /data/dataset; expected a directory with dataset.json."
CACHED_BUT = {"fingerprint": "SUCCEEDED", "publish": "SUCCEEDED", "finish": "SUCCEEDED"}
STATES: dict[str, tuple[str, list[str], str, dict[str, str]]] = {
    "accepted-not-started": ("PENDING", STUDY, "WAITING", {}),
    "bad-data": ("FAILED", TRAINING, "NOT RUN", {"fingerprint": "FAILED", "finish": "SUCCEEDED"}),
    "bad-data-three-attempts": (
        "FAILED",
        TRAINING,
        "NOT RUN",
        {"fingerprint": "FAILED", "finish": "SUCCEEDED"},
    ),
    "four-shards-over-1MiB": (
        "FAILED",
        TRAINING,
        "UNKNOWN",
        dict.fromkeys(TRAINING[:6], "SUCCEEDED"),
    ),
    "gate-refused": (
        "REFUSED",
        TRAINING,
        "CACHED",
        {**CACHED_BUT, "evaluate": "SUCCEEDED", "package": "SKIPPED"},
    ),
    "home-replaced-cached": ("SUCCEEDED", TRAINING, "CACHED", CACHED_BUT),
    "refresh-succeeded": ("SUCCEEDED", REFRESH, "SUCCEEDED", {}),
    "second-attempt-succeeded": ("SUCCEEDED", TRAINING, "SUCCEEDED", {}),
    "step-killed-by-timeout": (
        "FAILED",
        TRAINING,
        "SUCCEEDED",
        {
            **dict.fromkeys(["profile-events", "check-events"], "CACHED"),
            **dict.fromkeys(["build-features", "join-features"], "CACHED"),
            **dict.fromkeys(["evaluate", "package"], "NOT RUN"),
            "train": "FAILED",
        },
    ),
    "study-failed-over-1MiB": (
        "FAILED",
        STUDY,
        "SUCCEEDED",
        dict.fromkeys(["trial", "collect", "finish"], "UNKNOWN"),
    ),
    "succeeded": ("SUCCEEDED", TRAINING, "SUCCEEDED", {}),
    "succeeded-mostly-cached": ("SUCCEEDED", TRAINING, "CACHED", CACHED_BUT),
}
"""Record -> state of the run, its steps, and their state: the usual one, and the others."""


def _type(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def _status(run: str) -> dict[str, Any]:
    answer = _type("status", run, "--json")
    assert answer.exit_code == 0, answer.output
    value: dict[str, Any] = json.loads(answer.stdout)["runs"][0]
    return value


@pytest.mark.parametrize("name", NAMES)
def test_status_shows_the_steps_of_a_recorded_run_in_order(server: FakeServer, name: str) -> None:
    run = _status(put_on(server, load(name)))
    state, steps, usual, others = STATES[name]
    assert run["state"] == state
    assert [step["name"] for step in run["steps"]] == steps
    found = {step["name"]: step["state"] for step in run["steps"]}
    assert found == {step: others.get(step, usual) for step in steps}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"accepted-not-started"}))
def test_without_a_specification_the_steps_are_those_that_the_server_lists(
    server: FakeServer, name: str
) -> None:
    run = _status(put_on(server, load(name, has_spec=False)))
    state, steps, usual, others = STATES[name]
    assert run["state"] == state
    for step in run["steps"]:
        assert step["name"] in steps
        assert step["state"] == others.get(step["name"], usual)


def test_status_is_one_line_a_step(server: FakeServer) -> None:
    run = put_on(server, load("four-shards-over-1MiB"))
    lines = _type("status", run).stdout.splitlines()
    head = "longrec-training  shards4  FAILED  2026-11-30 09:06"
    assert lines[0] == f"{head}  {run}"
    assert lines[2].split() == ["SUCCEEDED", "profile-events", "4", "of", "4", "13", "s"]
    assert lines[7].split() == ["UNKNOWN", "retrieve", "1", "of", "4"]
    assert "stands still since 09:07:44 UTC" in lines[-2]
    assert lines[-1] == f"{server.url}/#/runs/details/{run}"


def test_a_failed_step_shows_the_last_line_of_its_error(server: FakeServer) -> None:
    for name in ("bad-data", "bad-data-three-attempts"):
        run = put_on(server, load(name))
        assert f"51 s {NO_DATASET}" in _type("status", run).stdout.replace("17 s", "51 s")
    killed = _type("status", put_on(server, load("step-killed-by-timeout"))).stdout
    assert "train                           6 s it was stopped" in killed


def test_a_refused_gate_is_a_state_of_its_own(server: FakeServer) -> None:
    shown = _type("status", put_on(server, load("gate-refused"))).stdout
    assert "REFUSED" in shown.splitlines()[0]
    assert "note: the gate refused the model: nothing was packaged" in shown


def test_status_lists_pipeline_name_state_and_age(server: FakeServer) -> None:
    for name in ("gate-refused", "refresh-succeeded"):
        put_on(server, load(name))
    first, second = _type("status").stdout.splitlines()
    assert first.split()[:3] == ["longrec-training", "gate-fails", "REFUSED"]
    assert second.split()[:3] == ["longrec-refresh", "refresh2", "SUCCEEDED"]
    assert first.split()[4] in ("s", "min", "h", "d")


@pytest.mark.parametrize(
    ("name", "step", "text"),
    [
        ("succeeded", "retrieve", "log of longrec-training-vss94(0)"),
        ("succeeded", "finish", "exit-handler-1.onExit(0).finish(0).executor(0)"),
        ("succeeded-mostly-cached", "train", "train did not run: its result is taken from the"),
        ("bad-data", "fingerprint", NO_DATASET),
        ("bad-data", "train", "train never started: fingerprint failed before it"),
        ("bad-data-three-attempts", "fingerprint", NO_DATASET),
        ("second-attempt-succeeded", "fingerprint", "fingerprint.executor(1)"),
        ("gate-refused", "package", "package was skipped: its condition was false"),
        ("step-killed-by-timeout", "train", "waiting for signals"),
        ("four-shards-over-1MiB", "package", "condition-5(0).package(0).executor(0)"),
        ("four-shards-over-1MiB", "finish", "onExit(0).finish(0).executor(0)"),
        (
            "study-failed-over-1MiB",
            "trial",
            "trial never started: its driver failed: failed to resolve inputs: input parameter "
            '"cell" type mismatch: expect STRUCT, got string',
        ),
        ("home-replaced-cached", "package", "package did not run: its result is taken from"),
        ("refresh-succeeded", "publish", "publish(0).executor(0)"),
        ("accepted-not-started", "trial", "trial has not started yet"),
    ],
)
def test_logs_of_a_recorded_run(server: FakeServer, name: str, step: str, text: str) -> None:
    answer = _type("logs", put_on(server, load(name)), step)
    assert answer.exit_code == 0, answer.output
    assert text in answer.stdout
    assert "error_message" not in answer.stdout


def test_the_logs_of_a_loop_are_told_apart(server: FakeServer) -> None:
    shown = _type("logs", put_on(server, load("four-shards-over-1MiB")), "profile-events").stdout
    assert [line for line in shown.splitlines() if line.startswith("==>")] == [
        f"==> profile-events {number} of 4 <==" for number in (1, 2, 3, 4)
    ]
    assert "iteration-iterations(3:3)(0).iteration-item(0).profile-events" in shown


@pytest.mark.parametrize("name", [name for name in NAMES if STATES[name][0] != "PENDING"])
def test_waiting_for_a_recorded_run_ends_with_its_state(
    server: FakeServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = load(name)
    put_on(server, record)
    monkeypatch.setattr("longrec.cli.kubeflow._prepare", _prepared)
    monkeypatch.setattr("pipelines.server.client.Server.submit", _submitted(record.run_id))
    answer = _type("submit", "--data-uri", "s3://bucket/data", "--wait")
    state = STATES[name][0]
    assert answer.exit_code == {"SUCCEEDED": 0, "REFUSED": 3}.get(state, 1)
    if state != "SUCCEEDED":
        assert f"run {record.run_id} ended {state}" in answer.stderr


def _prepared(*arguments: Any) -> Submission:
    return Submission(Path("absent"), {}, "name")


def _submitted(run_id: str) -> Any:
    return lambda server, submission: Submitted(run_id, "longrec", server.runs.page(run_id))


@pytest.mark.parametrize("address", ["v1alpha1", "v2beta1", "ui"])
@pytest.mark.parametrize("has_default", [True, False])
@pytest.mark.parametrize("attempts", [1, 3])
def test_logs_are_those_of_the_last_attempt(
    server: FakeServer, attempts: int, has_default: bool, address: str
) -> None:
    step = Step("train", "RUNNING", attempts=attempts, end="")
    tasks = tasks_of([Step("fingerprint"), step], has_default=has_default)
    server.records["r1"] = {"run_id": "r1", "run_details": {"task_details": tasks}}
    server.logs_at = address
    paths = executor_paths(step, has_default=has_default)
    server.logs = {pod_of(path): f"attempt {number}\n" for number, path in enumerate(paths)}
    assert _type("logs", "r1", "train").stdout == f"attempt {attempts - 1}\n"


def test_a_loop_is_folded_to_one_line(server: FakeServer) -> None:
    states = ["SUCCEEDED", "RUNNING", "CACHED"]
    tasks = tasks_of([Step("publish"), *loop_steps("retrieve", "for-loop-2", states)])
    server.records["r1"] = {
        "run_id": "r1",
        "state": "RUNNING",
        "run_details": {"task_details": tasks},
    }
    lines = _type("status", "r1").stdout.splitlines()
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["SUCCEEDED", "publish", "60", "s"],
        ["RUNNING", "retrieve", "2", "of", "3"],
    ]


def test_a_log_that_never_comes_ends_the_command(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "QUIET_SECONDS", 0.05)
    tasks = tasks_of([Step("train", "RUNNING", end="")])
    server.records["r1"] = {"run_id": "r1", "run_details": {"task_details": tasks}}
    answer = _type("logs", "r1", "train")
    assert answer.exit_code == 1
    assert "the server has no log of step 'train'" in answer.stderr
    assert "NoSuchKey" in answer.stderr
    assert "-l pipeline/runid=r1" in answer.stderr


def test_an_unknown_step_is_named(server: FakeServer) -> None:
    answer = _type("logs", put_on(server, load("refresh-succeeded")), "trane")
    assert answer.exit_code == 1
    assert "has no step 'trane'" in answer.stderr
    assert "publish" in answer.stderr


def test_tasks_without_a_metadata_store_are_read(server: FakeServer) -> None:
    """The form of servers after 2.17: types, parents and pods."""
    tasks = [
        {"task_id": "r", "type": "ROOT", "name": "root", "state": "RUNNING"},
        {
            "task_id": "1",
            "parent_task_id": "r",
            "type": "RUNTIME",
            "name": "train",
            "state": "FAILED",
            "start_time": "2026-01-01T00:00:00Z",
            "end_time": "2026-01-01T00:00:09Z",
            "pods": [
                {"name": "run-train-driver", "type": "DRIVER"},
                {"name": "run-train-main", "type": "EXECUTOR"},
            ],
        },
        {"task_id": "0", "parent_task_id": "r", "type": "RUNTIME", "name": "fingerprint"},
    ]
    tasks[2]["state"] = "CACHED"
    server.records["r1"] = {
        "run_id": "r1",
        "state": "RUNNING",
        "run_details": {"task_details": tasks},
    }
    server.logs_at = "v2beta1"
    server.logs = {"run-train-main": "ValueError: bad weights\n"}
    states = {step["name"]: step["state"] for step in _status("r1")["steps"]}
    assert states == {"train": "FAILED", "fingerprint": "CACHED"}
    assert "9 s ValueError: bad weights" in _type("status", "r1").stdout
    assert _type("logs", "r1", "train").stdout == "ValueError: bad weights\n"


def test_a_server_that_restarts_is_asked_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "5")
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.01)
    run = put_on(server, load("succeeded"))
    for command in (("status", run), ("status",), ("logs", run, "train")):
        server.num_restarting = 3
        answer = _type(*command)
        assert answer.exit_code == 0, answer.output
        assert answer.stderr.count("Asking again for 5 s") == 1


def test_waiting_survives_a_restart_and_then_says_that_the_run_goes_on(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.01)
    record = load("succeeded")
    put_on(server, record)
    submit = ("submit", "--data-uri", "s3://bucket/data", "--wait")

    def restart(server_: Any, submission: Any) -> Any:
        server.num_restarting = count
        return _submitted(record.run_id)(server_, submission)

    monkeypatch.setattr("longrec.cli.kubeflow._prepare", _prepared)
    monkeypatch.setattr("pipelines.server.client.Server.submit", restart)
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "5")
    count = 3
    assert _type(*submit).exit_code == 0
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "0.1")
    count = 1_000
    answer = _type(*submit)
    assert answer.exit_code == 1
    assert f"The run goes on: longrec status {record.run_id}" in answer.stderr
