"""The command of the training step alone: `longrec train`, also under torchrun."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from longrec.cli.options import (
    DEFAULT_CONFIG,
    AsJson,
    Config,
    Overrides,
    print_result,
    read_run_config,
)

HistoriesArgument = Annotated[
    Path, typer.Argument(help="A histories directory: output of the step join-histories of a run.")
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="Directory for the bundle and training_curve.csv.")
]
CheckpointDir = Annotated[
    Path | None,
    typer.Option(help="Directory of the checkpoints; default next to OUT.", show_default=False),
]
LogDir = Annotated[
    Path | None,
    typer.Option(help="Directory for TensorBoard; default next to OUT.", show_default=False),
]


def train(
    histories: HistoriesArgument,
    out: BundleArgument,
    config: Config = DEFAULT_CONFIG,
    sets: Overrides = None,
    checkpoint_dir: CheckpointDir = None,
    log_dir: LogDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a ranker on existing histories, in one process or in several under torchrun.

    An interrupted training resumes from its last checkpoint: type the same command again.
    docs/guides/train-distributed.md describes training with several processes.

    \b
    Examples:
      longrec train .longrec/runs/RUN/artifacts/*/join-histories/histories /tmp/bundle
      torchrun --nproc-per-node 2 -m longrec train HISTORIES OUT --set train.token_budget=131072
    """
    from longrec.reporting.summary import as_dict
    from longrec.training.train import train as train_ranker

    rank = int(os.environ.get("RANK", "0"))
    _configure_logging(rank)
    settings = read_run_config(config, sets)
    report = train_ranker(
        histories,
        out,
        settings.model,
        lengths=settings.lengths,
        train=settings.train,
        served_lengths=settings.evaluate.served_lengths,
        seed=settings.seed,
        checkpoint_dir=checkpoint_dir,
        log_dir=log_dir,
    )
    if rank == 0:
        text = (
            f"{out}: version {report.version}, {report.num_steps} steps, "
            f"{report.events_per_second:,.0f} events/s, final loss {report.final_loss:.4f}"
        )
        print_result(as_dict(report), text, as_json=as_json)


def _configure_logging(rank: int) -> None:
    """Show the progress of the first process, and errors only of the others."""
    logging.basicConfig(level=logging.WARNING if rank == 0 else logging.ERROR, format="%(message)s")
    logging.getLogger("longrec").setLevel(logging.INFO if rank == 0 else logging.ERROR)
