"""The command that prints the environment of a work directory: `longrec env`."""

from __future__ import annotations

import json
import shlex

import typer

from longrec.cli.options import DEFAULT_WORKDIR, AsJson, ExistingWorkdir


def env(workdir: ExistingWorkdir = DEFAULT_WORKDIR, as_json: AsJson = False) -> None:
    """Print the environment variables with which bentoml works on a work directory.

    \b
    Examples:
      longrec env --workdir /srv/longrec
      eval "$(longrec env)" && bentoml list
      eval "$(longrec env)" && bentoml serve bento.service:Ranker
    """
    from longrec.runs.workdir import workdir_variables

    variables = workdir_variables(workdir)
    if as_json:
        typer.echo(json.dumps(variables, indent=2))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
