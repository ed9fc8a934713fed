"""The verb of studies: `longrec study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the base configuration; repeatable."
    ),
]


def study(
    config: Annotated[
        Path,
        typer.Option(help="A YAML file: base, variants, grid, seeds; see configs/study-*.yaml."),
    ],
    histories: Annotated[
        Path,
        typer.Option(
            help="A histories directory, as the step retrieve leaves it in a run's artifacts."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Results go here; what is there already is not run again.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes; on a GPU they share it.")] = 1,
    limit: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Start no run later than this; 0 for no limit."
        ),
    ] = 0,
    only_report: Annotated[
        bool,
        typer.Option("--only-report", help="Run nothing; write tables and page of what is there."),
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a grid of models on the same histories and compare them on the same requests.

    Writes OUT/report.html, runs.csv, curves.csv, differences.csv, fits.csv, study.json; one file
    per run in OUT/runs. Kill it whenever
    you like: the next call goes on with the runs that are left. Ends with 1 where a run failed; the
    next call tries it again.

    \b
    Examples:
      longrec study --config configs/study-synthetic.yaml --histories
      .longrec/runs/RUN/artifacts/*/join-histories/histories --out OUT
      longrec study --config configs/study-dev-events.yaml --histories DIR --out OUT --workers 4
      --limit 480
    """
    from longrec.study import runner as studies
    from longrec.study.report import at_served

    settings = studies.load(config, sets or [])
    if only_report:
        report = studies.collect(out, settings)
    else:
        report = studies.grid(
            histories, out, settings, num_workers=workers, limit_seconds=limit, on_run=_say
        )
    if as_json:
        value = {
            "name": report.name,
            "num_cells": report.num_trials,
            "num_done": report.num_done,
            "recovery": report.recovery,
            "report": str(out / "report.html"),
            "curves": report.curves,
            "failures": report.failures,
        }
        typer.echo(json.dumps(value, indent=2))
        raise typer.Exit(1 if report.failures else 0)
    for row in at_served(report.curves, settings.base.evaluate.served_length):
        point = (
            "".join(f", {key} {value}" for key, value in row.items() if "." in key)
            + f" at {row['length']:,}"
        )
        around = (
            "" if row["auc_low"] is None else f"  {row['auc_low']:.4f} to {row['auc_high']:.4f}"
        )
        typer.echo(
            f"{row['variant'] + point:<40} AUC {'not defined' if row['auc'] is None else format(row['auc'], '.4f')}{around}"
        )
    typer.echo(f"{report.num_done} of {report.num_trials} runs; {out / 'report.html'}")
    for failure in report.failures:
        typer.echo(f"{failure['id']}: {failure['error']}", err=True)
    if report.failures:
        raise typer.Exit(1)


def _say(row: dict[str, Any], done: int, of: int) -> None:
    typer.echo(
        f"{done:>4}/{of} {row['id']:<52} AUC {row['auc'] or float('nan'):.4f}  {row['train_events_read']:>12,} events  "
        f"{row['seconds']:.1f} s",
        err=True,
    )
