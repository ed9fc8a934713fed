"""The commands of model versions: `longrec models list|promote|rollback|shadow`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.cli.options import (
    DEFAULT_WORKDIR,
    AsJson,
    ExistingWorkdir,
    command_group,
    print_result,
)
from longrec.errors import ConfigError

app = command_group("Decide which packaged model answers: list, promote, rollback, shadow.")

Store = Annotated[
    Path | None,
    typer.Option(
        help="The BentoML store; default BENTOML_HOME, else ~/bentoml.", show_default=False
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


@app.command("list")
def list_models(
    workdir: ExistingWorkdir = DEFAULT_WORKDIR, store: Store = None, as_json: AsJson = False
) -> None:
    """Show the models of the store, their metrics and roles, and the log of decisions.

    \b
    Examples:
      longrec models list
      longrec models list --workdir /srv/longrec --json
    """
    from longrec.cli.tables import show_models
    from longrec.serving.rollout import worker_reports

    summary = worker_reports.rollout_summary(workdir, _store_dir(store))
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
        workdir, _store_dir(store), _version(version), by=_decider(by), why=why
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

    after = registry.rollback(workdir, _store_dir(store), by=_decider(by), why=why)
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
            workdir, _store_dir(store), version, share, by=_decider(by), why=why
        )
        champion = after.champion or "the service"
        text = (
            f"{version} receives a copy of {after.mirror_share:.3g} of the requests to {champion}"
        )
    print_result(dataclasses.asdict(after), text, as_json=as_json)


def _show_shadow_report(workdir: Path, as_json: bool) -> None:
    from longrec.cli.tables import show_shadow
    from longrec.serving.rollout import worker_reports

    comparison: Any = worker_reports.shadow_report(workdir)
    if as_json:
        typer.echo(json.dumps(comparison, indent=2))
    else:
        show_shadow(comparison)


def _store_dir(store: Path | None) -> Path:
    from longrec.release.model_store import store_dir

    return store or store_dir()


def _decider(by: str | None) -> str:
    from longrec.release.registry import current_user

    return by or current_user()


def _version(text: str) -> str:
    """Return the version in a tag `name:version`, or the text itself."""
    version = text.rpartition(":")[2]
    if not version:
        raise ConfigError("the version is empty", found=repr(text))
    return version
