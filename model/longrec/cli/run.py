"""The commands that run a pipeline on this machine: run, refresh, drift."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrec.cli.init import DEFAULT_BUDGET, budget_seconds, derive_settings
from longrec.cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_WORKDIR,
    REFUSED_EXIT_CODE,
    AsJson,
    Cache,
    ExistingWorkdir,
    Overrides,
    Workdir,
    print_result,
    read_run_config,
)

if TYPE_CHECKING:
    from longrec.cli.progress import StepProgress
    from longrec.config import RunConfig

DatasetUri = Annotated[
    str | None,
    typer.Option(help="A dataset: directory, s3:// or gs://; default a synthetic one."),
]
NewDatasetUri = Annotated[
    str, typer.Option(help="The dataset with the new events: a directory, s3:// or gs://.")
]
RunConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="A YAML file, see configs/; default derived from --data, or quickstart."
    ),
]
WorkdirConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="A YAML file; default the one of the latest run, or quickstart."),
]
TrainingBudget = Annotated[
    str | None,
    typer.Option(
        help=f"Longest time of the training, for example 10m; default {DEFAULT_BUDGET} without "
        "--config."
    ),
]
NumUsers = Annotated[
    int | None, typer.Option(min=1, help="Number of users of the synthetic dataset.")
]
MaxEvents = Annotated[
    int | None, typer.Option(min=1, help="Maximum events per user of the synthetic dataset.")
]


def run(
    config: RunConfigFile = None,
    sets: Overrides = None,
    data: DatasetUri = None,
    budget: TrainingBudget = None,
    users: NumUsers = None,
    events: MaxEvents = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    cache: Cache = True,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on this machine and print the results.

    With --data and without --config, the settings follow from the data: `longrec init` prints them.

    Writes WORKDIR/runs/ID/ (config.yaml, summary.json, report.html, pipeline.log, artifacts/) and
    points WORKDIR/runs/latest at it.

    \b
    Exit codes: 0 a model was packaged; 1 a step failed; 2 usage error;
    3 the gate refused the model (summary written, no bento).

    \b
    Examples:
      longrec run
      longrec run --config configs/quickstart.yaml --set train.epochs=2 --set model.width=128
      longrec run --data data/clicks --budget 10m
      longrec run --data data/kuairand --workdir /tmp/longrec --json
    """
    from longrec.cli.progress import StepProgress
    from longrec.cli.tables import show_summary
    from longrec.runs import run as runs

    settings, config_text = _run_settings(config, sets, data, budget)
    with StepProgress() as progress:
        dataset = data or str(_synthetic_dataset(settings, workdir, users, events, progress))
        summary = runs.run(
            settings,
            dataset,
            workdir,
            progress,
            command=shlex.join(["longrec", *sys.argv[1:]]),
            cache=cache,
            config_text=config_text,
        )
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        show_summary(summary, next_commands(summary, workdir))
    if not summary["gate"]["passed"]:
        raise typer.Exit(REFUSED_EXIT_CODE)


def refresh(
    data: NewDatasetUri,
    config: WorkdirConfigFile = None,
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

    settings = _settings_of_workdir(config, sets, workdir)
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
    config: WorkdirConfigFile = None,
    sets: Overrides = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Compare the recently answered requests of a service with the evaluation of its model.

    The service must log requests (LONGREC_LOG_SHARE). Exit code 1 means drift beyond the bounds;
    the page is in the folder of the run.

    \b
    Examples:
      longrec drift
      longrec drift --workdir /srv/longrec --set drift.max_score_psi=0.1 --json
      longrec drift --set drift.evidently=reports
    """
    from longrec.cli.progress import StepProgress
    from longrec.runs import run as runs

    settings = _settings_of_workdir(config, sets, workdir)
    with StepProgress() as progress:
        report = runs.drift(settings, workdir, progress)
    few = "" if report["is_enough"] else " (too few for a verdict)"
    text = f"{report['num_requests']:,.0f} requests have not drifted{few}: {report['report']}"
    print_result(report, text, as_json=as_json)


def _run_settings(
    config: Path | None, sets: list[str] | None, data: str | None, budget: str | None
) -> tuple[RunConfig, str]:
    """Return the configuration of a run and the text of its config.yaml; print derived settings."""
    from longrec.config_file import to_yaml

    if config is None and data is not None:
        return _derived_settings(data, budget, sets)
    settings = read_run_config(config or DEFAULT_CONFIG, sets)
    if budget is not None:
        train = dataclasses.replace(settings.train, max_seconds=round(budget_seconds(budget)))
        settings = dataclasses.replace(settings, train=train)
    return settings, to_yaml(settings)


def _derived_settings(
    data: str, budget: str | None, sets: list[str] | None
) -> tuple[RunConfig, str]:
    from longrec.runs.autoconfig.yaml_text import to_yaml

    derived, facts = derive_settings(data, budget or DEFAULT_BUDGET, sets)
    text = to_yaml(derived, facts)
    typer.echo("settings derived from the data (longrec init prints them to a file):", err=True)
    typer.echo(text, err=True)
    return derived.config, text


def _settings_of_workdir(config: Path | None, sets: list[str] | None, workdir: Path) -> RunConfig:
    """Return a given configuration, else that of the latest run, else the quickstart's."""
    from longrec.runs.run import latest_config

    return read_run_config(config or latest_config(workdir) or DEFAULT_CONFIG, sets)


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


def next_commands(summary: Mapping[str, Any], workdir: Path) -> list[str]:
    """Return the commands to type after a run."""
    from longrec.release.registry import read_registry

    program = _program()
    option = "" if workdir == DEFAULT_WORKDIR else f" --workdir {shlex.quote(str(workdir))}"
    if summary["bento_tag"] is None:
        look = f"open {summary['report']}"
        return [look, f"{program} package --run {summary['run']} --force{option}"]
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
