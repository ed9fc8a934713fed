"""The commands of a page about the service, executed as its reader would, beside each other."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from longrec.data.files import write_json
from longrec.release.bento_server import stop_server
from tests.bento.operated_service import eventually
from tests.clients.page import ADDRESS, Section
from tests.conftest import PATIENT, ROOT, VERSION, ServedWorld

SERVE = "longrec serve"


class Reader:
    """A reader of a page: a folder with the work directory `.longrec`, and a shell.

    Args:
        world: its service answers from a copy of this one.
        folder: empty.
        addresses: addresses of the page, and what to use in their place.
    """

    def __init__(
        self,
        world: ServedWorld,
        folder: Path,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._replaced = {
            **(addresses or {}),
            ADDRESS: self.url,
            ADDRESS.removeprefix("http://"): self.url.removeprefix("http://"),
            SERVE: f"{SERVE} --port {self.port}",
        }
        python = Path(sys.executable).parent
        self.environment = {
            **world.environment,
            **PATIENT,
            "LONGREC_ROOT": str(ROOT),
            "PATH": f"{python}:{os.environ['PATH']}",
        }
        del self.environment["LONGREC_HOME"]
        shutil.copytree(world.workdir, folder / ".longrec", symlinks=True)
        run = folder / ".longrec" / "runs" / "20260101T000000-tests"
        run.mkdir(parents=True)
        write_json(run / "summary.json", {"bento_tag": f"longrec-ranker:{VERSION}"})

    def run(self, section: Section, folder: Path | None = None) -> str:
        """Return what the commands of a section print; its programs lie in the folder."""
        for name, text in section.files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._text(section)],
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serve(self, section: Section) -> Iterator[httpx.Client]:
        """Yield a client of the service that the command of a section starts."""
        text = self._text(section)
        assert SERVE in text
        with open(self.folder / "serve.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["bash", "-c", text],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with httpx.Client(base_url=self.url, timeout=60) as client:
                    eventually(lambda: process.poll() is not None or _is_ready(client))
                    assert process.poll() is None, (self.folder / "serve.log").read_text()
                    yield client
            finally:
                stop_server(process)

    def _text(self, section: Section) -> str:
        text = "\n".join(section.commands)
        for name, value in self._replaced.items():
            text = text.replace(name, value)
        return text


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
