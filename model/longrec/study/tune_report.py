"""Results of a search: the chosen configuration, a table of the trials and a page."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec import config_file
from longrec.data import files
from longrec.reporting import page
from longrec.reporting.charts import SOFT, Labels, Series, line_chart
from longrec.study.tune import Row, Search, best_config, num_finished, trial_row

if TYPE_CHECKING:
    import optuna

MIN_TRIALS_OF_IMPORTANCE = 8
"""Fewest complete trials from which the importance of a setting is estimated."""
log = logging.getLogger(__name__)


def write_results(search: Search, study: optuna.Study) -> Row:
    """Write best.yaml, trials.csv, tune.json and report.html; return the content of tune.json.

    Raises:
        LongrecError: no trial has finished.
    """
    out_dir = Path(search.out_dir)
    config = best_config(search, study)
    rows = [trial_row(trial) for trial in study.get_trials() if trial.state.is_finished()]
    result = {
        "number": study.best_trial.number,
        "auc": study.best_value,
        "best": dict(study.best_params),
        "num_finished": num_finished(study),
        "num_pruned": sum(row["state"] == "pruned" for row in rows),
        "num_failed": sum(row["state"] == "fail" for row in rows),
        "seconds": sum(row["seconds"] or 0 for row in rows),
        "importance": importance(study),
        "config": str(out_dir / "best.yaml"),
        "trials": rows,
    }
    files.write_text(out_dir / "best.yaml", config_file.to_yaml(config))
    files.write_text(out_dir / "trials.csv", _to_csv(rows))
    files.write_json(out_dir / "tune.json", result)
    files.write_text(out_dir / "report.html", _render(search, result))
    return result


def importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of the variance of the AUC that each setting explains, largest first.

    It is empty below MIN_TRIALS_OF_IMPORTANCE complete trials.

    Source: fANOVA (Hutter et al. 2014), as Optuna implements it.
    """
    import optuna

    complete = [trial for trial in study.get_trials() if trial.state.name == "COMPLETE"]
    values = {trial.value for trial in complete}
    if len(complete) < MIN_TRIALS_OF_IMPORTANCE or len(values) < 2:
        return {}
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {key: float(share) for key, share in shares.items()}


def _to_csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _render(search: Search, result: Row) -> str:
    """Return the page of the search."""
    space: dict[str, Any] = dict(search.space.entries)
    settings = []
    for key, entry in space.items():
        settings.append(
            {
                "key": key,
                "searched": entry,
                "best": result["best"].get(key),
                "importance": result["importance"].get(key),
            }
        )
    settings.sort(key=lambda row: -(row["importance"] or 0))
    return page.render(
        "tune.html.jinja",
        title=f"Search {search.config.name}",
        subtitle=f"Settings of model.kind {search.config.model.kind}, searched with Optuna",
        date=page.current_minute(),
        result=result,
        settings=settings,
        chart=_progress_chart(result["trials"]),
    )


def _progress_chart(rows: Sequence[Row]) -> str:
    """Return a chart of the AUC of each trial and of the best one so far."""
    points = [(row["number"], row["auc"]) for row in rows if row["auc"] is not None]
    best_points: list[tuple[float, float]] = []
    for number, auc in points:
        best = max(auc, best_points[-1][1]) if best_points else auc
        best_points.append((number, best))
    series = [
        Series(points, SOFT, "trial", [f"trial {number}" for number, _ in points], style=""),
        Series(best_points, name="best so far"),
    ]
    labels = Labels("Validation AUC by trial", "trial", "validation AUC")
    return line_chart(series, labels)
