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


def _add_command(action: str, done: str, summary: str) -> None:
    """Add a command that changes all schedules of a name.

    Args:
        action: name of the command, and of the method of a server's schedules.
        done: what the method did.
        summary: first line of the help.
    """
    examples = f"\b\nExamples:\n  longrec schedules {action} training-ranker"

    @app.command(action, help=f"{summary}\n\n{examples}")
    def change(
        name: Name,
        host: Host = "",
        namespace: Namespace = "",
        experiment: Experiment = "longrec",
        token_file: TokenFile = None,
        cookie_file: CookieFile = None,
        as_json: AsJson = False,
    ) -> None:
        server = connect(host, namespace, token_file, cookie_file)
        found = server.schedules.find(server.experiment_id(experiment), name)
        for schedule in found:
            getattr(server.schedules, action)(schedule)
        lines = [f"{done} {entry.name} {entry.schedule_id}" for entry in found]
        value = {"done": done, "schedules": [dataclasses.asdict(entry) for entry in found]}
        print_result(value, "\n".join(lines), as_json=as_json)


_add_command("pause", "paused", "Start no more runs of a schedule; a run that has begun goes on.")
_add_command(
    "resume", "resumed", "Start runs of a paused schedule again; missed times are not made up for."
)
_add_command("remove", "removed", "Remove a schedule; its runs stay.")


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
