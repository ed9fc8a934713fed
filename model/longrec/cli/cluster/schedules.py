"""The commands for schedules of a Kubeflow Pipelines server: list, pause, resume, remove."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from longrec.cli.cluster.connection import (
    CookieFile,
    Experiment,
    Host,
    Namespace,
    TokenFile,
    connect,
    connect_patiently,
)
from longrec.cli.cluster.runs import aligned
from longrec.cli.options import AsJson, print_result

app = typer.Typer(rich_markup_mode=None)
Name = Annotated[str, typer.Argument(help="Name or id of a schedule; see longrec schedules.")]


@app.callback(invoke_without_command=True)
def schedules(
    context: typer.Context,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules of a Kubeflow Pipelines server; pause, resume or remove them.

    \b
    Examples:
      longrec schedules
      longrec schedules pause training-ranker
      longrec schedules --experiment nightly --json
    """
    if context.invoked_subcommand is not None:
        return
    server = connect_patiently(host, namespace, token_file, cookie_file)
    found = server.schedules.all_of(server.experiment_id(experiment))
    text = "\n".join(_lines(found)) or f"no schedule in experiment {experiment}"
    value = {"schedules": [dataclasses.asdict(entry) for entry in found]}
    print_result(value, text, as_json=as_json)


@app.command()
def pause(
    name: Name,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Start no more runs of a schedule; a run that has begun goes on.

    \b
    Examples:
      longrec schedules pause training-ranker
    """
    server = connect(host, namespace, token_file, cookie_file)
    _change(server, experiment, name, "pause", as_json=as_json)


@app.command()
def resume(
    name: Name,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Start runs of a paused schedule again; missed times are not made up for.

    \b
    Examples:
      longrec schedules resume training-ranker
    """
    server = connect(host, namespace, token_file, cookie_file)
    _change(server, experiment, name, "resume", as_json=as_json)


@app.command()
def remove(
    name: Name,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove a schedule; its runs stay.

    \b
    Examples:
      longrec schedules remove training-ranker
    """
    server = connect(host, namespace, token_file, cookie_file)
    _change(server, experiment, name, "remove", as_json=as_json)


DONE = {"pause": "paused", "resume": "resumed", "remove": "removed"}
"""Method of a server's schedules -> what it did."""


def _change(server: Any, experiment: str, name: str, action: str, *, as_json: bool) -> None:
    """Change all schedules of a name and print what was done."""
    found = server.schedules.find(server.experiment_id(experiment), name)
    for schedule in found:
        getattr(server.schedules, action)(schedule)
    lines = [f"{DONE[action]} {entry.name} {entry.schedule_id}" for entry in found]
    value = {"done": DONE[action], "schedules": [dataclasses.asdict(entry) for entry in found]}
    print_result(value, "\n".join(lines), as_json=as_json)


def _lines(schedules: Sequence[Any]) -> list[str]:
    rows = [
        (
            entry.name,
            entry.pipeline,
            entry.cron,
            "paused" if entry.is_paused else "on",
            entry.schedule_id,
        )
        for entry in schedules
    ]
    return aligned(rows)
