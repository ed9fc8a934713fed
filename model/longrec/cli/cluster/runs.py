"""The commands for runs of a Kubeflow Pipelines server: status and logs; and waiting for a run."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from longrec.cli.cluster.connection import (
    CookieFile,
    Experiment,
    Host,
    Namespace,
    TokenFile,
    connect_patiently,
    patience_seconds,
    poll_seconds,
)
from longrec.cli.options import REFUSED_EXIT_CODE, AsJson, print_result
from longrec.errors import LongrecError

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
REFUSED = "REFUSED"
QUIET_STATES = (
    "WAITING",
    "NOT RUN",
    "SKIPPED",
    "UNKNOWN",
)
"""States of steps that --wait does not print."""
MINUTE_LENGTH = 16
"""Characters of an ISO time down to the minute."""
AGE_UNITS = (
    ("d", 86_400),
    ("h", 3_600),
    ("min", 60),
    ("s", 1),
)
STATE_WIDTH = 10
STEP_WIDTH = 26


def status(
    run_id: Annotated[str, typer.Argument(help="Id of a run; default the newest runs.")] = "",
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the status of a run on a Kubeflow Pipelines server, or the newest runs.

    \b
    Examples:
      longrec status --host http://localhost:8080
      longrec status 0f3c7f0e-8f5a-4f0e-a8b4-6d1f0f6a9d11
    """
    server = connect_patiently(
        host,
        namespace,
        token_file,
        cookie_file,
    )
    if run_id:
        runs = [server.runs.explained(run_id)]
        text = "\n".join(_run_lines(runs[0]))
    else:
        runs = server.recent(experiment)
        text = "\n".join(_list_lines(runs)) or f"no run in experiment {experiment}"
    print_result({"runs": [dataclasses.asdict(run) for run in runs]}, text, as_json=as_json)


def logs(
    run_id: Annotated[str, typer.Argument(help="Id of the run; see longrec status.")],
    step: Annotated[str, typer.Argument(help="Name of a step, for example train.")],
    host: Host = "",
    namespace: Namespace = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the output of a step of a run on a Kubeflow Pipelines server.

    \b
    Examples:
      longrec logs 0f3c7f0e-8f5a-4f0e-a8b4-6d1f0f6a9d11 train
    """
    server = connect_patiently(
        host,
        namespace,
        token_file,
        cookie_file,
    )
    found = server.runs.logs(run_id, step, every_seconds=poll_seconds())
    titles = [f"==> {log.title} <==\n" if len(found) > 1 else "" for log in found]
    text = "\n".join(
        title + log.text.rstrip("\n") for title, log in zip(titles, found, strict=True)
    )
    value = {"run_id": run_id, "step": step, "log": text}
    print_result(value, text, as_json=as_json)
    if any(log.is_cut for log in found):
        raise LongrecError(
            f"the log of step '{step}' is not whole",
            found="a server that sent nothing more",
            fix="Ask again.",
        )


def wait_for(server: Any, run_id: str, timeout_seconds: float) -> Any:
    """Wait for the end of a run; print a line for each step that begins or ends."""
    from longrec.cli.progress import waiting

    seen: dict[str, tuple[str, int]] = {}

    def print_changes(run: Any) -> None:
        for step in run.steps:
            progress = (step.state, step.num_done)
            if seen.get(step.name) != progress and step.state not in QUIET_STATES:
                seen[step.name] = progress
                typer.echo(_step_line(step), err=True)

    server.be_patient(patience_seconds())
    with waiting(f"run {run_id}"):
        return server.runs.wait(
            run_id, print_changes, timeout_seconds=timeout_seconds, every_seconds=poll_seconds()
        )


class RunRefused(LongrecError):
    """A run whose model the gate refused."""

    exit_code = REFUSED_EXIT_CODE


def check_success(run: Any) -> None:
    """Check that a run ended with success.

    Raises:
        RunRefused: the gate refused its model.
        LongrecError: it failed.
    """
    if run.state == SUCCEEDED:
        return
    failed = [step for step in run.steps if step.state == FAILED]
    reasons = [f"{step.name}: {step.error}".rstrip(": ") for step in failed]
    found = "; ".join([*reasons, *run.notes]) or run.error or None
    step = failed[0].name if failed else "STEP"
    kind = RunRefused if run.state == REFUSED else LongrecError
    raise kind(
        f"run {run.run_id} ended {run.state}",
        found=found,
        fix=f"See {run.url} or: longrec logs {run.run_id} {step}",
    )


def age(created: str) -> str:
    """Return how long ago a time of the server's API was, in its largest unit."""
    if not created:
        return ""
    now = datetime.datetime.now(datetime.UTC)
    seconds = (now - datetime.datetime.fromisoformat(created)).total_seconds()
    for unit, length in AGE_UNITS:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def _list_lines(runs: Sequence[Any]) -> list[str]:
    return aligned(
        [
            (
                run.pipeline,
                run.name,
                run.state,
                age(run.created),
                run.run_id,
            )
            for run in runs
        ]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, its columns as wide as their longest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _run_lines(run: Any) -> list[str]:
    created = run.created[:MINUTE_LENGTH].replace("T", " ")
    head = f"{run.pipeline}  {run.name}  {run.state}  {created}  {run.run_id}  {run.error}"
    steps = [f"  {_step_line(step)}" for step in run.steps]
    notes = [f"  note: {note}" for note in run.notes]
    return [
        head.strip(),
        *steps,
        *notes,
        run.url,
    ]


def _step_line(step: Any) -> str:
    name = step.name if step.num_items == 1 else f"{step.name} {step.num_done} of {step.num_items}"
    seconds = " " * 8 if step.seconds is None else f"{step.seconds:6.0f} s"
    return f"{step.state:<{STATE_WIDTH}} {name:<{STEP_WIDTH}} {seconds} {step.error}".rstrip()
