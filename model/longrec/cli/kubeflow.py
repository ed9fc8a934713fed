"""Verbs that talk to a Kubeflow Pipelines server: submit, schedule, status, logs."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.errors import LongrecError

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]
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
    Path | None,
    typer.Option(help="File with a token; else the variable LONGREC_KFP_TOKEN, if set."),
]
CookieFile = Annotated[
    Path | None,
    typer.Option(
        help="File with a browser's cookie; else the variable LONGREC_KFP_COOKIE, if set."
    ),
]
Experiment = Annotated[str, typer.Option(help="Experiment that runs are filed under.")]
Create = Annotated[
    bool, typer.Option("--create-experiment", help="Make the experiment where there is none.")
]
DataUri = Annotated[
    str,
    typer.Option(
        help="The dataset as the cluster sees it, for example s3://bucket/dataset or /data/dataset."
    ),
]
Pipeline = Annotated[str, typer.Option(help="training, refresh, drift or study.")]
Config = Annotated[
    Path, typer.Option(help="A YAML file of longrec.config; its section `platform` is compiled in.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a configuration key; may be repeated."
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A parameter; may be repeated."),
]
Study = Annotated[
    Path | None, typer.Option(help="Of the study pipeline: a file as of longrec study.")
]
Root = Annotated[
    str,
    typer.Option(
        help="Where artifacts go, for example s3://bucket/artifacts; the server's default without it."
    ),
]
DEFAULT_CONFIG = Path("configs/quickstart.yaml")


def submit(
    data_uri: DataUri = "",
    host: Host = "",
    pipeline: Pipeline = "training",
    config: Config = DEFAULT_CONFIG,
    sets: Sets = None,
    params: Parameters = None,
    study: Study = None,
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    create_experiment: Create = False,
    name: Annotated[str, typer.Option(help="Of the run; default the configuration's.")] = "",
    pipeline_root: Root = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Wait for the end of the run; exit code 1 where it did not succeed."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 86_400.0,
    as_json: Json = False,
) -> None:
    """Send a pipeline to a Kubeflow Pipelines server.

    \b
    Examples:
      longrec submit --host http://localhost:8080 --data-uri s3://bucket/dataset --wait
      longrec submit --data-uri /data/dataset --config my.yaml --set platform.steps.train.gpu=1
      --param webhook=https://chat/hook
    """
    _check_data(pipeline, data_uri)
    server = _server(host, namespace, token_file, cookie_file)
    with tempfile.TemporaryDirectory() as folder:
        package, arguments, settings = _prepared(
            pipeline, data_uri, config, sets, params, study, Path(folder)
        )
        sent = server.submit(
            package,
            arguments,
            experiment=experiment,
            name=name or settings.name,
            pipeline_root=pipeline_root,
            service_account=settings.platform.service_account,
            create_experiment=create_experiment,
        )
    if not as_json:
        typer.echo(f"submitted {sent.run_id}: {sent.url}")
    ended = (
        server.wait(sent.run_id, _progress(), timeout_seconds=timeout, every_seconds=_every())
        if wait
        else None
    )
    if as_json:
        typer.echo(
            json.dumps(
                {**dataclasses.asdict(sent), "state": ended.state if ended else "SUBMITTED"},
                indent=2,
            )
        )
    if ended and ended.state != "SUCCEEDED":
        failed = ", ".join(task.name for task in ended.tasks if task.state == "FAILED")
        raise LongrecError(
            f"run {sent.run_id} ended {ended.state}",
            found=failed or ended.error or None,
            fix=f"See {sent.url} or: longrec logs {sent.run_id} STEP",
        )


def schedule(
    cron: Annotated[str, typer.Option(help="Five fields in UTC, for example '0 3 * * *'.")],
    data_uri: DataUri = "",
    host: Host = "",
    pipeline: Pipeline = "training",
    config: Config = DEFAULT_CONFIG,
    sets: Sets = None,
    params: Parameters = None,
    study: Study = None,
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    create_experiment: Create = False,
    name: Annotated[
        str,
        typer.Option(
            help="Of the schedule; there is one of a name. Default PIPELINE-CONFIGURATION."
        ),
    ] = "",
    pipeline_root: Root = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline on a Kubeflow Pipelines server again and again; the same call with other
    settings replaces the schedule.

    Missed times are not caught up, and one run ends before the next begins.

    \b
    Examples:
      longrec schedule --cron '0 3 * * *' --data-uri s3://bucket/dataset --host
      http://localhost:8080
      longrec schedule --pipeline refresh --cron '15 * * * *' --data-uri s3://bucket/dataset
      --config my.yaml
      longrec schedule --pipeline drift --cron '30 6 * * *' --config my.yaml
    """
    _check_data(pipeline, data_uri)
    server = _server(host, namespace, token_file, cookie_file)
    with tempfile.TemporaryDirectory() as folder:
        package, arguments, settings = _prepared(
            pipeline, data_uri, config, sets, params, study, Path(folder)
        )
        made, done = server.schedule(
            package,
            arguments,
            experiment=experiment,
            name=name or f"{pipeline}-{settings.name}",
            cron=cron,
            pipeline_root=pipeline_root,
            service_account=settings.platform.service_account,
            create_experiment=create_experiment,
        )
    _say(
        as_json,
        {**dataclasses.asdict(made), "done": done},
        f"schedule {done} {made.run_id}: {made.url}",
    )


