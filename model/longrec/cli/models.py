"""The commands of models: `longrec evaluate`, `longrec package`, `longrec models ...`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.cli.options import (
    DEFAULT_WORKDIR,
    AsJson,
    ExistingWorkdir,
    Overrides,
    Workdir,
    command_group,
    print_result,
)
from longrec.errors import ConfigError, GateRefused

app = command_group("Decide which packaged model answers: list, promote, rollback, shadow.")

Store = Annotated[
    Path | None,
    typer.Option(
        help="The BentoML store; default BENTOML_HOME, else WORKDIR/bentoml.", show_default=False
    ),
]
Why = Annotated[
    str, typer.Option("--why", help="The reason, for the log of decisions.", show_default=False)
]
By = Annotated[
    str | None,
    typer.Option("--by", help="Who decides; default the current user.", show_default=False),
]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version of a model; see `longrec models list`.")
]
ShadowAction = Annotated[
    str,
    typer.Argument(
        metavar="VERSION|report|off", help="A version to start, the report, or the end."
    ),
]
Share = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the requests copied to the challenger.")
]


Registry = Annotated[
    str,
    typer.Option(
        "--registry", metavar="bentoml|mlflow|kubeflow", help="The registry of models to read."
    ),
]
Source = Annotated[
    str,
    typer.Option(
        "--from", metavar="bentoml|mlflow|kubeflow", help="The registry whose aliases hold."
    ),
]
RunId = Annotated[
    str,
    typer.Option("--run", metavar="ID", help="A run of the work directory; default the latest."),
]
BundleDir = Annotated[
    Path | None,
    typer.Option("--bundle", help="Another bundle of the same schema.", show_default=False),
]
Force = Annotated[
    bool, typer.Option("--force", help="Package the model though its gate refused it.")
]


def evaluate(
    run_id: RunId = "",
    bundle: BundleDir = None,
    sets: Overrides = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model again, on the histories and with the settings of a finished run.

    \b
    Exit codes: 0 the gate passed; 1 an error; 2 usage error; 3 the gate refused the model.

    \b
    Examples:
      longrec evaluate --set evaluate.served_length=256
      longrec evaluate --run 20260101-120000-clicks --bundle models/other --json
    """
    from longrec.cli.progress import waiting
    from longrec.cli.tables import show_evaluation
    from longrec.runs.finished_run import FinishedRun, evaluate_again

    finished = FinishedRun.open(workdir, run_id)
    with waiting("evaluate"):
        results = evaluate_again(finished, finished.config(sets or ()), bundle_dir=bundle)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        show_evaluation(results)
    if not results["gate"]["passed"]:
        raise typer.Exit(GateRefused.exit_code)


