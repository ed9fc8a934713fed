"""Options that several commands share, and the helpers that read and print their values."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from longrec.config import RunConfig
    from longrec.config_file import ConfigFile

DEFAULT_CONFIG = Path("configs/quickstart.yaml")
DEFAULT_WORKDIR = Path(".longrec")
REFUSED_EXIT_CODE = 3
"""Exit code of a run whose model the gate refused."""


def _require_directory(path: Path) -> Path:
    """Return a work directory that must be there."""
    from longrec.errors import LongrecError

    if not path.is_dir():
        raise LongrecError(
            f"there is no work directory {path}",
            found="a file" if path.exists() else "nothing",
            fix="Make one with: longrec run --workdir DIRECTORY",
        )
    return path


AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]
Workdir = Annotated[
    Path, typer.Option(help="Work directory: feature store, model registry, runs, synthetic data.")
]
ExistingWorkdir = Annotated[
    Path,
    typer.Option(
        callback=_require_directory,
        help="Work directory: feature store, model registry, runs, synthetic data.",
    ),
]
Config = Annotated[Path, typer.Option(help="A YAML configuration file; see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable."),
]
Cache = Annotated[
    bool, typer.Option(help="Skip steps with unchanged data, code and configuration.")
]
Out = Annotated[Path, typer.Option("--out", help="The dataset directory; replaced if it exists.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices.")]


def command_group(text: str) -> typer.Typer:
    """Return an empty group of commands with a help text."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=text)


def read_config(path: Path | None, overrides: list[str] | None) -> ConfigFile:
    """Return a configuration file; a relative path may lie below the project."""
    from longrec import config_file
    from longrec.runs.project import find_file

    with renamed_keys_on_stderr():
        return config_file.read_config(find_file(path) if path else None, overrides or [])


def read_run_config(path: Path | None, overrides: list[str] | None) -> RunConfig:
    """Return the run configuration of a file; a relative path may lie below the project."""
    return read_config(path, overrides).run


@contextlib.contextmanager
def renamed_keys_on_stderr() -> Iterator[None]:
    """Print warnings about renamed configuration keys as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        typer.echo(f"longrec: warning: {text}", err=True)


def print_result(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result as one JSON object or as text."""
    typer.echo(json.dumps(value, indent=2) if as_json else text)


def print_dataset(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what an import or a synthesis wrote."""
    from longrec.cli.tables import show_dataset

    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show_dataset(report)
