"""Run `bentoml serve` in a process of its own and send it requests.

This module does not import BentoML.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longrec import child
from longrec.errors import LongrecError

HOST = "127.0.0.1"
READY_SECONDS = 300.0
"""Longest wait until a server is ready."""
STOP_SECONDS = 30.0
"""Longest wait for a server to stop before it is killed."""
ANSWER_SECONDS = 90.0
"""Longest wait for an answer."""
POLL_SECONDS = 0.2
NOISE = ("nanobind:", " - ")
"""Starts of log lines that say nothing about an error: nanobind lists leaked objects at exit."""


class PackagingError(LongrecError):
    """A bento cannot be built or served."""


@contextlib.contextmanager
def serve_bento(
    target: str | Path,
    *,
    workdir: str | Path,
    store: str | Path | None = None,
    folder: str | Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, int]]:
    """Yield host and port of a ready `bentoml serve`; it stops when the block ends.

    It also stops if this process is killed.

    Args:
        target: an exported bento (an absolute path), a tag, or `module:Service`.
        workdir: LONGREC_HOME.
        store: BENTOML_HOME; None for an empty one, so a folder can use only its own content.
        folder: current directory of the server; None for an empty one.
        variables: added to the environment of this process.

    Raises:
        PackagingError: it does not become ready.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="longrec-serve-") as scratch:
        environment = {
            **os.environ,
            "BENTOML_HOME": str(store or f"{scratch}/bentoml"),
            "LONGREC_HOME": str(Path(workdir).resolve()),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        # The target decides which model is served.
        environment.pop("LONGREC_MODEL", None)
        environment |= variables or {}
        arguments = ["serve", str(target), "--host", HOST, "--port", str(port)]
        log_path = Path(scratch) / "log"
        with open(log_path, "w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                child.command("-m", "bentoml", *arguments),
                env=environment,
                cwd=folder or scratch,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _wait_until_ready(process, port, log_path)
                yield HOST, port
            finally:
                stop_server(process)


def stop_server(process: subprocess.Popen[Any]) -> None:
    """Stop a `bentoml serve` and its workers: by SIGTERM, killed after STOP_SECONDS."""
    import psutil  # type: ignore[import-untyped]

    try:
        # Workers have sessions of their own, so the process group does not reach them.
        workers = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def post_rank(
    host: str,
    port: int,
    body: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the answer of a service to POST /rank.

    Args:
        host, port: of the service.
        body: JSON form of the request.

    Raises:
        PackagingError: the status is not 200.
    """
    headers = {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection(
        host,
        port,
        timeout=ANSWER_SECONDS,
    )
    with contextlib.closing(connection):
        connection.request("POST", "/rank", json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    if response.status != 200:
        raise PackagingError(
            "the service refused a request",
            found=f"{response.status} {text.decode(errors='replace')}",
            expected="200",
        )
    answer: dict[str, Any] = json.loads(text)
    return answer


def last_log_line(text: str) -> str:
    """Return the last line of a log that is not noise; empty if there is none."""
    for line in reversed(text.splitlines()):
        if line.strip() and not line.startswith(NOISE):
            return line.strip()
    return ""


def _wait_until_ready(
    process: subprocess.Popen[Any],
    port: int,
    log_path: Path,
) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PackagingError("the service did not start", found=_last_line_of(log_path))
        if _is_ready(port):
            return
        time.sleep(POLL_SECONDS)
    raise PackagingError(
        f"the service was not ready after {READY_SECONDS:.0f} s",
        found=_last_line_of(log_path),
    )


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line_of(log_path: Path) -> str:
    return last_log_line(log_path.read_text(encoding="utf-8", errors="replace"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
