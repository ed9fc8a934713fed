"""The command that runs a benchmark of a checkout: `longrec bench`."""

from __future__ import annotations

import os
import subprocess

import typer

from longrec import child
from longrec.cli.options import print_result
from longrec.errors import LongrecError

DESCRIPTION = "Run a benchmark of model/benchmarks and append its rows to results.csv."


def bench(context: typer.Context) -> None:
    """Run a benchmark of model/benchmarks and append its rows to results.csv.

    Further options go to the script.

    \b
    Examples:
      longrec bench
      longrec bench train --help
    """
    from longrec.runs.project import benchmarks
    from longrec.runs.workdir import THREADING

    scripts = benchmarks()
    name, *rest = context.args or ["--help"]
    if name in ("--help", "--json"):
        listing = {script: summary for script, (_, summary) in scripts.items()}
        print_result(listing, _help_text(listing), as_json=name == "--json")
        return
    if name not in scripts:
        raise LongrecError(
            f"no benchmark is called {name}",
            expected=", ".join(scripts),
            fix="See longrec bench --help.",
        )
    path, _ = scripts[name]
    command = child.command(str(path), *rest)
    done = subprocess.run(command, env={**THREADING, **os.environ}, check=False)
    raise typer.Exit(done.returncode)


def _help_text(listing: dict[str, str]) -> str:
    lines = [f"  longrec bench {name:<10} {summary}" for name, summary in listing.items()]
    options = "Options of one: longrec bench NAME --help"
    return "\n".join([DESCRIPTION, "", *lines, "", options])
