"""The verbs of versions: `longrec models list|promote|rollback|shadow`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longrec.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Decide which packaged model answers: list, promote, rollback, shadow.",
)

Workdir = Annotated[
    Path,
    typer.Option(
        help="The feature store and the registry of models live here (LONGREC_HOME of the service)."
    ),
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="The BentoML store; default BENTOML_HOME, else ~/bentoml.", show_default=False
    ),
]
Why = Annotated[
    str, typer.Option("--why", help="The reason; it is written to the log.", show_default=False)
]
By = Annotated[
    str | None,
    typer.Option(
        "--by", help="Who decides; default the user who is logged in.", show_default=False
    ),
]
Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="Of a model in the store, see `longrec models list`."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
]
DEFAULT_WORKDIR = Path(".longrec")


@app.command("list")
def list_models(
    workdir: Workdir = DEFAULT_WORKDIR, store: Store = None, as_json: Json = False
) -> None:
    """Show the models of the store, what each reached, which one answers, and who decided that,
    when and why.

    \b
    Examples:
      longrec models list
      longrec models list --workdir /srv/longrec --json
    """
    from longrec.cli import console
    from longrec.release import registry as models
    from longrec.serving import rollout

    found = rollout.summary(workdir, store or models.store_dir())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.show_models(found)


@app.command()
def promote(
    version: Version,
    why: Why,
    by: By = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a version the champion: running services load it aside, warm it and switch, without
    losing a request.

    \b
    Examples:
      longrec models promote 7ba15e10bc2d-04f875 --why "AUC +0.004 in the shadow, same latency"
      longrec models promote 7ba15e10bc2d-04f875 --why "release 12" --by release-bot --workdir
      /srv/longrec
    """
    from longrec.release import registry as models

    after = models.promote(
        workdir, store or models.store_dir(), _version(version), by=by or models.user(), why=why
    )
    _say(as_json, after, f"champion {after.champion}, before it {after.previous or 'none'}")


@app.command()
def rollback(
    why: Why,
    by: By = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Go back to the champion before this one; a second rollback undoes the first.

    \b
    Examples:
      longrec models rollback --why "calibration off since noon"
    """
    from longrec.release import registry as models

    after = models.rollback(workdir, store or models.store_dir(), by=by or models.user(), why=why)
    _say(as_json, after, f"champion {after.champion} again, before it {after.previous}")


@app.command()
def shadow(
    what: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|report|off", help="A version to start, the report, or off."
        ),
    ],
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the requests that the challenger gets a copy of."
        ),
    ] = 0.1,
    why: Annotated[
        str, typer.Option("--why", help="The reason; it is written to the log.")
    ] = "compare",
    by: By = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Run a challenger beside the champion on copies of live requests; its answers are compared,
    never sent.

    Copies are scored behind the answers, one at a time; those that would wait too long are dropped
    and counted.

    \b
    Examples:
      longrec models shadow 7ba15e10bc2d-04f875 --share 0.1
      longrec models shadow report
      longrec models shadow off
    """
    from longrec.cli import console
    from longrec.release import registry as models
    from longrec.serving import rollout

    if what == "report":
        found = rollout.shadow_report(workdir)
        if as_json:
            return typer.echo(json.dumps(found, indent=2))
        return console.show_shadow(found)
    by = by or models.user()
    if what == "off":
        return _say(as_json, models.unshadow(workdir, by=by, why=why), "nothing runs in the shadow")
    after = models.shadow(
        workdir, store or models.store_dir(), _version(what), share, by=by, why=why
    )
    _say(
        as_json,
        after,
        f"{after.challenger} gets a copy of {after.mirror_share:.3g} of the requests to {after.champion or 'the service'}",
    )


def _version(text: str) -> str:
    """Returns what stands behind the colon, of a tag or of a version alone."""
    version = text.rpartition(":")[2]
    if not version:
        raise ConfigError("no version is named", found=repr(text))
    return version


def _say(as_json: bool, registry: Any, text: str) -> None:
    value: Mapping[str, Any] = dataclasses.asdict(registry)
    typer.echo(json.dumps(value, indent=2) if as_json else text)
