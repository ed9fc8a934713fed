"""The command that serves a model over HTTP: `longrec serve`."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated

import typer

from longrec.cli.options import DEFAULT_WORKDIR, AsJson, Workdir

Port = Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen at.")]
Host = Annotated[str, typer.Option(help="Address to listen at.")]


def serve(
    port: Port = 3000,
    host: Host = "127.0.0.1",
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Serve the champion over HTTP: POST /rank, and a page at /.

    The first packaged model of a work directory is its champion; see `longrec models`.

    \b
    Examples:
      longrec serve
      longrec serve --port 8000 --workdir /tmp/longrec
      curl -s localhost:3000/rank -H 'content-type: application/json' \\
          -d '{"user_id": 1, "candidates": [1, 2, 3]}'
    """
    from longrec.runs.serve import serve_command

    command = serve_command(workdir, host, port)
    if as_json:
        typer.echo(json.dumps({"command": command.arguments, "cwd": str(command.folder)}, indent=2))
    else:
        typer.echo(shlex.join(command.arguments), err=True)
    os.chdir(command.folder)
    os.execvpe(command.arguments[0], command.arguments, command.environment)  # noqa: S606
