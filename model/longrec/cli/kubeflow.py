"""The commands that give pipelines to Kubeflow: compile, submit, schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.cli.cluster.connection import (
    CookieFile,
    Experiment,
    Host,
    Namespace,
    TokenFile,
    connect,
)
from longrec.cli.cluster.runs import check_success, wait_for
from longrec.cli.options import (
    DEFAULT_CONFIG,
    AsJson,
    Overrides,
    print_result,
    read_config,
    renamed_keys_on_stderr,
)
from longrec.errors import LongrecError

DAY_SECONDS = 86_400.0
TOO_LARGE = (
    "longrec: this run makes a workflow of {mib:.1f} MiB. Above 1 MiB Kubeflow Pipelines shows no "
    "progress of its steps from some moment on; the run goes on. Fewer items of a loop make it "
    "smaller: lower platform.parallelism."
)
REQUIRED_PARAMETERS = {"data_uri": ("--data-uri", "a dataset"), "study": ("--study", "a study")}
"""Parameter without a default -> the option that gives it, and what it is."""

CreateExperiment = Annotated[
    bool, typer.Option("--create-experiment", help="Create the experiment if it is missing.")
]
DataUri = Annotated[
    str,
    typer.Option(
        help="Address of the dataset in the cluster: s3://bucket/dataset, or /data/dataset."
    ),
]
Pipeline = Annotated[str, typer.Option(help="training, refresh, drift, study or tune.")]
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
    typer.Option(help="Address of the artifacts; minio://bucket/path in a store of the cluster."),
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
    str, typer.Argument(help="training, refresh, drift, study or tune; default all.")
]
PlatformFileOrNone = Annotated[
    Path | None, typer.Option(help="A YAML file; its section `platform` is compiled in.")
]
OutputFolder = Annotated[
    Path | None, typer.Option(help="Folder to write to; default pipelines/compiled.")
]
Kubernetes = Annotated[
    bool,
    typer.Option("--kubernetes", help="Write manifests of a Pipeline and a PipelineVersion."),
]
ManifestNamespace = Annotated[
    str, typer.Option("--namespace", help="Namespace of the manifests; default none.")
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
    kubernetes: Kubernetes = False,
    namespace: ManifestNamespace = "",
    as_json: AsJson = False,
) -> None:
    """Compile the pipelines for a Kubeflow Pipelines server.

    \b
    Examples:
      longrec compile
      longrec compile training --config my.yaml --set platform.steps.train.gpu=1 --output /tmp
      longrec compile --check
      longrec compile --kubernetes --namespace kubeflow --output manifests
    """
    from longrec.runs.project import import_module

    compiler = import_module("pipelines.compiler")
    names = [pipeline] if pipeline else list(compiler.PIPELINES)
    if kubernetes and output is None:
        raise typer.BadParameter("Manifests need a folder.", param_hint="--output")
    if namespace and not kubernetes:
        raise typer.BadParameter("Only manifests have a namespace.", param_hint="--namespace")
    write = compiler.Manifests(namespace) if kubernetes else compiler.write_package
    folder = output or compiler.FOLDER
    platform = _build_platform(read_config(config, sets).platform)
    run = compiler.check_compiled if check else compiler.compile_all
    paths = [str(path) for path in run(names, folder, platform, write)]
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

    The pipeline is uploaded once, as a version named by its digest, and the run belongs to it.

    \b
    Examples:
      longrec submit --host http://localhost:8080 --data-uri s3://bucket/dataset --wait
      longrec submit --data-uri /data/dataset --config my.yaml \\
          --set platform.steps.train.gpu=1 --param webhook=https://chat/hook
    """
    prepared = _prepare(pipeline, data_uri, config, sets, params, study)
    server = connect(host, namespace, token_file, cookie_file)
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
    ended = wait_for(server, submitted.run_id, timeout) if wait else None
    if as_json:
        state = ended.state if ended else "SUBMITTED"
        print_result({**dataclasses.asdict(submitted), "state": state}, "", as_json=True)
    if ended:
        check_success(ended)


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
    prepared = _prepare(pipeline, data_uri, config, sets, params, study)
    server = connect(host, namespace, token_file, cookie_file)
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
) -> Any:
    """Return the submission of a pipeline with its arguments; warn if it is very large."""
    from longrec.config_file import changed_settings
    from longrec.runs.project import find_file, import_module
    from longrec.runs.run import pipeline_arguments

    content = read_config(config, sets)
    platform = _build_platform(content.platform)
    compiler = import_module("pipelines.compiler")
    made = compiler.pipeline(pipeline, platform)
    inputs = made.component_spec.inputs
    available = {
        **pipeline_arguments(content.run, data_uri, max_items=platform.parallelism),
        "drift": changed_settings(content.run).get("drift", {}),
    }
    arguments = {name: value for name, value in available.items() if name in inputs}
    if study is not None:
        from longrec.study.config import load, to_text

        with renamed_keys_on_stderr():
            arguments["study"] = to_text(load(find_file(study)))
    for text in params or ():
        name, value = _parse_parameter(text, inputs)
        arguments[name] = value
    _check_parameters(pipeline, arguments, inputs)
    spec = compiler.specification(made)
    _warn_of_size(spec, arguments, platform.parallelism)
    return import_module("pipelines.server.client").Submission(
        spec, arguments, content.run.name, service_account=platform.service_account
    )


def _warn_of_size(spec: Mapping[str, Any], arguments: Mapping[str, Any], parallelism: int) -> None:
    """Print a line if the server will show nothing new of the run from some moment on."""
    from longrec.runs.project import import_module

    outputs = {}
    if "study" in arguments:
        from longrec.study.config import parse
        from longrec.study.trial import plan, to_items

        outputs["plan.Output"] = to_items(plan(parse(arguments["study"])), parallelism)
    size = import_module("pipelines.workflow_size").workflow_size(
        spec["pipeline_spec"], spec["platform_spec"], arguments, outputs=outputs
    )
    if size.is_too_large:
        typer.echo(TOO_LARGE.format(mib=size.num_bytes / 2**20), err=True)


def _parse_parameter(text: str, inputs: Any) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE; the value is text or YAML, as the parameter's type."""
    from longrec.config_file import parse_yaml

    name, separator, value = text.partition("=")
    if not separator:
        raise LongrecError(f"--param {text} has no value", expected="NAME=VALUE")
    if name not in inputs or inputs[name].type == "String":
        return name, value
    return name, parse_yaml(value, f"the value of {name}")
