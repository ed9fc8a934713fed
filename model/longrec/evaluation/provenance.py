"""Describe the origin of an evaluation: bundle, training, data, versions, command.

The report and the model card show it next to the results.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.columns import int64_column
from longrec.data.histories import Histories, count_parts
from longrec.evaluation import metrics, validation_notes
from longrec.evaluation.sample import EvaluationInputs
from longrec.reporting.page import current_minute
from longrec.schema import TIMESTAMP
from longrec.scoring.bundle import CURVE_NAME, Bundle

Array: TypeAlias = npt.NDArray[Any]
Row: TypeAlias = dict[str, Any]

PACKAGES = ("longrec", "torch", "numpy", "pyarrow", "scikit-learn")
"""Packages whose versions are recorded."""


def describe(
    inputs: EvaluationInputs,
    scores: Array,
    bundle_dir: Path,
) -> Row:
    """Return what metrics.json holds next to the results.

    Args:
        inputs: of the evaluation.
        scores: float32 [N, K], at the served length.
        bundle_dir: folder of the bundle; its training curve is in it or beside it.
    """
    histories = inputs.histories
    bundle = inputs.scorer.bundle
    manifest = histories.manifest
    return {
        "date": current_minute(),
        "name": manifest.get("dataset", histories.schema.name),
        "calibration_bins": _calibration_bins(inputs, scores),
        "training": dict(bundle.facts),
        "findings": validation_notes.findings(bundle.facts),
        "notes": validation_notes.notes(bundle.facts),
        "training_curve": _training_curve(bundle_dir),
        "bundle": _describe_bundle(bundle, histories),
        "data": _describe_data(histories),
        "parts": count_parts(histories.requests),
        "data_version": manifest.get("dataset_hash"),
        "versions": _installed_versions(),
        "command": _command(),
        "config": {
            "seed": inputs.seed,
            "evaluate": dataclasses.asdict(inputs.config),
            "gate": dataclasses.asdict(inputs.gate),
        },
    }


def _calibration_bins(inputs: EvaluationInputs, scores: Array) -> Row:
    labels = inputs.sample.labels
    is_finite = np.isfinite(scores).all()
    bins: Row = {}
    for column, task in enumerate(inputs.task_names):
        bins[task] = []
        if is_finite:
            bins[task] = metrics.reliability_bins(labels[:, column], scores[:, column])
    return bins


def _training_curve(bundle_dir: Path) -> list[Row]:
    """Return the rows of the training curve; empty if there is no such file."""
    for folder in (bundle_dir, bundle_dir.parent):
        path = folder / CURVE_NAME
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            return [{name: float(value) for name, value in row.items() if value} for row in rows]
    return []


def _describe_bundle(bundle: Bundle, histories: Histories) -> Row:
    return {
        "version": bundle.version,
        "served_length": bundle.served_length,
        "schema_fingerprint": histories.schema.fingerprint,
        "model": dataclasses.asdict(bundle.config),
    }


def _describe_data(histories: Histories) -> Row:
    requests = histories.requests
    request_times = int64_column(requests, TIMESTAMP)
    lengths = int64_column(requests, "event_end") - int64_column(requests, "event_start")
    percentiles = np.percentile(lengths, [50, 90, 100])
    return {
        "events": histories.num_events,
        "users": histories.users.num_rows,
        "items": histories.items.num_rows,
        "targets": histories.targets.num_rows,
        "requests": requests.num_rows,
        "most events per request": histories.manifest.get("max_history"),
        "history length p50, p90, max": ", ".join(f"{length:,.0f}" for length in percentiles),
        "first request": _minute(request_times[0]),
        "evaluated from": _minute(histories.split_time_ms),
        "last request": _minute(request_times[-1]),
    }


def _minute(time_ms: int) -> str:
    """Return a time (ms since 1970 UTC) as text, down to the minute."""
    time = np.datetime64(int(time_ms), "ms").astype("datetime64[m]")
    return str(time).replace("T", " ")


def _installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _command() -> str:
    """Return the `longrec` command of this process; empty for another program."""
    program, *arguments = sys.argv
    if Path(program).name != "longrec":
        return ""
    return shlex.join(["longrec", *arguments])
