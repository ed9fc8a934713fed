"""The commands that run a pipeline on this machine: run, refresh, drift."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrec.cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_WORKDIR,
    AsJson,
    Cache,
    Config,
    Overrides,
    Workdir,
    print_result,
    read_run_config,
)

if TYPE_CHECKING:
    from longrec.cli.progress import StepProgress
    from longrec.config import RunConfig

REFUSED_EXIT_CODE = 3
"""Exit code of a run whose model the gate refused."""

DatasetUri = Annotated[
    str | None,
    typer.Option(help="A dataset: directory, s3:// or gs://; default a synthetic one."),
]
NewDatasetUri = Annotated[
    str, typer.Option(help="The dataset with the new events: a directory, s3:// or gs://.")
]
NumUsers = Annotated[
    int | None, typer.Option(min=1, help="Number of users of the synthetic dataset.")
]
MaxEvents = Annotated[
    int | None, typer.Option(min=1, help="Maximum events per user of the synthetic dataset.")
]


def run(
    config: Config = DEFAULT_CONFIG,
    sets: Overrides = None,
    data: DatasetUri = None,
    users: NumUsers = None,
    events: MaxEvents = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    cache: Cache = True,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on this machine and print the results.

    Writes WORKDIR/runs/ID/ (summary.json, report.html, pipeline.log, artifacts/) and points
    WORKDIR/runs/latest at it.

    \b
    Exit codes: 0 a model was packaged; 1 a step failed; 2 usage error;
    3 the gate refused the model (summary written, no bento).

    \b
    Examples:
      longrec run
      longrec run --config configs/quickstart.yaml --set train.epochs=2 --set model.width=128
      longrec run --data data/kuairand --workdir /tmp/longrec --json
    """
    from longrec.cli.progress import StepProgress
    from longrec.cli.tables import show_summary
    from longrec.runs import run as runs

    settings = read_run_config(config, sets)
    with StepProgress() as progress:
        dataset = data or str(_synthetic_dataset(settings, workdir, users, events, progress))
        summary = runs.run(
            settings,
            dataset,
            workdir,
            progress,
            command=shlex.join(["longrec", *sys.argv[1:]]),
            cache=cache,
        )
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        show_summary(summary, _next_commands(summary, workdir))
    if not summary["gate"]["passed"]:
        raise typer.Exit(REFUSED_EXIT_CODE)


def refresh(
    data: NewDatasetUri,
    config: Config = DEFAULT_CONFIG,
    sets: Overrides = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    cache: Cache = True,
    as_json: AsJson = False,
) -> None:
    """Check new events and publish their features for serving, on this machine; the model stays.

    \b
    Examples:
      longrec refresh --data data/kuairand
      longrec refresh --data s3://bucket/dataset --workdir /srv/longrec --json
    """
    from longrec.cli.progress import StepProgress
    from longrec.runs import run as runs

    settings = read_run_config(config, sets)
    with StepProgress() as progress:
        report = runs.refresh(settings, data, workdir, progress, cache=cache)
    text = (
        f"published {report['num_events']:,} events of {report['num_users']:,} users, "
        f"version {report['digest']}"
    )
    if report["was_current"]:
        text += " (unchanged)"
    print_result(report, text, as_json=as_json)


def drift(
    config: Config = DEFAULT_CONFIG,
    sets: Overrides = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Compare the recently answered requests of a service with the evaluation of its model.

    The service must log requests (LONGREC_LOG_SHARE). Exit code 1 means drift beyond the bounds;
    the page is in the folder of the run.

    \b
    Examples:
      longrec drift
      longrec drift --workdir /srv/longrec --set drift.max_score_psi=0.1 --json
    """
    from longrec.cli.progress import StepProgress
    from longrec.runs import run as runs

    settings = read_run_config(config, sets)
    with StepProgress() as progress:
        report = runs.drift(settings, workdir, progress)
    few = "" if report["is_enough"] else " (too few for a verdict)"
    text = f"{report['num_requests']:,.0f} requests have not drifted{few}: {report['report']}"
    print_result(report, text, as_json=as_json)


def _synthetic_dataset(
    settings: RunConfig,
    workdir: Path,
    num_users: int | None,
    max_events: int | None,
    progress: StepProgress,
) -> Path:
    from longrec.runs.run import synthetic_dataset

    sizes = {"num_users": num_users, "events_per_user": max_events}
    given_sizes = {name: size for name, size in sizes.items() if size is not None}
    with progress.step("synth") as statuses:
        path, is_new = synthetic_dataset(workdir, settings, **given_sizes)
        statuses.append("done" if is_new else "cached")
    return path


def _next_commands(summary: Mapping[str, Any], workdir: Path) -> list[str]:
    """Return the commands to type after a run."""
    from longrec.release.registry import read_registry

    if summary["bento_tag"] is None:
        return [f"open {summary['report']}"]
    program = _program()
    option = "" if workdir == DEFAULT_WORKDIR else f" --workdir {shlex.quote(str(workdir))}"
    version = summary["bento_tag"].rpartition(":")[2]
    request = shlex.quote(json.dumps(summary["example"]))
    commands = [
        f"{program} serve{option}",
        f"curl -s localhost:3000/rank -H 'content-type: application/json' -d {request}",
    ]
    if read_registry(workdir).champion not in (None, version):
        commands.insert(0, f"{program} models promote {version} --why 'your reason'{option}")
    return commands


def _program() -> str:
    """Return the text that starts this command again from the current directory."""
    program = Path(sys.argv[0])
    if program.name != "longrec" or shutil.which("longrec") == str(program.absolute()):
        return "longrec"
    is_below = program.absolute().is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(program) if is_below else str(program))
