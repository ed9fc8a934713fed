"""The `longrec` command: one thin function per verb; a mistake that the user can mend ends in one
message and exit code 1.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from longrec.cli import data as cli_data
from longrec.cli import kubeflow, models, store, study, train
from longrec.errors import LongrecError

if TYPE_CHECKING:
    from longrec.cli.console import StepProgress
    from longrec.config import RunConfig

REFUSED = 3
"""Exit code of a run whose model the gate refused."""


_OF_THE_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.EIO,
    errno.ESTALE,
)
"""Errors that are of the disk or the folder that the user named; any other of the system is a
mistake of this code.
"""


class _Group(TyperGroup):
    """Turns a LongrecError of any verb, and a disk's error, into one message on stderr and its exit
    code, 1 for most.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LongrecError, OSError) as caught:
            if isinstance(caught, OSError) and caught.errno not in _OF_THE_PLACE:
                raise
            error = _disk(caught) if isinstance(caught, OSError) else caught
            rank = (
                f" [rank {os.environ['RANK']}]" if "RANK" in os.environ else ""
            )  # of several processes that torchrun started
            typer.echo(f"longrec{rank}: {error}", err=True)
            raise typer.Exit(error.exit_code) from caught


def _disk(error: OSError) -> LongrecError:
    """Returns what a user reads of an error of the disk."""
    place = error.filename2 or error.filename
    return LongrecError(
        f"{place or 'a file'} cannot be read or written",
        found=error.strerror,
        fix="Free some space, or choose a folder that you may write.",
    )


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Rank with long user histories: import a log, run the pipeline, serve the model.",
)
app.add_typer(cli_data.app, name="import")
app.command()(cli_data.synth)
app.command()(store.push)
for _verb in (kubeflow.submit, kubeflow.schedule, kubeflow.status, kubeflow.logs):
    app.command()(_verb)
app.command()(study.study)
app.command()(train.train)
app.add_typer(store.inspect, name="inspect")
app.add_typer(models.app, name="models")

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a configuration key; may be repeated."
    ),
]
Workdir = Annotated[Path, typer.Option(help="Feature store, runs and generated data live here.")]
Config = Annotated[Path, typer.Option(help="A YAML file of longrec.config; see configs/.")]
DEFAULT_CONFIG = Path("configs/quickstart.yaml")
DEFAULT_WORKDIR = Path(".longrec")


