"""The outcome of a run is always a file; a webhook that fails does not fail the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tenacity

from longrec.runs import outcome
from longrec.runs.record.attempts import recorded
from pipelines.server.runs import OUTCOME

FACTS = {
    "pipeline": "longrec-training",
    "run_id": "r1",
    "state": "FAILED",
    "step": "train",
    "error": "out of memory",
    "link": "https://kubeflow/pipeline/#/runs/details/0b5d3e63",
}
TOLD = {
    "pipeline": "longrec-training",
    "run_id": "",
    "job_id": "0b5d3e63",
    "data_uri": "s3://logs/dataset",
    "state": "RUNNING",
    "error": None,
    "workflow": "longrec-training-vss94",
}
"""What a Kubeflow server tells the last step of a run."""


class Hook(ThreadingHTTPServer):
    """Answers with the next of `answers`, then with 200; remembers what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.got: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(outcome._send.retry, "wait", tenacity.wait_none())
    for name in (outcome.VARIABLE, outcome.UI_VARIABLE, "LONGREC_HOME", "LONGREC_RUN"):
        monkeypatch.delenv(name, raising=False)
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def _url(hook: Hook) -> str:
    return f"http://127.0.0.1:{hook.server_port}/secret-path"


def test_the_file_and_the_message_are_the_same(hook: Hook, tmp_path: Path) -> None:
    report = outcome.announce(tmp_path / "outcome", _url(hook), FACTS)
    assert report.delivered
    assert report.state == "FAILED"
    assert hook.got == [json.loads((tmp_path / "outcome").read_text())]
    assert hook.got[0]["text"] == (
        "longrec-training r1: FAILED in train (out of memory) "
        "https://kubeflow/pipeline/#/runs/details/0b5d3e63"
    )
    assert hook.got[0]["finished"].endswith("+00:00")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the id of a run with a record, whose web interface is known."""
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path))
    monkeypatch.setenv("LONGREC_RUN", "0b5d3e63")
    monkeypatch.setenv("LONGREC_UI", "https://kubeflow/pipeline/")
    return "0b5d3e63"


def test_a_message_names_pipeline_run_step_error_and_link(
    hook: Hook, tmp_path: Path, run: str
) -> None:
    with pytest.raises(MemoryError), recorded("train", {}):
        raise MemoryError("7 GiB")
    report = outcome.conclude(tmp_path / "outcome", _url(hook), TOLD)
    assert report.state == "FAILED"
    assert hook.got[0]["step"] == "train"
    assert hook.got[0]["told"] == "RUNNING"
    assert hook.got[0]["text"] == (
        f"longrec-training {run}: FAILED in train (MemoryError: 7 GiB) "
        f"https://kubeflow/pipeline/#/runs/details/{run}"
    )


def test_the_log_of_the_last_step_holds_the_outcome_for_longrec_status(
    hook: Hook, tmp_path: Path, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    with recorded("register", {}):
        pass
    with caplog.at_level("INFO"):
        outcome.conclude(tmp_path / "outcome", "", TOLD)
    line = f"[KFP Executor 2026-11-30 08:45:42,871 INFO]: {caplog.records[-1].getMessage()}\n"
    match = OUTCOME.search(f"before\n{line}after\n")
    assert match is not None
    assert json.loads(match["json"])["steps"] == {"register": "SUCCEEDED"}


def test_a_lost_work_directory_is_an_unknown_outcome(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path / "lost"))
    report = outcome.conclude(tmp_path / "outcome", _url(hook), TOLD)
    assert report.state == "UNKNOWN"
    assert "the work directory was lost" in hook.got[0]["text"]


def test_an_error_that_the_platform_tells_is_kept(hook: Hook, tmp_path: Path) -> None:
    """kfp's local runner tells it; so does the step train of a record without steps."""
    told = {**TOLD, "state": "FAILED", "error": "train(0): deadline"}
    outcome.conclude(tmp_path / "outcome", _url(hook), told)
    assert hook.got[0]["error"] == "train(0): deadline"


