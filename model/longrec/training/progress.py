"""Report the rows of the training curve: to a caller, a terminal, the log and TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from longrec.training.curve import CurveRow, Listener

BAR_WIDTH = 10
"""Width of the progress bar in characters."""
log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress_listener(on_progress: Listener | None) -> Iterator[Listener]:
    """Yield the caller's listener, or one for a progress bar or the log.

    Args:
        on_progress: the caller's; None for a progress bar on a terminal and the log elsewhere.
    """
    if on_progress is not None:
        yield on_progress
    elif sys.stderr.isatty():
        with _progress_bar() as update:
            yield update
    else:
        yield _log_row


@contextlib.contextmanager
def tensorboard_listener(directory: Path | None, step: int) -> Iterator[Listener]:
    """Yield a listener that writes TensorBoard's files.

    It does nothing without a directory, or if TensorBoard is not installed.

    Args:
        directory: folder of the files.
        step: step that the training resumes after. TensorBoard hides the rows that an interrupted
            start wrote after it.
    """
    if directory is None:
        yield ignore_row
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield ignore_row
        return
    with SummaryWriter(str(directory), purge_step=step + 1) as writer:

        def write(row: CurveRow, num_steps: int) -> None:
            for name, value in dataclasses.asdict(row).items():
                if name != "step" and value is not None:
                    writer.add_scalar(f"train/{name}", value, row.step)
            writer.flush()

        yield write


def ignore_row(row: CurveRow, num_steps: int) -> None:
    """Do nothing: a listener for processes that report nothing."""


def _log_row(row: CurveRow, num_steps: int) -> None:
    log.info(
        "step %d/%d %s, %d events, %d targets, %.1f s",
        row.step,
        num_steps,
        _summary(row),
        row.events,
        row.targets,
        row.seconds,
    )


def _summary(row: CurveRow) -> str:
    """Return loss, speed, memory, and MFU if it is known, as one line."""
    parts = [
        f"loss {row.loss:.4f}",
        f"{row.events_per_second:,.0f} events/s",
        f"{row.targets_per_second:,.0f} targets/s",
        f"{row.memory_bytes / 2**30:.1f} GiB",
    ]
    if row.mfu is not None:
        parts.append(f"MFU {row.mfu:.1%}")
    return ", ".join(parts)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Listener]:
    """Yield a listener that updates a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        BarColumn(bar_width=BAR_WIDTH),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("training", total=None)

        def update(row: CurveRow, num_steps: int) -> None:
            progress.update(
                task,
                total=num_steps,
                completed=row.step,
                description=f"step {row.step:,}/{num_steps:,} {_summary(row)}",
            )

        yield update