def package(
    run_id: RunId = "",
    force: Force = False,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Package the model of a finished run, also one that its gate refused.

    A forced model is marked in its labels and model card, and never becomes the champion by itself.

    \b
    Exit codes: 0 packaged; 1 an error; 2 usage error; 3 the gate refused the model.

    \b
    Examples:
      longrec package --force
      longrec package --run 20260101-120000-clicks --force --json
    """
    from longrec.cli.progress import waiting
    from longrec.cli.run import next_commands
    from longrec.runs.finished_run import FinishedRun, package_again

    finished = FinishedRun.open(workdir, run_id)
    with waiting("package"):
        summary = package_again(finished, force=force)
    lines = [f"bento    {summary['bento_tag']}"]
    if summary["forced"]:
        lines.append("gate     REFUSED; packaged by force, not promoted")
    lines += [f"next     {command}" for command in next_commands(summary, workdir)]
    result = {name: summary[name] for name in ("run", "bento_tag", "forced", "gate")}
    print_result(result, "\n".join(lines), as_json=as_json)


@app.command("list")
def list_models(
    registry: Registry = "bentoml",
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show the models of the store, their metrics and roles, and the log of decisions.

    Of another registry: its versions, their aliases and labels.

    \b
    Examples:
      longrec models list
      longrec models list --workdir /srv/longrec --json
      longrec models list --registry mlflow
    """
    from longrec.cli.tables import show_models
    from longrec.release.catalog import BENTOML

    if registry != BENTOML:
        _list_entries(registry, workdir, _store_dir(store, workdir), as_json)
        return
    from longrec.serving.rollout import worker_reports

    summary = worker_reports.rollout_summary(workdir, _store_dir(store, workdir))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        show_models(summary)


@app.command()
def promote(
    version: Version,
    why: Why,
    by: By = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion.

    Running services load it, warm it up and switch to it without losing a request.

    \b
    Examples:
      longrec models promote 7ba15e10bc2d-04f875 --why "AUC +0.004 in the shadow"
      longrec models promote 7ba15e10bc2d-04f875 --why "release 12" --by release-bot
    """
    from longrec.release import registry

    after = registry.promote(
        workdir, _store_dir(store, workdir), _version(version), by=_decider(by), why=why
    )
    text = f"champion {after.champion}, before it {after.previous or 'none'}"
    print_result(dataclasses.asdict(after), text, as_json=as_json)


@app.command()
def rollback(
    why: Why,
    by: By = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Return to the previous champion; a second rollback undoes the first.

    \b
    Examples:
      longrec models rollback --why "calibration off since noon"
    """
    from longrec.release import registry

    after = registry.rollback(workdir, _store_dir(store, workdir), by=_decider(by), why=why)
    text = f"champion {after.champion} again, before it {after.previous}"
    print_result(dataclasses.asdict(after), text, as_json=as_json)


@app.command()
def shadow(
    action: ShadowAction,
    share: Share = 0.1,
    why: Annotated[str, typer.Option("--why", help="The reason, for the log.")] = "compare",
    by: By = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Score copies of live requests with a challenger; its scores are compared, never sent.

    Copies are scored after the answers, one at a time. Copies that would wait too long are dropped
    and counted.

    \b
    Examples:
      longrec models shadow 7ba15e10bc2d-04f875 --share 0.1
      longrec models shadow report
      longrec models shadow off
    """
    from longrec.release import registry

    if action == "report":
        _show_shadow_report(workdir, as_json)
        return
    if action == "off":
        after = registry.stop_shadow(workdir, by=_decider(by), why=why)
        text = "no version runs in the shadow"
    else:
        version = _version(action)
        after = registry.start_shadow(
            workdir, _store_dir(store, workdir), version, share, by=_decider(by), why=why
        )
        champion = after.champion or "the service"
        text = (
            f"{version} receives a copy of {after.mirror_share:.3g} of the requests to {champion}"
        )
    print_result(dataclasses.asdict(after), text, as_json=as_json)


@app.command()
def sync(
    source: Source = "bentoml",
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Bring the registries to one state, after one was down or somebody moved an alias there.

    By default the configured ones get the versions and aliases of the work directory. With --from,
    the work directory takes the champion and the challenger of that registry, as a decision.

    \b
    Examples:
      longrec models sync
      longrec models sync --from mlflow
    """
    from longrec.release import catalog

    folder = _store_dir(store, workdir)
    names = [catalog.BENTOML] if source != catalog.BENTOML else catalog.configured()
    if not names:
        variables = " or ".join(catalog.VARIABLES.values())
        raise ConfigError("no other registry is configured", expected=variables)
    reason = f"the aliases of {source}"
    origin = catalog.open_catalog(source, workdir, folder)
    aliases = {}
    for name in names:
        target = catalog.open_catalog(name, workdir, folder, why=reason)
        with catalog.server_errors(name):
            aliases[name] = catalog.synchronize(origin, target, folder)
    lines = [f"{name}: {_in_words(found)}" for name, found in aliases.items()]
    print_result(aliases, "\n".join(lines), as_json=as_json)


def _in_words(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} {version}" for alias, version in aliases.items()) or "no champion"


def _list_entries(registry: str, workdir: Path, store: Path, as_json: bool) -> None:
    """Show the versions of a registry other than the BentoML store."""
    from longrec.release import catalog

    opened = catalog.open_catalog(registry, workdir, store)
    with catalog.server_errors(registry):
        entries = opened.entries()
    lines = [f"{entry.version:<24}{entry.number:<6}{', '.join(entry.aliases)}" for entry in entries]
    content = {"registry": registry, "models": [dataclasses.asdict(entry) for entry in entries]}
    print_result(content, "\n".join(lines) or "no models", as_json=as_json)


def _show_shadow_report(workdir: Path, as_json: bool) -> None:
    from longrec.cli.tables import show_shadow
    from longrec.serving.rollout import worker_reports

    comparison: Any = worker_reports.shadow_report(workdir)
    if as_json:
        typer.echo(json.dumps(comparison, indent=2))
    else:
        show_shadow(comparison)


def _store_dir(store: Path | None, workdir: Path) -> Path:
    from longrec.release.model_store import store_dir

    return store or store_dir(workdir)


def _decider(by: str | None) -> str:
    from longrec.release.registry import current_user

    return by or current_user()


def _version(text: str) -> str:
    """Return the version in a tag `name:version`, or the text itself."""
    version = text.rpartition(":")[2]
    if not version:
        raise ConfigError("the version is empty", found=repr(text))
    return version
