"""The verdict on a run by its record, and by its workflow where that can be read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from longrec.runs.record.attempts import Attempt
from longrec.runs.record.nodes import Node
from longrec.runs.record.verdict import LAST_STEPS, NO_RECORD, Verdict, judge
from longrec.runs.steps import STEPS

TRAINING = "longrec-training"
DEADLINE = "Pod was active on the node longer than the specified deadline"
GATE = {"missed": [{"name": "min_auc", "sentence": "The AUC, 0.5, is not at least 0.7."}]}
HANDLER = "longrec-training-85ffv(0).root(0).exit-handler-1"


def _attempt(step: str, minute: int, **facts: Any) -> Attempt:
    started = f"2026-11-30T08:{minute}:07.000000+00:00"
    return Attempt(step, **{"item": "", "started": started, "ended": started, **facts})


def _record(*steps: str) -> list[Attempt]:
    return [_attempt(step, 30 + number) for number, step in enumerate(steps)]


def _nodes(handler: str, *steps: tuple[str, str, str]) -> list[Node]:
    """Return a workflow: the state of its exit handler, and steps with state and message."""
    now = datetime.datetime(2026, 11, 30, 8, 45, tzinfo=datetime.UTC)
    nodes = [Node(HANDLER, handler), Node(f"{HANDLER}(0)", handler)]
    for name, state, message in steps:
        executor = "Skipped" if state == "Cached" else state
        own = "Succeeded" if state == "Cached" else state
        nodes += [
            Node(f"{HANDLER}(0).{name}-driver", "Succeeded", now, now),
            Node(f"{HANDLER}(0).{name}", own, now, now),
            Node(f"{HANDLER}(0).{name}(0).executor", executor, now, now, message),
        ]
    return nodes


KILLED = [*_record("fingerprint", "publish"), _attempt("train", 43, ended="")]


def test_a_killed_step_started_and_never_ended() -> None:
    found = judge(TRAINING, "RUNNING", KILLED, None)
    assert (found.state, found.step) == ("FAILED", "train")
    assert found.error == "started 08:43, never ended"


def test_the_workflow_knows_why_a_step_was_killed() -> None:
    nodes = _nodes("Failed", ("publish", "Succeeded", ""), ("train", "Failed", DEADLINE))
    found = judge(TRAINING, "RUNNING", KILLED, nodes)
    assert (found.state, found.step) == ("FAILED", "train")
    assert found.error == f"started 08:43, never ended: {DEADLINE}"


def test_a_refused_gate_is_a_state_of_its_own_with_its_bound() -> None:
    refuse = _attempt("refuse", 50, facts={"error": GATE["missed"][0]["sentence"], "gate": GATE})
    record = [*_record("fingerprint", "publish", "evaluate"), refuse]
    nodes = _nodes("Succeeded", ("evaluate", "Succeeded", ""), ("refuse", "Succeeded", ""))
    for told, seen in (("RUNNING", None), ("COMPLETE", None), ("RUNNING", nodes)):
        found = judge(TRAINING, told, record, seen)
        assert (found.state, found.step) == ("REFUSED", "evaluate")
        assert found.error == "The AUC, 0.5, is not at least 0.7."
        assert found.gate == GATE
    lost = judge(TRAINING, "RUNNING", [], nodes)
    assert (lost.state, lost.error) == ("REFUSED", "the gate refused the model")


def test_a_run_from_the_cache_succeeds() -> None:
    """Only fingerprint, publish and register run; the server tells RUNNING."""
    record = _record("fingerprint", "publish", "register")
    assert judge(TRAINING, "RUNNING", record, None) == Verdict(
        "SUCCEEDED", steps=dict.fromkeys(["fingerprint", "publish", "register"], "SUCCEEDED")
    )
    nodes = _nodes("Succeeded", ("train", "Cached", ""), ("register", "Succeeded", ""))
    found = judge(TRAINING, "RUNNING", record, nodes)
    assert found.state == "SUCCEEDED"
    assert found.steps == {"train": "CACHED", "register": "SUCCEEDED"}


def test_the_runs_of_cached_results_are_named() -> None:
    record = [
        _attempt("publish", 30, sources={"join-features": "r1", "fingerprint": "r2"}),
        _attempt("fingerprint", 31),
    ]
    assert judge(TRAINING, "RUNNING", record, None).sources == {"join-features": "r1"}


def test_a_run_whose_last_step_never_started_has_failed() -> None:
    """A driver that fails leaves no record, and the server tells RUNNING."""
    found = judge("longrec-study", "RUNNING", _record("fingerprint", "publish", "plan"), None)
    assert found.state == "FAILED"
    assert found.error == "collect never started; see longrec status RUN"
    driver = [
        *_nodes("Failed", ("plan", "Succeeded", "")),
        Node(f"{HANDLER}(0).trial-driver", "Failed", message="Error (exit code 1)"),
        Node(f"{HANDLER}(0).trial", "Omitted"),
    ]
    found = judge("longrec-study", "RUNNING", [], driver)
    assert (found.state, found.step) == ("FAILED", "trial")
    assert found.error == "it never started: its driver failed: Error (exit code 1)"


def test_a_lost_work_directory_is_told_and_not_guessed() -> None:
    found = judge(TRAINING, "RUNNING", [], None)
    assert (found.state, found.error) == ("UNKNOWN", NO_RECORD)
    assert judge(TRAINING, "COMPLETE", [], None).state == "SUCCEEDED"
    assert judge(TRAINING, "FAILED", [], None).state == "FAILED"
    nodes = _nodes("Succeeded", ("register", "Succeeded", ""))
    assert judge(TRAINING, "RUNNING", [], nodes).state == "SUCCEEDED"


def test_a_failed_attempt_that_was_repeated_is_no_failure() -> None:
    first = _attempt("retrieve", 30, error="ConnectionError: reset")
    second = _attempt("retrieve", 31)
    record = [first, second, _attempt("register", 40)]
    assert judge(TRAINING, "RUNNING", record, None).state == "SUCCEEDED"
    assert judge(TRAINING, "RUNNING", [second, first], None).step == "retrieve"


def test_the_error_of_a_failed_step_is_that_of_the_record() -> None:
    record = [_attempt("fingerprint", 30, error="there is no dataset")]
    nodes = _nodes("Failed", ("fingerprint", "Failed", "Error (exit code 1)"))
    for told, seen in (("FAILED", None), ("RUNNING", None), ("FAILED", nodes)):
        found = judge(TRAINING, told, record, seen)
        assert (found.step, found.error) == ("fingerprint", "there is no dataset")


@pytest.mark.parametrize("told", ["CANCELED", "CANCELLED"])
def test_a_cancelled_run_is_cancelled(told: str) -> None:
    assert judge(TRAINING, told, KILLED, None).state == "CANCELLED"
    assert judge(TRAINING, told, KILLED, _nodes("Failed")).state == "CANCELLED"


def test_a_failure_outside_the_steps_is_one() -> None:
    found = judge(TRAINING, "RUNNING", _record("register"), _nodes("Error"))
    assert found.state == "FAILED"
    assert "no step failed, but the pipeline did" in found.error


def test_the_steps_that_end_a_pipeline_are_never_cached() -> None:
    ends = {name for names in LAST_STEPS.values() for name in names}
    assert {name for name in ends if STEPS[name].is_cached} == set()
