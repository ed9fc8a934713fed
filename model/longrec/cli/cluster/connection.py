"""The connection to a Kubeflow Pipelines server: options that the commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.errors import LongrecError

POLL_VARIABLE = "LONGREC_POLL_SECONDS"
PATIENCE_VARIABLE = "LONGREC_PATIENCE_SECONDS"
DEFAULT_PATIENCE = "180"
"""Seconds for which a server that does not answer is asked again: it may restart."""

Host = Annotated[
    str,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT",
        help="Address of the server, for example http://localhost:8080.",
    ),
]
Namespace = Annotated[
    str, typer.Option(envvar="LONGREC_KFP_NAMESPACE", help="Namespace of a multi-user server.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with a token; default the variable LONGREC_KFP_TOKEN.")
]
CookieFile = Annotated[
    Path | None,
    typer.Option(help="File with a browser's cookie; default the variable LONGREC_KFP_COOKIE."),
]
Experiment = Annotated[str, typer.Option(help="Experiment of the runs.")]


def connect(host: str, namespace: str, token_file: Path | None, cookie_file: Path | None) -> Any:
    """Return a pipelines.server.client.Server for commands that change something."""
    return _connect(host, namespace, token_file, cookie_file, patience_seconds=0.0)


def connect_patiently(
    host: str, namespace: str, token_file: Path | None, cookie_file: Path | None
) -> Any:
    """Return a pipelines.server.client.Server for commands that look; it may restart meanwhile."""
    seconds = patience_seconds()
    return _connect(host, namespace, token_file, cookie_file, patience_seconds=seconds)


def patience_seconds() -> float:
    """Return for how long a server that does not answer is asked again."""
    return float(os.environ.get(PATIENCE_VARIABLE, DEFAULT_PATIENCE))


def poll_seconds() -> float:
    """Return the pause between two looks at a run."""
    return float(os.environ.get(POLL_VARIABLE, "5"))


def _connect(
    host: str,
    namespace: str,
    token_file: Path | None,
    cookie_file: Path | None,
    *,
    patience_seconds: float,
) -> Any:
    from longrec.runs.project import import_module

    patience = import_module("pipelines.server.reading").Patience(patience_seconds, _tell)
    return import_module("pipelines.server.client").Server(
        host,
        namespace=namespace,
        token=_read_secret(token_file, "LONGREC_KFP_TOKEN"),
        cookie=_read_secret(cookie_file, "LONGREC_KFP_COOKIE"),
        patience=patience,
    )


def _tell(text: str) -> None:
    typer.echo(f"longrec: {text}", err=True)


def _read_secret(path: Path | None, variable: str) -> str:
    """Return a secret from a file or a variable; process lists would show an option's value."""
    if path is None:
        return os.environ.get(variable, "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise LongrecError(f"{path} cannot be read", found=error.strerror) from error
    except UnicodeDecodeError as error:
        raise LongrecError(
            f"{path} cannot be read",
            found="bytes that are not UTF-8",
            expected="a secret as text",
        ) from error
