"""Results as short tables on stdout."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 120
"""Columns of a line on a pipe, which has no terminal's width."""
MAX_PROBLEM_LENGTH = 200
TIME_LENGTH = 16
"""Characters of an ISO time down to the minute."""
EVALUATED_COUNTS = ("requests", "targets", "users")
COUNTED = ("events", "users", "items", "requests", "targets")
DISTRIBUTIONS = {"events_per_user": "events of a user", "history_length": "history of a request"}


def show_summary(summary: Mapping[str, Any], next_commands: Sequence[str]) -> None:
    """Print the results of a run: metrics, lengths, seconds, gate, and the next commands."""
    console = _console()
    _print_results(console, summary)
    steps = "  ".join(f"{name} {seconds:.1f}" for name, seconds in summary["seconds"].items())
    console.print(f"seconds  {steps}")
    _print_data(console, summary)
    console.print(f"report   {summary['report']}")
    _print_gate(console, summary["gate"])
    console.print(f"bento    {summary['bento_tag'] or 'none'}")
    if next_commands:
        commands = "\n         ".join(next_commands)
        console.print(f"next     {commands}", style="bold")


def show_evaluation(results: Mapping[str, Any]) -> None:
    """Print the results of an evaluation: metrics, baselines, lengths, report, gate."""
    console = _console()
    _print_results(console, results)
    console.print(f"report   {results['report']}")
    _print_gate(console, results["gate"])


def show_dataset(report: Mapping[str, Any]) -> None:
    """Print what an import or `longrec synth` wrote."""
    console = _console()
    console.print(f"dataset   {report['path']}")
    counts = [f"{report[f'num_{name}']:,} {name}" for name in COUNTED]
    console.print(f"rows      {', '.join(counts)}")
    start, end = report["time_range"]
    console.print(f"time      {start} .. {end}")
    for name, title in DISTRIBUTIONS.items():
        quantiles = "  ".join(f"{key} {value:,}" for key, value in report[name].items())
        console.print(f"{title:<20}  {quantiles}")
    rates = ", ".join(f"{task} {rate:.2%}" for task, rate in report["label_rates"].items())
    console.print(f"labels    {rates}")
    _print_rows(console, report)
    for note in report.get("notes", ()):
        console.print(f"note      {note}")
    _print_best_possible(console, report)


def show_preview(preview: Mapping[str, Any]) -> None:
    """Print what an import would read."""
    console = _console()
    console.print(f"log       {preview['num_files']:,} files; first {preview['first_file']}")
    for guess in preview["guesses"]:
        console.print(f"guessed   {guess}")
    for key, value in preview["mapping"].items():
        console.print(f"mapping   {key}: {value}")
    rows = preview["rows"]
    if rows:
        table = _table("first rows as they are understood", *rows[0])
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)
    _print_rows(console, {**preview, "rejects_path": "below"})
    for reject in preview["rejects"]:
        console.print(f"line {reject['line']:>5}  {reject['reason']}: {reject['row']}")


def show_models(summary: Mapping[str, Any]) -> None:
    """Print the models of the store, the workers of the service, and the last decisions."""
    console = _console()
    models = summary["models"]
    console.print(_models_table(models))
    for model in models:
        if model["problem"]:
            problem = textwrap.shorten(model["problem"], MAX_PROBLEM_LENGTH, placeholder=" ...")
            line = f"problem   {model['version']}: {problem}"
            console.print(line, style="yellow")
    for worker in summary["workers"]:
        _print_worker(console, worker)
    for decision in summary["log"]:
        action = " ".join(str(decision[key]) for key in ("action", "version") if decision[key])
        time = decision["at"][:TIME_LENGTH]
        line = f"decided   {time} {action} by {decision['by']}: {decision['why']}"
        console.print(line)


def show_shadow(comparison: Mapping[str, Any] | None) -> None:
    """Print the comparison of challenger and champion; None if there is none."""
    console = _console()
    if comparison is None:
        console.print(
            "no worker has compared two versions; start with: longrec models shadow VERSION"
        )
        return
    table = _table(
        f"{comparison['challenger']} in the shadow of {comparison['champion']}",
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
        *(f"{comparison[name]:,}" for name in ("compared", "dropped", "failed")),
        number(comparison["rank_correlation"]),
        number(comparison["mean_difference"], 5),
        number(comparison["largest_difference"], 5),
        number(comparison["champion_ms"], 1),
        number(comparison["challenger_ms"], 1),
        number(comparison["latency_ratio"], 2),
    )
    console.print(table)
    if not comparison["is_enough"]:
        console.print("too few requests for a verdict", style="yellow")


def number(value: Any, digits: int = 4) -> str:
    """Return a number as text with a fixed number of digits; `-` for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}f}"


def _console() -> Console:
    """Return the console for results.

    It does not wrap lines to the width of a terminal. Brackets in a text are no markup.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, soft_wrap=True, width=PIPE_WIDTH)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, name in enumerate(columns):
        is_text = index == 0 and name != "length"
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    return table


