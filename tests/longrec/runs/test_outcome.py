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

FACTS = {
    "pipeline": "longrec-training",
    "run_id": "r1",
    "state": "FAILED",
    "error": "step train failed",
}


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
    monkeypatch.delenv(outcome.VARIABLE, raising=False)
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
    assert hook.got[0]["text"] == "longrec-training r1: FAILED (step train failed)"
    assert hook.got[0]["finished"].endswith("+00:00")


@pytest.mark.parametrize(
    ("server", "state"),
    [
        ("COMPLETE", "SUCCEEDED"),
        ("CACHED", "SUCCEEDED"),
        ("CANCELED", "CANCELLED"),
        ("FAILED", "FAILED"),
        ("RUNNING", "RUNNING"),
    ],
)
def test_the_states_of_a_kubeflow_server_are_told_as_the_runs(
    hook: Hook, tmp_path: Path, server: str, state: str
) -> None:
    """A server tells its metadata store's state, and nothing of the error."""
    report = outcome.announce(
        tmp_path / "outcome", _url(hook), {**FACTS, "state": server, "error": None}
    )
    assert report.state == state
    assert hook.got[0]["state"] == state
    assert hook.got[0]["error"] == ""
    assert hook.got[0]["text"] == f"longrec-training r1: {state}"


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


def test_a_refusal_names_the_bounds_and_the_remedy(hook: Hook, tmp_path: Path) -> None:
    sentence = "The AUC, 0.5, is not at least 0.7: it misses gate.min_auc by 0.2."
    missed = {"name": "min_auc", "value": 0.5, "missed_by": 0.2, "sentence": sentence}
    criteria = [{**missed, "passed": False}, {**missed, "name": "max_ece", "passed": True}]
    gate = {"passed": False, "reasons": [sentence], "criteria": criteria}
    (tmp_path / "metrics.json").write_text(json.dumps({"gate": gate}))
    names = {"pipeline": "longrec-training", "run_id": "r1", "data_uri": "d"}
    report = outcome.announce_refusal(tmp_path / "outcome", _url(hook), tmp_path, names)
    assert report.state == "REFUSED"
    assert hook.got[0]["gate"]["missed"] == [missed]
    assert hook.got[0]["gate"]["package"] == "longrec package --run r1 --force"
    assert hook.got[0]["text"] == f"longrec-training r1: REFUSED ({sentence})"
