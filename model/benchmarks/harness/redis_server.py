"""A Redis server of our own on a free port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
START_SECONDS = 5.0
POLL_SECONDS = 0.05


class RedisServer:
    """A Redis server that stores its data in an append-only file.

    Args:
        folder: for the file; it is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = _free_port()
        self.address = f"{HOST}:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server with the data of its folder, and wait until it answers."""
        options = {
            "bind": HOST,
            "port": str(self.port),
            "save": "",
            "appendonly": "yes",
            "dir": str(self.folder),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, self.port), timeout=1),
            ):
                return
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait()

    def stop_between(self, first: float, last: float) -> Callable[[float], None]:
        """Return a function of the time that stops the server at `first` and starts it at `last`.

        Both are in seconds.
        """
        planned = [(first, self.stop), (last, self.start)]

        def act(second: float) -> None:
            if planned and second >= planned[0][0]:
                _, action = planned.pop(0)
                action()

        return act


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
