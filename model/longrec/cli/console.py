"""What a person sees: progress of a run on stderr, results as short tables on stdout."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

MARKS = {"done": ("ok", "green"), "cached": ("cached", "cyan"), "failed": ("FAILED", "red")}
QUIET = ("fingerprint", "finish")
"""Steps that take no time; not worth a line."""


class StepProgress:
    """Shows a spinner for the running step and leaves one line per finished one; on a pipe, only
    the lines.

    A context manager; also a `pipelines.local_runner.Listener`.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
        )
        self._progress = Progress(
            *columns,
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None
        self._start = time.perf_counter()

    def __enter__(self) -> StepProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._clear()
        if name not in QUIET:
            self._task = self._progress.add_task(name, total=None, detail="")

    def detail(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, detail=escape(text))

    def end(self, step: Any) -> None:
        self._clear()
        if step.name not in QUIET or step.status == "failed":
            self.line(step.name, step.seconds, step.status)

    def line(
        self,
        name: str,
        seconds: float,
        status: str = "done",
    ) -> None:
        """Prints the line of a finished step."""
        text, style = MARKS[status]
        total = time.perf_counter() - self._start
        self._console.print(
            Text.assemble(
                (f"{text:>7} ", style),
                f"{name:<18}{seconds:8.1f} s",
                (f"   {total:7.1f} s in all", "dim"),
            )
        )

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(Text(f"        {text}", style="dim"))

    def _clear(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def show_summary(summary: Mapping[str, Any], next_commands: Sequence[str]) -> None:
    """Prints the tables of a run: metrics per task, served lengths, seconds per step, the verdict,
    what to type next.
    """
    console = _out()
    console.print(_metrics(summary))
    if summary["lengths"]:
        console.print(_lengths(summary["lengths"]))
    steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in summary["seconds"].items())
    console.print(f"seconds  {steps}")
    console.print(
        f"data     {summary['dataset']['name']}: {summary['num_requests']:,} requests, {summary['num_targets']:,} targets"
    )
    console.print(f"report   {summary['report']}")
    passed = summary["gate"]["passed"]
    console.print(
        f"gate     {'passed' if passed else 'REFUSED'}", style="green" if passed else "red"
    )
    for reason in summary["gate"]["reasons"]:
        console.print(f"         {reason}")
    console.print(f"bento    {summary['bento_tag'] or 'none'}")
    if next_commands:
        console.print("next     " + "\n         ".join(next_commands), style="bold")


def show_dataset(report: Mapping[str, Any]) -> None:
    """Prints what an import or a synthesis wrote."""
    console, facts, rejects = _out(), report, report.get("reject_reasons") or {}
    console.print(f"dataset   {facts['path']}")
    counts = ", ".join(
        f"{facts[f'num_{name}']:,} {name}"
        for name in ("events", "users", "items", "requests", "targets")
    )
    console.print(f"rows      {counts}")
    console.print(
        f"time      {' .. '.join(str(request_time) for request_time in facts['time_range'])}"
    )
    for name, title in (
        ("events_per_user", "events of a user"),
        ("history_length", "history of a request"),
    ):
        console.print(
            f"{title:<20}  " + "  ".join(f"{key} {value:,}" for key, value in facts[name].items())
        )
    console.print(
        "labels    "
        + ", ".join(f"{task} {rate:.2%}" for task, rate in facts["label_rates"].items())
    )
    if rejects:
        share = f"{facts['rows_rejected']:,} of {facts['rows_read']:,} rows of the log"
        console.print(f"rejected  {share}; see {facts['rejects_path']}", style="yellow")
        for reason, count in rejects.items():
            console.print(f"          {count:>9,}  {reason}")
    for note in facts.get("notes", ()):
        console.print(f"note      {note}")
    if facts.get("best_possible_auc"):
        rows = "  ".join(
            f"{row['length']:,}: {row['auc']:.4f}" for row in facts["best_possible_auc"]
        )
        console.print(
            f"best possible AUC by history length  {rows}  (all events: {facts['best_possible_auc_full']:.4f})"
        )


def show_models(found: Mapping[str, Any]) -> None:
    """Prints the models of the store, the workers that serve, and the last decisions
    (`versions.summary`).
    """
    console = _out()
    metrics = sorted(
        {name for model in found["models"] for name in model["labels"] if name.endswith(".auc")}
    )
    table = _table(f"{len(found['models'])} models", "version", "role", "created", *metrics)
    for model in found["models"]:
        table.add_row(
            model["version"],
            model["role"],
            model["created"][:16],
            *(model["labels"].get(name, "-") for name in metrics),
        )
    console.print(table)
    for model in found["models"]:
        if model["problem"]:
            problem = textwrap.shorten(model["problem"], 200, placeholder=" ...")
            console.print(f"problem   {model['version']}: {problem}", style="yellow", markup=False)
    for worker in found["workers"]:
        pinned = " (pinned)" if worker["pinned"] else ""
        console.print(
            f"worker    {worker['host']} {worker['pid']} serves {worker['serving']}{pinned}"
        )
        for version, reason in worker["refused"].items():
            console.print(f"          refused {version}: {reason}", style="red", markup=False)
    for change in found["log"]:
        what = " ".join(str(change[name]) for name in ("action", "version") if change[name])
        console.print(
            f"decided   {change['at'][:16]} {what} by {change['by']}: {change['why']}", markup=False
        )


def show_shadow(found: Mapping[str, Any] | None) -> None:
    """Prints the comparison of challenger and champion (`versions.shadow_report`)."""
    console = _out()
    if found is None:
        console.print(
            "no worker has compared two versions; start with: longrec models shadow VERSION"
        )
        return
    table = _table(
        f"{found['challenger']} in the shadow of {found['champion']}",
        "requests",
        "dropped",
        "failed",
        "rank corr.",
        "mean |diff|",
        "largest",
        "champion ms",
        "challenger ms",
        "ratio",
    )
    table.add_row(
        *(f"{found[name]:,}" for name in ("compared", "dropped", "failed")),
        number(found["rank_correlation"]),
        number(found["mean_difference"], 5),
        number(found["largest_difference"], 5),
        number(found["champion_ms"], 1),
        number(found["challenger_ms"], 1),
        number(found["latency_ratio"], 2),
    )
    console.print(table)
    if not found["is_enough"]:
        console.print("too few requests to decide anything", style="yellow")


def number(value: Any, digits: int = 4) -> str:
    """Returns a number as text; `-` for what is missing or not a number."""
    return (
        "-"
        if value is None or (isinstance(value, float) and math.isnan(value))
        else f"{value:.{digits}f}"
    )


def _out() -> Console:
    """Returns the console for results; on a pipe lines are not bent to a terminal's width."""
    console = Console(highlight=False, soft_wrap=True)
    return (
        console
        if console.is_terminal
        else Console(
            highlight=False,
            soft_wrap=True,
            width=120,
        )
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for place, name in enumerate(columns):
        table.add_column(
            name, justify="right" if place or name == "length" else "left", no_wrap=True
        )
    return table


def _metrics(summary: Mapping[str, Any]) -> Table:
    title = f"served length {summary['served_length']:,}"
    table = _table(title, "task", "AUC", "95 %", "popular.", "GAUC", "log loss", "NE", "calib.")
    for task, row in summary["metrics"].items():
        low, high = row.get("auc_interval") or (None, None)
        popularity = summary["popularity"].get(task, {}).get("auc")
        table.add_row(
            task,
            number(row["auc"]),
            f"{number(low, 3)}-{number(high, 3)}",
            number(popularity),
            number(row["gauc"]),
            number(row["logloss"]),
            number(row["ne"], 3),
            number(row["calibration"], 2),
        )
    return table


def _lengths(rows: Sequence[Mapping[str, Any]]) -> Table:
    knows_bayes = any(row.get("best_possible_auc") is not None for row in rows)
    table = _table(
        "one model, several served lengths",
        "length",
        "AUC",
        *(("best possible",) if knows_bayes else ()),
        "log loss",
    )
    for row in rows:
        best = (number(row.get("best_possible_auc")),) if knows_bayes else ()
        table.add_row(f"{row['length']:,}", number(row["auc"]), *best, number(row["logloss"]))
    return table
