"""The training curve: one row for every `log_every` steps."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
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
        validation_auc, validation_logloss: of the newest validation; None before the first one.
        seconds_left: estimated time to the end of the training.
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
    validation_auc: float | None = None
    validation_logloss: float | None = None
    seconds_left: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ValidationRow:
    """The first task on the validation requests after a step.

    Args:
        step: number of optimizer steps since the start.
        auc: AUC; None if all labels are equal.
        logloss: log loss in nats.
        seconds: time of the measurement.
    """

    step: int
    auc: float | None
    logloss: float
    seconds: float

    @property
    def quality(self) -> float:
        """The value that the best weights have the largest of."""
        return -self.logloss if self.auc is None else self.auc


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


def best_of(validations: Sequence[ValidationRow]) -> ValidationRow | None:
    """Return the first one of the highest quality; None for no rows."""
    # `max` returns the first one of equal values.
    return max(validations, key=lambda row: row.quality, default=None)


def num_without_improvement(validations: Sequence[ValidationRow]) -> int:
    """Return the number of validations after the best one."""
    best = best_of(validations)
    return sum(best is not None and row.step > best.step for row in validations)


def expected_gain(validations: Sequence[ValidationRow]) -> float | None:
    """Return the AUC that training twice as long is expected to gain.

    AUC is taken to rise by a constant for each doubling of the steps, as it did over the last
    doubling. It is 0 if the best validation was not the last one, and None if that is unknown.
    """
    best = best_of(validations)
    if best is None or best.auc is None:
        return None
    last = validations[-1]
    if best.step != last.step:
        return 0.0
    doublings = []
    aucs = []
    for row in validations:
        if row.auc is not None and 2 * row.step >= last.step:
            doublings.append(math.log2(row.step))
            aucs.append(row.auc)
    if len(aucs) < 2:
        return None
    slope, _ = statistics.linear_regression(doublings, aucs)
    return max(slope, 0.0)


def write_curve(path: Path, curve: Sequence[CurveRow]) -> None:
    """Write a curve as CSV; leave out columns without values."""
    rows = [dataclasses.asdict(row) for row in curve]
    names = []
    for name in rows[0]:
        if any(row[name] is not None for row in rows):
            names.append(name)
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
        writer.writerows(rows)
