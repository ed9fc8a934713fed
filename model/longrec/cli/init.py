"""The command that derives a configuration from a dataset: `longrec init`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrec.cli.options import Overrides

if TYPE_CHECKING:
    from longrec.runs.autoconfig.log_facts import LogFacts
    from longrec.runs.autoconfig.settings import Derived

DEFAULT_BUDGET = "5m"
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600}

DatasetUri = Annotated[str, typer.Option(help="A dataset: a directory, s3:// or gs://.")]
Budget = Annotated[
    str, typer.Option(help="Longest time of the training, for example 90s, 10m or 2h.")
]
OutputFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write to a file instead of stdout.")
]


def init(
    data: DatasetUri,
    budget: Budget = DEFAULT_BUDGET,
    sets: Overrides = None,
    output: OutputFile = None,
) -> None:
    """Print a configuration for a dataset, with the reason of each setting.

    `longrec run --data DIR` without --config uses the same settings.

    \b
    Examples:
      longrec init --data data/clicks > clicks.yaml
      longrec init --data data/clicks --budget 1h --output clicks.yaml
    """
    from longrec.runs.autoconfig.yaml_text import to_yaml

    derived, facts = derive_settings(data, budget, sets)
    text = to_yaml(derived, facts)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def derive_settings(
    data: str, budget: str, overrides: list[str] | None
) -> tuple[Derived, LogFacts]:
    """Return the settings for a dataset on this machine, and the facts they follow from.

    Raises:
        DataError: there is no usable dataset.
        ConfigError: an override is wrong.
    """
    from longrec.runs.autoconfig.log_facts import measure_log
    from longrec.runs.autoconfig.machine import Machine
    from longrec.runs.autoconfig.settings import derive

    seconds = budget_seconds(budget)
    facts = measure_log(data)
    derived = derive(facts, Machine.here(), seconds).override(overrides or [])
    _ = derived.config  # A wrong override is reported before anything is printed.
    return derived, facts


def budget_seconds(text: str) -> float:
    """Return the seconds of a text such as `90s`, `10m` or `2h`.

    Raises:
        typer.BadParameter: the text is no positive time.
    """
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(matched[1]) * UNIT_SECONDS[matched[2] or "s"] if matched else 0.0
    if seconds <= 0:
        raise typer.BadParameter(
            f"'{text}' is no time; expected for example 90s, 10m or 2h.", param_hint="--budget"
        )
    return seconds