def test_the_address_may_come_from_the_environment(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(outcome.VARIABLE, _url(hook))
    assert outcome.announce(tmp_path / "outcome", "", FACTS).delivered
    assert len(hook.got) == 1


def test_without_an_address_there_is_the_file_alone(hook: Hook, tmp_path: Path) -> None:
    assert not outcome.announce(tmp_path / "outcome", "", FACTS).delivered
    assert json.loads((tmp_path / "outcome").read_text())["state"] == "FAILED"


def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_not(
    hook: Hook, tmp_path: Path
) -> None:
    hook.answers = [503, 500]
    assert outcome.announce(tmp_path / "outcome", _url(hook), FACTS).delivered
    assert len(hook.got) == 3
    hook.answers = [404]
    report = outcome.announce(tmp_path / "outcome", _url(hook), FACTS)
    assert report.delivered is False
    assert report.problem == "it answered 404"
    assert len(hook.got) == 4


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/secret-path", "file:///etc/passwd"])
def test_nobody_there_is_a_warning_without_the_address_and_no_error(
    address: str, hook: Hook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = outcome.announce(tmp_path / "outcome", address, FACTS)
    assert not report.delivered
    assert report.problem
    assert (tmp_path / "outcome").is_file()
    assert "the run FAILED" in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize(
    "address",
    ["http://host:port/x", "http://a b/x", "http://[bad/x", "http://127.0.0.1:1/secret path"],
)
def test_a_malformed_address_is_a_warning_and_no_error(
    address: str, hook: Hook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = outcome.announce(tmp_path / "outcome", address, FACTS)
    assert not report.delivered
    assert report.problem
    assert "the run FAILED" in caplog.text
    assert "secret" not in caplog.text


def test_an_answer_that_is_not_http_is_a_warning_and_no_error(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "do_POST", lambda handler: handler.wfile.write(b"hello\n"))
    assert outcome.announce(tmp_path / "outcome", _url(hook), FACTS).problem


def test_a_refusal_is_announced_once_with_the_bounds_and_the_remedy(
    hook: Hook, tmp_path: Path, run: str
) -> None:
    evaluation, missed = _refused(tmp_path)
    names = {"pipeline": "longrec-training", "run_id": run, "data_uri": "d"}
    with recorded("refuse", {}):
        report = outcome.refuse(tmp_path / "refused", _url(hook), evaluation, names)
    assert report.state == "REFUSED"
    assert hook.got == []
    assert json.loads((tmp_path / "refused").read_text())["gate"]["missed"] == [missed]
    assert outcome.conclude(tmp_path / "outcome", _url(hook), TOLD).state == "REFUSED"
    (message,) = hook.got
    assert message["gate"]["missed"] == [missed]
    assert message["gate"]["package"] == f"longrec package --run {run} --force"
    assert f"REFUSED in evaluate ({missed['sentence']})" in message["text"]


def test_without_a_record_the_refusal_is_announced_by_its_step(hook: Hook, tmp_path: Path) -> None:
    evaluation, missed = _refused(tmp_path)
    names = {"pipeline": "longrec-training", "run_id": "r1", "data_uri": "d"}
    assert outcome.refuse(tmp_path / "outcome", _url(hook), evaluation, names).delivered
    text = f"longrec-training r1: REFUSED in evaluate ({missed['sentence']})"
    assert hook.got[0]["text"] == text


def _refused(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write the evaluation of a model that the gate refused; return its path and the bound."""
    sentence = "The AUC, 0.5, is not at least 0.7: it misses gate.min_auc by 0.2."
    missed = {"name": "min_auc", "value": 0.5, "missed_by": 0.2, "sentence": sentence}
    criteria = [{**missed, "passed": False}, {**missed, "name": "max_ece", "passed": True}]
    gate = {"passed": False, "reasons": [sentence], "criteria": criteria}
    (folder / "metrics.json").write_text(json.dumps({"gate": gate}))
    return folder, missed
