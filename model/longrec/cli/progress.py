"""Progress on stderr: a spinner on a terminal; on a pipe one line per finished step.

On a pipe, a long step also tells its newest message every PIPE_SECONDS.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from longrec.runs.local_run import FinishedStep, StepStatus
from longrec.runs.steps import is_shown

STATUS_STYLES: dict[StepStatus, tuple[str, str]] = {
    "done": ("ok", "green"),
    "cached": ("cached", "cyan"),
    "failed": ("FAILED", "red"),
}
NAME_WIDTH = 18
PIPE_SECONDS = 10.0
ELAPSED_WIDTH = 7


class StepProgress:
    """A display of the running step, with one line per finished step.

    A context manager, and a `longrec.runs.local_run.ProgressListener`.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = _spinner(self._console)
        self._task: Any = None
        self._start = time.perf_counter()
        self._name = ""
        self._last_line = self._start

    def __enter__(self) -> StepProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._clear()
        self._name = name
        if is_shown(name):
            self._task = self._progress.add_task(name, total=None, detail="")

    def detail(self, text: str) -> None:
        if self._task is None:
            return
        self._progress.update(self._task, detail=escape(text))
        now = time.perf_counter()
        if not self._console.is_terminal and now - self._last_line >= PIPE_SECONDS:
            self._last_line = now
            line = f"        {self._name:<{NAME_WIDTH}}{text}"
            self._console.print(line, markup=False, soft_wrap=True)

    def end(self, step: FinishedStep) -> None:
        self._clear()
        self._last_line = time.perf_counter()
        if is_shown(step.name) or step.status == "failed":
            self._print_line(step)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[StepStatus]]:
        """Show a step that runs in this process.

        The step is reported as done. The body appends another status to the list to change that.
        """
        statuses: list[StepStatus] = ["done"]
        started = time.perf_counter()
        self.begin(name)
        yield statuses
        self.end(FinishedStep(name, statuses[-1], time.perf_counter() - started))

    def _print_line(self, step: FinishedStep) -> None:
        text, style = STATUS_STYLES[step.status]
        total = time.perf_counter() - self._start
        self._console.print(
            Text.assemble(
                (f"{text:>7} ", style),
                f"{step.name:<{NAME_WIDTH}}{step.seconds:8.1f} s",
                (f"   {total:7.1f} s in all", "dim"),
            )
        )

    def _clear(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a spinner with the elapsed time while the body runs, on a terminal only."""
    console = Console(stderr=True, highlight=False)
    with _spinner(console) as progress:
        progress.add_task(escape(text), total=None, detail="")
        yield


@contextlib.contextmanager
def count_progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many of `total` are done; it prints on a terminal only."""
    console = Console(stderr=True, highlight=False)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(escape(text), total=total)
        yield lambda num_done: progress.update(task, completed=num_done)


def _spinner(console: Console) -> Progress:
    # Only the detail may shrink on a narrow terminal.
    name = Column(no_wrap=True, min_width=NAME_WIDTH)
    detail = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Progress(
        SpinnerColumn(table_column=Column(min_width=1)),
        TextColumn("{task.description}", table_column=name),
        TimeElapsedColumn(table_column=Column(min_width=ELAPSED_WIDTH)),
        TextColumn("[dim]{task.fields[detail]}", table_column=detail),
        expand=True,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
