"""Report the rows of the training curve: to a caller, a terminal, the log and TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from longrec.training.curve import CurveRow, Listener

BAR_WIDTH = 10
"""Width of the progress bar in characters."""
BAR_SECONDS = 1.0
LOG_SECONDS = 10.0
"""Time between two lines in the log; the bar moves more often."""
log = logging.getLogger(__name__)


class Reporter:
    """Passes rows of the training curve on to a listener.

    Args:
        listener: gets the rows.
        tick_seconds: time without a row after which it gets the state between two rows; infinite
            for never.
        is_throttled: whether rows within that time of the one before are left out, apart from the
            last row and from new validations.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        tick_seconds: float = math.inf,
        is_throttled: bool = False,
    ) -> None:
        self._listener = listener
        self._tick_seconds = tick_seconds
        self._is_throttled = is_throttled
        self._last_shown = time.monotonic()
        self._last_metric: float | None = None

    def show(self, row: CurveRow, num_steps: int) -> None:
        """Pass a row on."""
        is_news = row.step == num_steps or row.validation_logloss != self._last_metric
        if self._is_throttled and not is_news and not self._is_tick_due():
            return
        self._last_shown = time.monotonic()
        self._last_metric = row.validation_logloss
        self._listener(row, num_steps)

    def tick(self, make_row: Callable[[], CurveRow], num_steps: int) -> None:
        """Pass the current state on if the listener has got nothing for a while."""
        if self._is_tick_due():
            self.show(make_row(), num_steps)

    def _is_tick_due(self) -> bool:
        return time.monotonic() - self._last_shown >= self._tick_seconds


@contextlib.contextmanager
def progress_reporter(on_progress: Listener | None) -> Iterator[Reporter]:
    """Yield a reporter to the caller's listener, a progress bar or the log.

    Args:
        on_progress: the caller's; None for a progress bar on a terminal and the log elsewhere.
    """
    if on_progress is not None:
        yield Reporter(on_progress)
    elif sys.stderr.isatty():
        with _progress_bar() as update:
            yield Reporter(update, tick_seconds=BAR_SECONDS)
    else:
        yield Reporter(_log_row, tick_seconds=LOG_SECONDS, is_throttled=True)


@contextlib.contextmanager
def tensorboard_reporter(directory: Path | None, step: int) -> Iterator[Reporter]:
    """Yield a reporter that writes TensorBoard's files.

    It does nothing without a directory, or if TensorBoard is not installed.

    Args:
        directory: folder of the files.
        step: step that the training resumes after. TensorBoard hides the rows that an interrupted
            start wrote after it.
    """
    if directory is None:
        yield Reporter(ignore_row)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield Reporter(ignore_row)
        return
    with SummaryWriter(str(directory), purge_step=step + 1) as writer:

        def write(row: CurveRow, num_steps: int) -> None:
            for name, value in dataclasses.asdict(row).items():
                if name != "step" and value is not None:
                    writer.add_scalar(f"train/{name}", value, row.step)
            writer.flush()

        yield Reporter(write)


def ignore_row(row: CurveRow, num_steps: int) -> None:
    """Do nothing: a listener for processes that report nothing."""


def _log_row(row: CurveRow, num_steps: int) -> None:
    left = "unknown" if row.seconds_left is None else f"{row.seconds_left:,.0f} s"
    log.info("step %d/%d %s, %s left", row.step, num_steps, _summary(row), left)


def _summary(row: CurveRow) -> str:
    """Return loss, validation, speed, memory, and MFU if it is known, as one line."""
    parts = [
        f"loss {row.loss:.4f}",
        *_validation_texts(row),
        f"{row.events_per_second:,.0f} events/s",
        f"{row.targets_per_second:,.0f} targets/s",
        f"{row.memory_bytes / 2**30:.1f} GiB",
    ]
    if row.mfu is not None:
        parts.append(f"MFU {row.mfu:.1%}")
    return ", ".join(parts)


def _validation_texts(row: CurveRow) -> list[str]:
    if row.validation_auc is not None:
        return [f"validation AUC {row.validation_auc:.4f}"]
    if row.validation_logloss is not None:
        return [f"validation log loss {row.validation_logloss:.4f}"]
    return []


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
