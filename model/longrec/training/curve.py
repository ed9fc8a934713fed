"""The training curve: one row for every `log_every` steps."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias


@dataclasses.dataclass(frozen=True, slots=True)
class CurveRow:
    """One row of training_curve.csv.

    Args:
        step: number of optimizer steps since the start.
        loss: mean loss since the row before.
        learning_rate: learning rate of the last step.
        gradient_norm: norm of the last step's dense gradients, before clipping.
        events: total number of events since the start.
        targets: total number of targets since the start.
        seconds: total time of the training loop; of a resumed training, over all its starts.
        events_per_second: since the row before.
        targets_per_second: since the row before.
        memory_bytes: peak memory of the device (on a CPU: of the process).
        mfu: model FLOPs utilization since the row before, the share of the peak matrix rate; None
            without a known peak. It is a lower bound: only the FLOPs of the attention stack are
            counted, not those of embeddings, head and optimizer.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    events: int
    targets: int
    seconds: float
    events_per_second: float
    targets_per_second: float
    memory_bytes: int
    mfu: float | None = None


NO_ROW = CurveRow(
    step=0,
    loss=0.0,
    learning_rate=0.0,
    gradient_norm=0.0,
    events=0,
    targets=0,
    seconds=0.0,
    events_per_second=0.0,
    targets_per_second=0.0,
    memory_bytes=0,
)
"""Stands for the row before the first one."""

Listener: TypeAlias = Callable[[CurveRow, int], None]
"""Function that gets each row of the curve and the number of steps of the whole training."""


def write_curve(path: Path, curve: Sequence[CurveRow]) -> None:
    """Write a curve as CSV; leave out columns without values."""
    first_row = dataclasses.asdict(curve[0])
    names = [name for name, value in first_row.items() if value is not None]
    with open(
        path,
        "w",
        newline="",
        encoding="utf-8",
    ) as stream:
        writer = csv.DictWriter(
            stream,
            names,
            extrasaction="ignore",
        )
        writer.writeheader()
        for row in curve:
            writer.writerow(dataclasses.asdict(row))
