"""The command that serves the models of a work directory over HTTP."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

from longrec.data.files import read_json_object
from longrec.errors import LongrecError
from longrec.release import registry
from longrec.runs.project import INSTALL_FIX, find_root
from longrec.runs.summary import SUMMARY_NAME
from longrec.runs.workdir import run_environment

SERVICE = "bento.service:Ranker"


class ServeError(LongrecError):
    """A work directory cannot be served."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServeCommand:
    """A command line, the folder to start it in, and its environment."""

    arguments: list[str]
    folder: Path
    environment: dict[str, str]


def serve_command(workdir: Path, host: str, port: int) -> ServeCommand:
    """Return the command that serves a work directory.

    It serves and follows the champion of the registry. Without a champion, it serves the model of
    the newest run.

    Raises:
        ServeError: no run has packaged a model, bentoml is not installed, or the port is in use.
    """
    newest_tag = _packaged_tags(workdir)[-1]
    program = Path(sys.executable).with_name("bentoml")
    if not program.exists():
        raise ServeError("bentoml is not installed", fix=INSTALL_FIX)
    check_free(host, port)
    arguments = [str(program), "serve", SERVICE, "--host", host, "--port", str(port)]
    environment = run_environment(workdir)
    if registry.read_registry(workdir).champion is None:
        environment["LONGREC_MODEL"] = newest_tag
    return ServeCommand(arguments, find_root(), environment)


def check_free(host: str, port: int) -> None:
    """Check that a server can listen at an address; bentoml itself would end in a traceback.

    Raises:
        ServeError: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ServeError(
            f"nothing can listen at {host}:{port}",
            found=error.strerror or error,
            fix="Choose another --port or --host.",
        ) from error


def _packaged_tags(workdir: Path) -> list[str]:
    """Return the tags of all packaged models, oldest first."""
    summaries = [
        read_json_object(path) for path in sorted((workdir / "runs").glob(f"[0-9]*/{SUMMARY_NAME}"))
    ]
    tags: list[str] = [summary["bento_tag"] for summary in summaries if summary["bento_tag"]]
    if not tags:
        raise ServeError(
            f"{workdir} holds no packaged model",
            found=f"{len(summaries)} finished runs",
            fix="Make one with: longrec run",
        )
    return tags
