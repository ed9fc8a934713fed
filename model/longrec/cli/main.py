"""The `longrec` command: one thin function per command.

A mistake that the user can fix ends in one message on stderr and exit code 1.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from longrec.cli import (
    config,
    env,
    init,
    kubeflow,
    lineage,
    models,
    predict,
    serve,
    study,
    train,
)
from longrec.cli import run as local_runs
from longrec.cli.bench import bench
from longrec.cli.cluster import runs, schedules
from longrec.cli.data import importers, store, synth, upkeep
from longrec.errors import LongrecError

FILE_ERRORS = (
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
"""Errors of the disk or of the folder that the user named; any other OSError is a bug.

A missing file (ENOENT) is one too: commands check each path that a user can name.
"""
RANK_VARIABLE = "RANK"
"""Set by torchrun in each of its processes."""
PASS_ARGUMENTS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


class _CommandGroup(TyperGroup):
    """A group that turns a LongrecError or a file error into one message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _require_utf8(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LongrecError as error:
            raise _exit(error) from error
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise
            raise _exit(_file_error(error)) from error


def _require_utf8(arguments: list[str]) -> None:
    """End with one message for an argument that is not UTF-8, such as an old file name."""
    for text in arguments:
        if not text.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in text):
            error = LongrecError(
                "an argument is not UTF-8",
                found=ascii(text),
                fix="Rename the file or folder.",
            )
            raise _exit(error)


def _exit(error: LongrecError) -> typer.Exit:
    rank = os.environ.get(RANK_VARIABLE)
    name = "longrec" if rank is None else f"longrec [rank {rank}]"
    typer.echo(f"{name}: {error}", err=True)
    return typer.Exit(error.exit_code)


def _file_error(error: OSError) -> LongrecError:
    path = error.filename2 or error.filename or "a file"
    return LongrecError(
        f"{path} cannot be read or written",
        found=error.strerror,
        fix="Free some space, or choose a folder that you may write.",
    )


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"longrec {importlib.metadata.version('longrec')}")
        raise typer.Exit


app = typer.Typer(
    cls=_CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def longrec(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Rank with long user histories: import a log, run the pipeline, serve the model.

    \b
    Examples:
      longrec run
      longrec serve
    """


app.add_typer(importers.app, name="import")
app.command()(synth.synth)
app.command()(init.init)
app.command()(local_runs.run)
app.command()(predict.predict)
app.command()(local_runs.refresh)
app.command()(local_runs.drift)
app.command()(serve.serve)
app.command()(env.env)
app.command()(models.evaluate)
app.command()(models.package)
app.add_typer(models.app, name="models")
app.command()(lineage.lineage)
app.command()(store.push)
app.add_typer(store.app, name="inspect")
app.command()(upkeep.forget)
app.command()(upkeep.doctor)
app.command()(upkeep.gc)
app.command()(train.train)
app.command()(study.study)
app.command()(study.tune)
app.command("compile")(kubeflow.compile_pipelines)
app.command()(kubeflow.submit)
app.command()(kubeflow.schedule)
app.command()(runs.status)
app.command()(runs.logs)
app.add_typer(schedules.app, name="schedules")
app.add_typer(config.app, name="config")
app.command(context_settings=PASS_ARGUMENTS)(bench)


def main() -> None:
    """Run the command; the entry point of the package."""
    app(prog_name="longrec")


if __name__ == "__main__":
    main()