def status(
    run_id: Annotated[
        str, typer.Argument(help="Without it the newest runs of the experiment.")
    ] = "",
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: Json = False,
) -> None:
    """Show how a run on a Kubeflow Pipelines server stands, or the newest runs.

    \b
    Examples:
      longrec status --host http://localhost:8080
      longrec status 0f3c7f0e-8f5a-4f0e-a8b4-6d1f0f6a9d11
    """
    server = _server(host, namespace, token_file, cookie_file)
    runs = [server.status(run_id)] if run_id else server.recent(experiment)
    lines = [
        f"{run.run_id}  {run.state:<10} {run.created[:16]}  {run.name}  {run.error}".rstrip()
        for run in runs
    ]
    if run_id:
        lines += [f"  {_line(task)}" for task in runs[0].tasks] + [runs[0].url]
    _say(
        as_json,
        {"runs": [dataclasses.asdict(run) for run in runs]},
        "\n".join(lines) or f"no run in experiment {experiment}",
    )


def logs(
    run_id: Annotated[str, typer.Argument(help="Of the run; see longrec status.")],
    step: Annotated[str, typer.Argument(help="Name of a step, for example train.")],
    host: Host = "",
    namespace: Namespace = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: Json = False,
) -> None:
    """Show what a step of a run on a Kubeflow Pipelines server wrote.

    \b
    Examples:
      longrec logs 0f3c7f0e-8f5a-4f0e-a8b4-6d1f0f6a9d11 train
    """
    text = _server(host, namespace, token_file, cookie_file).logs(run_id, step)
    _say(as_json, {"run_id": run_id, "step": step, "log": text}, text.rstrip("\n"))


def _server(
    host: str,
    namespace: str,
    token_file: Path | None,
    cookie_file: Path | None,
) -> Any:
    from longrec.runs.run import room

    secrets = {
        "token": _secret(token_file, "LONGREC_KFP_TOKEN"),
        "cookie": _secret(cookie_file, "LONGREC_KFP_COOKIE"),
    }
    return room("pipelines.submit").Server(host, namespace=namespace, **secrets)


def _check_data(pipeline: str, data_uri: str) -> None:
    if not data_uri and pipeline != "drift":  # which reads what was answered
        raise typer.BadParameter(
            f"The {pipeline} pipeline needs a dataset.", param_hint="--data-uri"
        )


def _secret(path: Path | None, variable: str) -> str:
    """Returns a secret from a file or a variable; an option of its own would show it to everyone on
    the machine.
    """
    if path is None:
        return os.environ.get(variable, "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise LongrecError(f"{path} cannot be read", found=error.strerror) from error


def _prepared(
    pipeline: str,
    data_uri: str,
    config: Path,
    sets: list[str] | None,
    params: list[str] | None,
    study: Path | None,
    folder: Path,
) -> tuple[Path, dict[str, Any], Any]:
    """Returns the compiled pipeline, its arguments and the configuration."""
    from longrec import config as configuration
    from longrec.runs.run import pipeline_arguments, room

    settings, compiling = configuration.load(config, sets or []), room("pipelines.compiler")
    known = compiling.pipeline(pipeline, settings.platform).component_spec.inputs
    given = {**pipeline_arguments(settings, data_uri), "drift": settings.to_dict()["drift"]}
    arguments = {name: value for name, value in given.items() if name in known}
    if study is not None:
        from longrec.study.runner import load, to_text

        arguments["study"] = to_text(load(study))
    for text in params or ():
        name, separator, value = text.partition("=")
        if not separator or name not in known:
            raise LongrecError(
                f"the {pipeline} pipeline has no parameter '{name}'",
                expected=", ".join(sorted(known)),
            )
        arguments[name] = (
            value
            if known[name].type == "String"
            else configuration.from_yaml(value, f"the value of {name}")
        )
    return (
        compiling.compile_to(pipeline, folder / f"{pipeline}.yaml", settings.platform),
        arguments,
        settings,
    )


def _progress() -> Any:
    """Returns what prints a line for each step that begins or ends."""
    known: dict[str, str] = {}

    def show(run: Any) -> None:
        for task in run.tasks:
            if known.get(task.name) != task.state:
                known[task.name] = task.state
                typer.echo(_line(task), err=True)

    return show


def _line(task: Any) -> str:
    seconds = "" if task.seconds is None else f"{task.seconds:8.0f} s"
    return f"{task.state:<10} {task.name:<20} {seconds} {task.error}".rstrip()


def _every() -> float:
    """Returns the seconds between two questions while waiting."""
    return float(os.environ.get("LONGREC_POLL_SECONDS", "5"))


def _say(as_json: bool, value: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else text)
