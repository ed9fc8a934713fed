"""Collect the results of a study into tables and a page."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from longrec.data import files
from longrec.errors import DataError
from longrec.evaluation.bootstrap import METRICS
from longrec.study import report as study_page
from longrec.study import statistics
from longrec.study.config import StudyConfig
from longrec.study.rows import at_length
from longrec.study.trial import Row, plan, result_path, trials_dir

TABLES = ("trials", "curves", "differences", "fits")
"""Fields of StudyReport that are also written as CSV."""
TRAINING_COLUMNS = (
    "num_steps",
    "num_requests",
    "num_targets",
    "seconds",
    "events_per_second",
    "first_loss",
    "final_loss",
    "device",
    "precision",
)
"""Fields of a training report in trials.csv."""
COST_COLUMNS = (
    "num_parameters",
    "num_layer_parameters",
    "train_events_read",
    "mean_length",
    "train_flops",
)


@dataclasses.dataclass(frozen=True, slots=True)
class StudyReport:
    """The results of a study so far.

    Args:
        name: name of the study.
        num_trials: number of trials.
        num_done: number of trials with a result.
        trials: one row per finished trial.
        curves: metrics per variant, grid point and served length.
        differences: metrics of each variant minus those of the reference, per served length.
        fits: metrics against the logarithm of length, FLOPs, parameters and events.
        recovery: share of the gain of full-length training that the extrapolated model reaches.
        failures: trials of this call that failed, {"id", "variant", "error"}.
        path: folder of the tables and report.html.
    """

    name: str
    num_trials: int
    num_done: int
    trials: tuple[Row, ...]
    curves: tuple[Row, ...]
    differences: tuple[Row, ...]
    fits: tuple[Row, ...]
    recovery: Row
    failures: tuple[Row, ...]
    path: str


def gather(result_dirs: Sequence[str | Path], out_dir: str | Path) -> None:
    """Copy results from several folders, one per trial, into the folder of a study."""
    target = trials_dir(out_dir)
    target.mkdir(parents=True, exist_ok=True)
    for result_dir in result_dirs:
        for path in trials_dir(result_dir).glob("*.json"):
            shutil.copyfile(path, target / path.name)


def collect(
    out_dir: str | Path,
    study: StudyConfig,
    failures: Sequence[Row] = (),
) -> StudyReport:
    """Write the tables (CSV, study.json), the page and the drawing of a study; return the report.

    Args:
        out_dir: folder of the study.
        study: the study.
        failures: {"id", "variant", "error"} of trials that failed.

    Raises:
        DataError: there is no result, or results were measured on different requests.
    """
    out_dir = Path(out_dir)
    trials = plan(study)
    results = {}
    for trial in trials:
        path = result_path(out_dir, trial)
        if path.exists():
            results[trial.id] = of_task(files.read_json(path), study.task)
    _check_results(out_dir, len(trials), results, failures)
    finished = [trial for trial in trials if trial.id in results]
    groups = statistics.group_trials(finished, results)
    curves: list[Row] = []
    for group in groups:
        curves.extend(group.curve())
    report = StudyReport(
        name=study.name,
        num_trials=len(trials),
        num_done=len(results),
        trials=tuple(_trial_row(result) for result in results.values()),
        curves=tuple(curves),
        differences=tuple(statistics.differences(groups, study.reference_variant)),
        fits=tuple(statistics.fits(groups)),
        recovery=statistics.recovery(groups, study),
        failures=tuple(failures),
        path=str(out_dir),
    )
    first_result = next(iter(results.values()))
    _write(out_dir, report, _facts(report, study, first_result))
    return report


def of_task(result: Row, task: str) -> Row:
    """Return a result whose rows hold the metrics of one task.

    Args:
        result: of `run_trial`.
        task: name of the task; empty for the first, which the rows hold already.

    Raises:
        DataError: the result has no such task.
    """
    if not task:
        return result
    rows = []
    for row in result["lengths"]:
        measured = row.get("tasks", {})
        if task not in measured:
            raise DataError(
                "a result does not hold the task of the study",
                found=", ".join(measured) or "only the first task",
                expected=task,
                fix="Correct `task`, or remove the results of older versions and run the study.",
            )
        rows.append({**row, **measured[task]})
    served = at_length(rows, result["served_length"])
    return {**result, "lengths": rows, "auc": served["auc"]}


def _check_results(
    out_dir: Path,
    num_trials: int,
    results: dict[str, Row],
    failures: Sequence[Row],
) -> None:
    """Refuse a study without results, or with results on different requests."""
    if not results:
        first_failure = f"; the first failure: {failures[0]['error']}" if failures else ""
        raise DataError(
            f"{out_dir} holds no result of the study",
            found=f"0 of {num_trials} trials{first_failure}",
            fix="Run it: longrec study.",
        )
    samples = {result["sample"] for result in results.values()}
    if len(samples) > 1:
        raise DataError(
            "the results were measured on different requests",
            found=f"{len(samples)} samples",
            fix="Use one output directory per histories directory.",
        )


def _facts(
    report: StudyReport,
    study: StudyConfig,
    first_result: Row,
) -> Row:
    """Return the content of study.json.

    Args:
        report: the report.
        study: the study.
        first_result: any result; all were measured on the same requests (`_check_results`).
    """
    variants = {name: dict(overrides) for name, overrides in study.variants.items()}
    return {
        **dataclasses.asdict(report),
        "reference": study.reference_variant,
        "seeds": list(study.seeds),
        "train_events": study.train_events,
        "best_possible": first_result["best_possible"],
        "data": first_result["data"],
        "base": study.base.to_dict(),
        "variants": variants,
    }


def _write(
    out_dir: Path,
    report: StudyReport,
    facts: Row,
) -> None:
    for table in TABLES:
        _write_csv(out_dir / f"{table}.csv", getattr(report, table))
    files.write_json(out_dir / "study.json", facts)
    for name, text in study_page.render_files(facts).items():
        with files.atomic_replace(out_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _trial_row(result: Row) -> Row:
    """Return the line of a result in trials.csv."""
    served_length = result["served_length"]
    by_length = {row["length"]: row for row in result["lengths"]}
    served = by_length[served_length]
    row = {
        "id": result["id"],
        "variant": result["variant"],
        **result["point"],
        "seed": result["seed"],
        "served_length": served_length,
    }
    for metric in METRICS:
        row[metric] = served[metric]
    for key in COST_COLUMNS:
        row[key] = result[key]
    row["request_flops"] = served["request_flops"]
    for key in TRAINING_COLUMNS:
        row[f"train_{key}"] = result["training"][key]
    row["total_seconds"] = result["seconds"]
    for length, measured in by_length.items():
        row[f"auc_at_{length}"] = measured["auc"]
    return row


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; rows may have different columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    with (
        files.atomic_replace(path) as temporary,
        open(
            temporary,
            "w",
            newline="",
            encoding="utf-8",
        ) as stream,
    ):
        writer = csv.DictWriter(stream, list(names))
        writer.writeheader()
        for row in rows:
            texts = {name: _csv_text(value) for name, value in row.items()}
            writer.writerow(texts)


def _csv_text(value: object) -> object:
    """Return a value as CSV holds it: floats with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else value
