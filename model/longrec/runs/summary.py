"""The summary of a finished training run: `summary.json` in its folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longrec.config import RunConfig
from longrec.data.files import read_json, write_json
from longrec.errors import LongrecError
from longrec.runs.local_run import FinishedStep, LocalRun
from longrec.runs.steps import is_shown

SUMMARY_NAME = "summary.json"
METRICS_NAME = "metrics.json"
LATEST = "latest"
PACKAGES = (
    "longrec",
    "torch",
    "pyarrow",
    "duckdb",
    "feast",
    "great_expectations",
    "kfp",
    "bentoml",
)
"""Packages whose versions the summary lists."""
COUNTS = ("num_requests", "num_targets", "num_users", "served_length", "longest_history")
LENGTH_COLUMNS = ("length", "auc", "auc_low", "auc_high", "logloss", "mean_events")
OUTPUT_STEPS = {"bundle": "train", "histories": "join-histories", "evaluation": "evaluate"}
"""Outputs that the summary locates, and their steps."""
BASELINE_COLUMNS = (
    "name",
    "auc",
    "auc_low",
    "auc_high",
    "difference",
    "difference_low",
    "difference_high",
    "standing",
    "reason",
)
NUM_EXAMPLE_CANDIDATES = 5
EXAMPLE_ROWS = 1_000


def summarize(
    config: RunConfig,
    folder: Path,
    finished: LocalRun,
    dataset: Mapping[str, Any],
    command: str = "",
) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        finished: the run's steps and artifacts.
        dataset: content of dataset.json, and its `path`.
        command: the command line of the run.

    Raises:
        LongrecError: the run has no evaluation.
    """
    evaluation = finished.output("evaluate", "evaluation")
    if evaluation is None:
        raise LongrecError(
            "the run has no evaluation",
            found=f"nothing in {finished.artifacts}",
            fix=f"See {finished.log}.",
        )
    metrics = read_json(evaluation / METRICS_NAME)
    packaged = finished.output("package", "packaged")
    shown_steps = [step for step in finished.steps if is_shown(step.name)]
    return {
        "run": folder.name,
        "name": config.name,
        "command": command,
        "seed": config.seed,
        "dataset": {
            "name": dataset["name"],
            "path": dataset["path"],
            "fingerprint": metrics["bundle"]["schema_fingerprint"],
            "facts": dataset["facts"],
        },
        **summarize_metrics(metrics),
        "bento_tag": None if packaged is None else read_json(packaged)["tag"],
        "report": str(folder / "report.html"),
        "log": str(finished.log),
        "artifacts": str(finished.artifacts),
        "outputs": _outputs(folder, finished),
        "steps": _statuses(shown_steps),
        "seconds": _seconds(shown_steps),
        "example": _example_request(evaluation / "predictions.parquet"),
        "training": metrics["training"],
        "config": config.to_dict(),
        "versions": versions(),
    }


def summarize_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of an evaluation as the summary holds them.

    Args:
        metrics: content of metrics.json.
    """
    return {
        "parts": metrics["parts"],
        **{name: metrics[name] for name in COUNTS},
        "metrics": {task: _with_interval(row) for task, row in metrics["metrics"].items()},
        "popularity": {task: _with_interval(row) for task, row in metrics["popularity"].items()},
        "gain_over_popularity": metrics["gain"],
        "baselines": {task: _baseline_rows(rows) for task, rows in metrics["baselines"].items()},
        "lengths": _length_rows(metrics),
        "findings": metrics["findings"],
        "notes": metrics["notes"],
        "best_possible_auc_full": metrics["best_possible_full"],
        "gate": {"passed": metrics["gate"]["passed"], "reasons": metrics["gate"]["reasons"]},
    }


def write_report(evaluation: Path, path: Path, folder: Path) -> None:
    """Write the page of an evaluation with the id of its run and links to the run's other pages.

    Args:
        evaluation: folder of the evaluation.
        path: the page.
        folder: folder of the run.
    """
    from longrec.evaluation import report

    links = {}
    for page in sorted(folder.glob("*.html")):
        if page.name != "report.html":
            links[os.path.relpath(page, path.parent)] = page.stem.replace("-", " ")
    results = read_json(evaluation / METRICS_NAME)
    path.write_text(report.render(results, folder.name, links), encoding="utf-8")


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json`, then point `runs/latest` at the run; return the file's path."""
    path = folder / SUMMARY_NAME
    write_json(path, summary)
    temporary = folder.parent / f".{LATEST}-{uuid.uuid4().hex[:8]}"
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.parent / LATEST)
    return path


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def _outputs(folder: Path, finished: LocalRun) -> dict[str, str]:
    """Return where the model and its data are, relative to the work directory."""
    workdir = folder.parents[1]
    outputs = {}
    for name, step in OUTPUT_STEPS.items():
        path = finished.output(step, name)
        if path is not None:
            outputs[name] = os.path.relpath(path, workdir)
    return outputs


def _length_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per served length, with the best possible AUC where it is known."""
    best_possible = {row["length"]: row["auc"] for row in metrics["best_possible"]}
    rows = []
    for measured in metrics["lengths"]:
        row = {name: measured[name] for name in LENGTH_COLUMNS}
        row["best_possible_auc"] = best_possible.get(measured["length"])
        rows.append(row)
    return rows


def _baseline_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the AUC of each baseline of a task, and of the model minus it, best first."""
    return [{name: row[name] for name in BASELINE_COLUMNS} for row in rows]


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's metrics by name, with the 95 % interval of the AUC as a pair."""
    return {**row, "auc_interval": [row.get("auc_low"), row.get("auc_high")]}


def _statuses(steps: Iterable[FinishedStep]) -> dict[str, str]:
    """Return the status of each step by name.

    A step in a loop counts as cached only if all its iterations were cached.
    """
    statuses: dict[str, str] = {}
    for step in steps:
        if statuses.get(step.name, "cached") == "cached":
            statuses[step.name] = step.status
    return statuses


def _seconds(steps: Iterable[FinishedStep]) -> dict[str, float]:
    """Return the seconds of each step by name, summed over the iterations of a loop."""
    seconds: dict[str, float] = {}
    for step in steps:
        total = seconds.get(step.name, 0.0) + step.seconds
        seconds[step.name] = round(total, 2)
    return seconds


def _example_request(predictions: Path) -> dict[str, Any]:
    """Return user and candidates of the first evaluated request, to try the service with."""
    import pyarrow.parquet as pq

    columns = ["request_id", "user_id", "item_id"]
    batches = pq.ParquetFile(predictions).iter_batches(EXAMPLE_ROWS, columns=columns)
    rows = next(batches).to_pylist()
    first = rows[0]
    items = [row["item_id"] for row in rows if row["request_id"] == first["request_id"]]
    return {"user_id": first["user_id"], "candidates": items[:NUM_EXAMPLE_CANDIDATES]}