@app.command()
def run(
    config: Config = DEFAULT_CONFIG,
    sets: Sets = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A dataset: directory, s3:// or gs://; without it a synthetic one is made."
        ),
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="Users of the synthetic dataset.")
    ] = None,
    events: Annotated[
        int | None, typer.Option(min=1, help="Most events of one user of the synthetic dataset.")
    ] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    cache: Annotated[
        bool, typer.Option(help="Leave out steps whose data, code and settings did not change.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on this machine and print what came out.

    Writes WORKDIR/runs/ID/ (summary.json, report.html, pipeline.log, artifacts/) and points
    WORKDIR/runs/latest at it.

    \b
    Exit codes: 0 a model was packaged; 1 a step failed; 2 usage; 3 the gate refused the model
    (summary written, no bento).

    \b
    Examples:
      longrec run
      longrec run --config configs/quickstart.yaml --set train.epochs=2 --set model.width=128
      longrec run --data data/kuairand --workdir /tmp/longrec --json
    """
    from longrec import config as configuration
    from longrec.cli import console
    from longrec.runs import run as runs

    settings = configuration.load(config, sets or [])
    with console.StepProgress() as progress:
        dataset = data or str(_synthetic(settings, workdir, users, events, progress))
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
        console.show_summary(summary, _next(summary, workdir))
    if not summary["gate"]["passed"]:
        raise typer.Exit(REFUSED)


@app.command()
def refresh(
    data: Annotated[
        str, typer.Option(help="The dataset with the new events: a directory, s3:// or gs://.")
    ],
    config: Config = DEFAULT_CONFIG,
    sets: Sets = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    cache: Annotated[
        bool, typer.Option(help="Leave out steps whose data, code and settings did not change.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check new events, build their features and publish them for serving, on this machine; the
    model stays.

    \b
    Examples:
      longrec refresh --data data/kuairand
      longrec refresh --data s3://bucket/dataset --workdir /srv/longrec --json
    """
    from longrec import config as configuration
    from longrec.cli import console
    from longrec.runs import run as runs

    with console.StepProgress() as progress:
        report = runs.refresh(
            configuration.load(config, sets or []), data, workdir, progress, cache=cache
        )
    was = " (as before)" if report["was_current"] else ""
    _say(
        as_json,
        report,
        f"published {report['num_events']:,} events of {report['num_users']:,} users, version {report['digest']}{was}",
    )


@app.command()
def drift(
    config: Config = DEFAULT_CONFIG,
    sets: Sets = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: Json = False,
) -> None:
    """Compare the requests that a service answered lately with the evaluation of its model, on this
    machine.

    Needs a service that logs (LONGREC_LOG_SHARE). Exit code 1 where something has drifted; the page
    is in the folder of the run.

    \b
    Examples:
      longrec drift
      longrec drift --workdir /srv/longrec --set drift.max_score_psi=0.1 --json
    """
    from longrec import config as configuration
    from longrec.cli import console
    from longrec.runs import run as runs

    with console.StepProgress() as progress:
        report = runs.drift(configuration.load(config, sets or []), workdir, progress)
    enough = "" if report["is_enough"] else " (too few to tell)"
    _say(
        as_json,
        report,
        f"{report['num_requests']:,.0f} requests have not drifted{enough}: {report['report']}",
    )


@app.command("compile")
def compile_pipeline(
    pipeline: Annotated[
        str, typer.Argument(help="training, refresh, drift or study; all of them without a name.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="Its section `platform` is compiled in.")
    ] = None,
    sets: Sets = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to; default pipelines/compiled.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile the pipelines for a Kubeflow Pipelines server.

    \b
    Examples:
      longrec compile
      longrec compile training --config my.yaml --set platform.steps.train.gpu=1 --output /tmp
      longrec compile --check
    """
    from longrec import config as configuration
    from longrec.runs.run import room

    compiling = room("pipelines.compiler")
    names, folder = (
        [pipeline] if pipeline else list(compiling.PIPELINES),
        output or compiling.FOLDER,
    )
    platform = configuration.load(config, sets or []).platform
    (compiling.check_compiled if check else compiling.compile_all)(names, folder, platform)
    paths = [str(folder / f"{name}.yaml") for name in names]
    _say(
        as_json,
        {"paths": paths},
        "\n".join(f"{path} is up to date" if check else f"wrote {path}" for path in paths),
    )


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 3000,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: Json = False,
) -> None:
    """Serve the champion over HTTP (POST /rank, a page at /); see `longrec models`. The first model
    of a work directory is its champion.

    \b
    Examples:
      longrec serve
      longrec serve --port 8000 --workdir /tmp/longrec
      curl -s localhost:3000/rank -H 'content-type: application/json' -d '{"user_id": 1,
      "candidates": [1, 2, 3]}'
    """
    from longrec.runs.run import serve_command

    command, folder, environment = serve_command(workdir, host, port)
    _say(as_json, {"command": command, "cwd": str(folder)}, shlex.join(command), err=True)
    os.chdir(folder)
    os.execvpe(command[0], command, environment)  # noqa: S606


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def bench(context: typer.Context) -> None:
    """Run a benchmark of model/benchmarks and append its rows to results.csv; further options go to
    the script.
    """
    from longrec.runs.run import THREADING, benchmarks

    scripts, (name, *rest) = (
        benchmarks(),
        (*context.args, "--help") if not context.args else context.args,
    )
    if name in ("--help", "--json"):
        listing = {name: text for name, (_, text) in scripts.items()}
        lines = [f"  longrec bench {name:<10} {text}" for name, text in listing.items()]
        text = "\n".join(
            [
                "Run a benchmark of model/benchmarks and append its rows to results.csv.",
                "",
                *lines,
                "",
                "Options of one: longrec bench NAME --help",
            ]
        )
        return _say(name == "--json", listing, text)
    if name not in scripts:
        raise LongrecError(
            f"no benchmark is called {name}",
            expected=", ".join(scripts),
            fix="See longrec bench --help.",
        )
    environment = {**THREADING, **os.environ}
    raise typer.Exit(
        subprocess.run(
            [sys.executable, str(scripts[name][0]), *rest], env=environment, check=False
        ).returncode
    )


def main() -> None:
    """Runs the command; the entry point of the package."""
    app(prog_name="longrec")


def _synthetic(
    settings: RunConfig,
    workdir: Path,
    users: int | None,
    events: int | None,
    progress: StepProgress,
) -> Path:
    from longrec.runs.run import synthetic_dataset

    world = {
        name: value
        for name, value in (("num_users", users), ("events_per_user", events))
        if value is not None
    }
    started = time.perf_counter()
    path, is_new = synthetic_dataset(workdir, settings, **world)
    progress.line("synth", time.perf_counter() - started, "done" if is_new else "cached")
    return path


def _next(summary: dict[str, Any], workdir: Path) -> list[str]:
    """Returns the commands to type after a run."""
    from longrec.release import registry

    if summary["bento_tag"] is None:
        return [f"open {summary['report']}"]
    place = "" if workdir == DEFAULT_WORKDIR else f" --workdir {shlex.quote(str(workdir))}"
    request, version = (
        shlex.quote(json.dumps(summary["example"])),
        summary["bento_tag"].rpartition(":")[2],
    )
    is_champion = registry.read(workdir).champion in (None, version)
    promotion = (
        [] if is_champion else [f"{_program()} models promote {version} --why 'your reason'{place}"]
    )
    return [
        *promotion,
        f"{_program()} serve{place}",
        f"curl -s localhost:3000/rank -H 'content-type: application/json' -d {request}",
    ]


def _program() -> str:
    """Returns what has to be typed to start this command again from here."""
    typed = Path(sys.argv[0])
    if typed.name != "longrec" or shutil.which("longrec") == str(typed.absolute()):
        return "longrec"
    return shlex.quote(
        os.path.relpath(typed) if typed.absolute().is_relative_to(Path.cwd()) else str(typed)
    )


def _say(
    as_json: bool,
    value: dict[str, Any],
    text: str,
    *,
    err: bool = False,
) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else text, err=err and not as_json)


if __name__ == "__main__":
    main()