def _metrics_table(summary: Mapping[str, Any]) -> Table:
    title = f"served length {summary['served_length']:,}"
    table = _table(title, "task", "AUC", "95 %", "GAUC", "log loss", "NE", "calib.")
    for task, row in summary["metrics"].items():
        low, high = row.get("auc_interval") or (None, None)
        table.add_row(
            task,
            number(row["auc"]),
            f"{number(low, 3)}-{number(high, 3)}",
            number(row["gauc"]),
            number(row["logloss"]),
            number(row["ne"], 3),
            number(row["calibration"], 2),
        )
    return table


def _print_results(console: Console, results: Mapping[str, Any]) -> None:
    console.print(_metrics_table(results))
    _print_baselines(console, results["baselines"])
    if results["lengths"]:
        console.print(_lengths_table(results["lengths"]))
    for finding in results.get("findings", ()):
        console.print(f"finding  {finding}", style="yellow")
    for note in results.get("notes", ()):
        console.print(f"note     {note}")


def _print_baselines(
    console: Console, baselines: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Print the baselines of the first task as a table, and one sentence per task."""
    from longrec.evaluation.baselines.standing import describe

    for position, (task, rows) in enumerate(baselines.items()):
        if position == 0:
            console.print(_baselines_table(task, rows))
        console.print(f"{task}: {describe(rows)}")


def _baselines_table(task: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(f"baselines of {task}", "baseline", "AUC", "model minus it", "95 %", "model is")
    for row in rows:
        low = number(row["difference_low"])
        high = number(row["difference_high"])
        table.add_row(
            row["name"],
            number(row["auc"]),
            number(row["difference"]),
            f"{low} to {high}",
            row["standing"],
        )
    return table


def _lengths_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    has_best_possible = any(row.get("best_possible_auc") is not None for row in rows)
    best_column = ["best possible"] if has_best_possible else []
    title = "one model, several served lengths"
    table = _table(title, "length", "AUC", *best_column, "log loss")
    for row in rows:
        cells = [f"{row['length']:,}", number(row["auc"])]
        if has_best_possible:
            cells.append(number(row.get("best_possible_auc")))
        table.add_row(*cells, number(row["logloss"]))
    return table


def _models_table(models: Sequence[Mapping[str, Any]]) -> Table:
    names = {name for model in models for name in model["labels"] if name.endswith(".auc")}
    metrics = sorted(names)
    table = _table(f"{len(models)} models", "version", "role", "created", *metrics)
    for model in models:
        values = [_rounded(model["labels"].get(name)) for name in metrics]
        table.add_row(model["version"], model["role"], model["created"][:TIME_LENGTH], *values)
    return table


def _rounded(label: str | None) -> str:
    """Return a label of the model store, a number as text, with four digits."""
    try:
        return number(None if label is None else float(label))
    except ValueError:
        return str(label)


def _print_data(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the sizes of each part of the data, and of the evaluated sample."""
    console.print(f"data     {summary['dataset']['name']}")
    for name, counts in summary["parts"].items():
        sizes = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        console.print(f"         {name:<11}{sizes}")
    sizes = ", ".join(f"{summary[f'num_{what}']:,} {what}" for what in EVALUATED_COUNTS)
    console.print(f"         {'measured':<11}{sizes}")


def _print_gate(console: Console, gate: Mapping[str, Any]) -> None:
    if gate["passed"]:
        console.print("gate     passed", style="green")
    else:
        console.print("gate     REFUSED", style="red")
    for reason in gate["reasons"]:
        console.print(f"         {reason}")


def _print_rows(console: Console, report: Mapping[str, Any]) -> None:
    """Print what became of the rows that an import read, by group, filter and reason."""
    for group, counts in report.get("row_counts", {}).items():
        numbers = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        console.print(f"{group:<9} {numbers}")
    _print_counts(console, "filtered", report.get("filter_counts", {}))
    if report.get("num_repeats"):
        _print_counts(console, "repeats", {"rows repeat an earlier row": report["num_repeats"]})
    reasons = report.get("reject_reasons") or {}
    if reasons:
        console.print(f"rejected  see {report['rejects_path']}", style="yellow")
        _print_counts(console, "", reasons)


def _print_counts(console: Console, title: str, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        console.print(f"{title:<9} {count:>9,}  {name}")


def _print_best_possible(console: Console, report: Mapping[str, Any]) -> None:
    rows = report.get("best_possible_auc")
    if not rows:
        return
    aucs = "  ".join(f"{row['length']:,}: {number(row['auc'])}" for row in rows)
    whole = number(report["best_possible_auc_full"])
    console.print(f"best possible AUC by history length  {aucs}  (all events: {whole})")


def _print_worker(console: Console, worker: Mapping[str, Any]) -> None:
    pinned = " (pinned)" if worker["pinned"] else ""
    console.print(f"worker    {worker['host']} {worker['pid']} serves {worker['serving']}{pinned}")
    for version, reason in worker["refused"].items():
        console.print(f"          refused {version}: {reason}", style="red")
