"""A private Redis: the real server on a free loopback port, without persistence."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running(directory: Path, port: int | None = None) -> Iterator[str]:
    """Yield host:port of a server; skip the test if redis-server is not installed.

    Args:
        directory: of the server.
        port: None for a free one.
    """
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    server, port = _start(directory, port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()  # one that a test has suspended too
        server.wait(10)


def _start(directory: Path, port: int | None) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server that answers; try again when another process took the free port."""
    for _ in range(5):
        chosen = port or _free_port()
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(chosen),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(directory),
        ]
        server = subprocess.Popen(
            ["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < limit:
            if _answers(chosen):
                return server, chosen
            time.sleep(0.05)
        server.kill()
        server.wait(10)
    raise AssertionError("redis-server does not answer")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
