"""MLflow's own server with SQLite, from the environment that `make tools` installs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = ROOT / ".tools" / "bin" / "mlflow"
START_SECONDS = 120.0


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield the address of a server that keeps its data in a folder."""
    if not PROGRAM.is_file():
        pytest.skip("the server of MLflow is not installed (make tools)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": f"{folder}/artifacts",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    words = [word for option in options.items() for word in option]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            [str(PROGRAM), "server", *words],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, server)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        assert server.poll() is None, "the server ended"
        time.sleep(0.2)
    raise TimeoutError(address)
