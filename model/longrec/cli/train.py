"""The verb of the training step alone: `longrec train`, also under torchrun."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a configuration key; may be repeated."
    ),
]


def train(
    histories: Annotated[
        Path,
        typer.Argument(
            help="A histories directory, as the step retrieve leaves it in a run's artifacts."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The bundle and training_curve.csv go here.")],
    config: Annotated[
        Path, typer.Option(help="A YAML file of longrec.config; see configs/.")
    ] = Path("configs/quickstart.yaml"),
    sets: Sets = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Where checkpoints lie; default beside OUT.")
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Where TensorBoard's files lie; default beside OUT.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")
    ] = False,
) -> None:
    """Train on histories that are there already, by one process or, under torchrun, by several.

    Killed or not, the same command goes on from the last checkpoint. docs/distributed.md says what
    several processes share.

    \b
    Examples:
      longrec train .longrec/runs/RUN/artifacts/*/join-histories/histories /tmp/bundle
      torchrun --nproc-per-node 2 -m longrec train HISTORIES OUT --set train.token_budget=131072
    """
    from longrec import config as configuration
    from longrec.reporting.summary import facts
    from longrec.training.train import train as train_ranker

    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING if rank == 0 else logging.ERROR, format="%(message)s")
    logging.getLogger("longrec").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    settings = configuration.load(config, sets or [])
    report = train_ranker(
        histories,
        out,
        settings.model,
        settings.lengths,
        settings.train,
        settings.evaluate.served_length,
        settings.seed,
        checkpoint_dir=checkpoint_dir,
        log_dir=log_dir,
    )
    if rank == 0:
        typer.echo(
            json.dumps(facts(report), indent=2)
            if as_json
            else f"{out}: version {report.version}, {report.num_steps} steps, "
            f"{report.events_per_second:,.0f} events/s, final loss {report.final_loss:.4f}"
        )
