"""Retries: transient faults are tried again for a bounded time, all others fail at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import urllib3
from kubernetes.client import ApiException
from pyarrow import fs

from longrec import retries
from longrec.data import location
from longrec.errors import DataError


class Calls:
    """A function that raises its errors, one in each call, and then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as in a step, with short pauses."""
    monkeypatch.setenv("LONGREC_RETRY_SECONDS", "5")
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MAX_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize(
    "text",
    [
        "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect",
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
        "AWS Error SLOW_DOWN during PutObject operation: reduce your request rate",
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted)",
        "[Errno 104] Connection reset by peer",
    ],
)
def test_a_fault_of_a_moment_is_tried_again(step: None, text: str) -> None:
    calls = Calls(OSError(text), ConnectionResetError(), TimeoutError())
    assert retries.retried(calls) == "done"
    assert calls.count == 4


def api_error(status: int) -> Exception:
    """Return an error of Kubeflow's SDK whose cause is an answer of Kubernetes."""
    error = RuntimeError("Failed to get TrainJob")
    error.__cause__ = ApiException(status=status)
    return error


def test_redis_and_kubernetes_are_tried_again_too(step: None) -> None:
    faults = [redis.exceptions.ConnectionError("refused"), redis.exceptions.TimeoutError()]
    calls = Calls(*faults, api_error(503), urllib3.exceptions.ProtocolError("cut off"))
    assert retries.retried(calls) == "done"
    assert calls.count == 5


def test_what_kubernetes_forbids_fails_at_once(step: None) -> None:
    calls = Calls(api_error(403))
    with pytest.raises(RuntimeError):
        retries.retried(calls)
    assert calls.count == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation"),
        OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation"),
        FileNotFoundError("part-00500.parquet"),
        PermissionError("/var/lib/longrec"),
        ValueError("Parquet magic bytes not found in footer"),
        DataError("duplicate events"),
    ],
)
def test_what_would_fail_again_fails_at_once(step: None, error: Exception) -> None:
    calls = Calls(error)
    with pytest.raises(type(error)):
        retries.retried(calls)
    assert calls.count == 1


def test_the_time_is_bounded(step: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_RETRY_SECONDS", "0.05")
    calls = Calls(*[ConnectionError("no one there")] * 1_000)
    with pytest.raises(ConnectionError, match="no one there"):
        retries.retried(calls)
    assert 1 < calls.count < 1_000


def test_outside_a_step_there_is_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGREC_RETRY_SECONDS", raising=False)
    calls = Calls(ConnectionError())
    with pytest.raises(ConnectionError):
        retries.retried(calls)
    assert calls.count == 1


def test_every_request_to_a_store_is_tried_again(
    step: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of them fails once: opening, listing, reading and copying."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"name": "x"}')
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(location, "_file_system_of", lambda uri: (store, "data"))
    failures = 0

    def flaky(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal failures
        failures += 1
        fail_once = Calls(ConnectionError())

        def attempt() -> Any:
            fail_once()
            return call(*arguments, **options)

        return retries.retried(attempt)

    monkeypatch.setattr(location, "retried", flaky)
    assert location.fingerprint("s3://bucket/data")
    assert location.read_json("s3://bucket/data", "dataset.json") == {"name": "x"}
    with location.local_directory("s3://bucket/data") as copy:
        assert (copy / "dataset.json").is_file()
    assert failures == 6
