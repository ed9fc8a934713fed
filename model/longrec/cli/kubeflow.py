"""The commands of Kubeflow Pipelines: compile, submit, schedule, status, logs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.cli.options import (
    DEFAULT_CONFIG,
    AsJson,
    Overrides,
    print_result,
    read_config,
    renamed_keys_on_stderr,
)
from longrec.errors import LongrecError

SUCCEEDED = "SUCCEEDED"
DAY_SECONDS = 86_400.0
POLL_VARIABLE = "LONGREC_POLL_SECONDS"
REQUIRED_PARAMETERS = {"data_uri": ("--data-uri", "a dataset"), "study": ("--study", "a study")}
"""Parameter without a default -> the option that gives it, and what it is."""

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
CreateExperiment = Annotated[
    bool, typer.Option("--create-experiment", help="Create the experiment if it is missing.")
]
DataUri = Annotated[
    str,
    typer.Option(
        help="Address of the dataset in the cluster: s3://bucket/dataset, or /data/dataset."
    ),
]
Pipeline = Annotated[str, typer.Option(help="training, refresh, drift or study.")]
PlatformFile = Annotated[
    Path, typer.Option(help="A YAML configuration file; its section `platform` is compiled in.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="A pipeline parameter; repeatable."),
]
StudyFile = Annotated[
    Path | None,
    typer.Option(help="A study file as for longrec study; for the study pipeline only."),
]
PipelineRoot = Annotated[
    str,
    typer.Option(
        help="Address of the artifacts, for example s3://bucket/artifacts; default the server's."
    ),
]
RunName = Annotated[str, typer.Option(help="Name of the run; default the configuration's.")]
ScheduleName = Annotated[
    str, typer.Option(help="Unique name of the schedule; default PIPELINE-CONFIGURATION.")
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for the end of the run; exit code 1 if it failed.")
]
Timeout = Annotated[float, typer.Option(help="Longest wait in seconds.")]
Cron = Annotated[str, typer.Option(help="Five fields in UTC, for example '0 3 * * *'.")]
PipelineName = Annotated[
    str, typer.Argument(help="training, refresh, drift or study; default all.")
]
PlatformFileOrNone = Annotated[
    Path | None, typer.Option(help="A YAML file; its section `platform` is compiled in.")
]
OutputFolder = Annotated[
    Path | None, typer.Option(help="Folder to write to; default pipelines/compiled.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")
]


def compile_pipelines(
    pipeline: PipelineName = "",
    config: PlatformFileOrNone = None,
    sets: Overrides = None,
    output: OutputFolder = None,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Compile the pipelines for a Kubeflow Pipelines server.

    \b
    Examples:
      longrec compile
      longrec compile training --config my.yaml --set platform.steps.train.gpu=1 --output /tmp
      longrec compile --check
    """
    from longrec.runs.project import import_module

    compiler = import_module("pipelines.compiler")
    names = [pipeline] if pipeline else list(compiler.PIPELINES)
    folder = output or compiler.FOLDER
    platform = _build_platform(read_config(config, sets).platform)
    if check:
        compiler.check_compiled(names, folder, platform)
    else:
        compiler.compile_all(names, folder, platform)
    paths = [str(folder / f"{name}.yaml") for name in names]
    lines = [f"{path} is up to date" if check else f"wrote {path}" for path in paths]
    print_result({"paths": paths}, "\n".join(lines), as_json=as_json)


def submit(
    data_uri: DataUri = "",
    host: Host = "",
    pipeline: Pipeline = "training",
    config: PlatformFile = DEFAULT_CONFIG,
    sets: Overrides = None,
    params: Parameters = None,
    study: StudyFile = None,
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    create_experiment: CreateExperiment = False,
    name: RunName = "",
    pipeline_root: PipelineRoot = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    wait: Wait = False,
    timeout: Timeout = DAY_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Submit a pipeline to a Kubeflow Pipelines server.

    \b
    Examples:
      longrec submit --host http://localhost:8080 --data-uri s3://bucket/dataset --wait
      longrec submit --data-uri /data/dataset --config my.yaml \\
          --set platform.steps.train.gpu=1 --param webhook=https://chat/hook
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(pipeline, data_uri, config, sets, params, study, Path(folder))
        server = _connect(host, namespace, token_file, cookie_file)
        submission = dataclasses.replace(
            prepared,
            name=name or prepared.name,
            experiment=experiment,
            pipeline_root=pipeline_root,
            create_experiment=create_experiment,
        )
        submitted = server.submit(submission)
    if not as_json:
        typer.echo(f"submitted {submitted.run_id}: {submitted.url}")
    ended = _wait(server, submitted.run_id, timeout) if wait else None
    if as_json:
        state = ended.state if ended else "SUBMITTED"
        print_result({**dataclasses.asdict(submitted), "state": state}, "", as_json=True)
    if ended and ended.state != SUCCEEDED:
        raise _run_error(ended)


def schedule(
    cron: Cron,
    data_uri: DataUri = "",
    host: Host = "",
    pipeline: Pipeline = "training",
    config: PlatformFile = DEFAULT_CONFIG,
    sets: Overrides = None,
    params: Parameters = None,
    study: StudyFile = None,
    namespace: Namespace = "",
    experiment: Experiment = "longrec",
    create_experiment: CreateExperiment = False,
    name: ScheduleName = "",
    pipeline_root: PipelineRoot = "",
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline on a schedule on a Kubeflow Pipelines server.

    The same call with other settings replaces the schedule. Missed times are not caught up, and a
    run ends before the next begins.

    \b
    Examples:
      longrec schedule --cron '0 3 * * *' --data-uri s3://bucket/dataset
      longrec schedule --pipeline refresh --cron '15 * * * *' --data-uri s3://bucket/dataset
      longrec schedule --pipeline drift --cron '30 6 * * *' --config my.yaml
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(pipeline, data_uri, config, sets, params, study, Path(folder))
        server = _connect(host, namespace, token_file, cookie_file)
        submission = dataclasses.replace(
            prepared,
            name=name or f"{pipeline}-{prepared.name}",
            experiment=experiment,
            pipeline_root=pipeline_root,
            create_experiment=create_experiment,
        )
        submitted, action = server.schedule(submission, cron)
    value = {**dataclasses.asdict(submitted), "done": action}
    text = f"schedule {action} {submitted.run_id}: {submitted.url}"
    print_result(value, text, as_json=as_json)


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
    server = _connect(host, namespace, token_file, cookie_file)
    runs = [server.status(run_id)] if run_id else server.recent(experiment)
    lines = [_run_line(run) for run in runs]
    if run_id:
        [run] = runs
        lines += [f"  {_task_line(task)}" for task in run.tasks]
        lines.append(run.url)
    value = {"runs": [dataclasses.asdict(run) for run in runs]}
    text = "\n".join(lines) or f"no run in experiment {experiment}"
    print_result(value, text, as_json=as_json)


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
    text = _connect(host, namespace, token_file, cookie_file).logs(run_id, step)
    value = {"run_id": run_id, "step": step, "log": text}
    print_result(value, text.rstrip("\n"), as_json=as_json)


def _connect(host: str, namespace: str, token_file: Path | None, cookie_file: Path | None) -> Any:
    from longrec.runs.project import import_module

    return import_module("pipelines.server.client").Server(
        host,
        namespace=namespace,
        token=_read_secret(token_file, "LONGREC_KFP_TOKEN"),
        cookie=_read_secret(cookie_file, "LONGREC_KFP_COOKIE"),
    )


def _check_parameters(pipeline: str, arguments: Mapping[str, Any], inputs: Any) -> None:
    """Check the names of a pipeline's parameters, and that none is missing.

    Raises:
        LongrecError: a parameter is unknown.
        typer.BadParameter: a parameter without a default is missing.
    """
    for name in arguments:
        if name not in inputs:
            raise LongrecError(
                f"the {pipeline} pipeline has no parameter '{name}'",
                expected=", ".join(sorted(inputs)),
            )
    for name, (option, what) in REQUIRED_PARAMETERS.items():
        if name in inputs and not arguments.get(name):
            raise typer.BadParameter(f"The {pipeline} pipeline needs {what}.", param_hint=option)


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


def _build_platform(section: Any) -> Any:
    from longrec.runs.project import import_module

    with renamed_keys_on_stderr():
        return import_module("pipelines.platform_config").build_platform(section)


def _prepare(
    pipeline: str,
    data_uri: str,
    config: Path,
    sets: list[str] | None,
    params: list[str] | None,
    study: Path | None,
    folder: Path,
) -> Any:
    """Compile a pipeline into a folder and return its submission with the arguments."""
    from longrec.runs.project import find_file, import_module
    from longrec.runs.run import pipeline_arguments

    content = read_config(config, sets)
    platform = _build_platform(content.platform)
    compiler = import_module("pipelines.compiler")
    inputs = compiler.pipeline(pipeline, platform).component_spec.inputs
    sections = content.run.to_dict()
    available = {**pipeline_arguments(content.run, data_uri), "drift": sections["drift"]}
    arguments = {name: value for name, value in available.items() if name in inputs}
    if study is not None:
        from longrec.study.config import load, to_text

        with renamed_keys_on_stderr():
            arguments["study"] = to_text(load(find_file(study)))
    for text in params or ():
        name, value = _parse_parameter(text, inputs)
        arguments[name] = value
    _check_parameters(pipeline, arguments, inputs)
    package = compiler.compile_to(pipeline, folder / f"{pipeline}.yaml", platform)
    return import_module("pipelines.server.client").Submission(
        package, arguments, content.run.name, service_account=platform.service_account
    )


def _parse_parameter(text: str, inputs: Any) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; the value is text or YAML, as the parameter's type."""
    from longrec.config_file import parse_yaml

    name, separator, value = text.partition("=")
    if not separator:
        raise LongrecError(f"--param {text} has no value", expected="NAME=VALUE")
    if name not in inputs or inputs[name].type == "String":
        return name, value
    return name, parse_yaml(value, f"the value of {name}")


def _wait(server: Any, run_id: str, timeout_seconds: float) -> Any:
    """Wait for the end of a run; print a line for each step that begins or ends."""
    from longrec.cli.progress import waiting

    states: dict[str, str] = {}

    def print_changes(run: Any) -> None:
        for task in run.tasks:
            if states.get(task.name) != task.state:
                states[task.name] = task.state
                typer.echo(_task_line(task), err=True)

    every_seconds = float(os.environ.get(POLL_VARIABLE, "5"))
    with waiting(f"run {run_id}"):
        return server.wait(
            run_id, print_changes, timeout_seconds=timeout_seconds, every_seconds=every_seconds
        )


def _run_error(run: Any) -> LongrecError:
    failed = ", ".join(task.name for task in run.tasks if task.state == "FAILED")
    return LongrecError(
        f"run {run.run_id} ended {run.state}",
        found=failed or run.error or None,
        fix=f"See {run.url} or: longrec logs {run.run_id} STEP",
    )


def _run_line(run: Any) -> str:
    line = f"{run.run_id}  {run.state:<10} {run.created[:16]}  {run.name}  {run.error}"
    return line.rstrip()


def _task_line(task: Any) -> str:
    seconds = "" if task.seconds is None else f"{task.seconds:8.0f} s"
    return f"{task.state:<10} {task.name:<20} {seconds} {task.error}".rstrip()
