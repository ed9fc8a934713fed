"""A study of two variants and two seeds on the small histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from longrec.study.config import StudyConfig, load

Result: TypeAlias = dict[str, Any]
Finished: TypeAlias = tuple[StudyConfig, Path]
"""(study, folder of its results)."""
LENGTHS = (0, 4, 16, 64)
SERVED_LENGTH = 64
NUM_TRIALS = 4
STUDY = """
name: small
base:
  model: {width: 16, num_layers: 2, num_heads: 2, id_dim: 8, feature_dim: 4, mixer_layers: 1}
  lengths: {distribution: full, maximum: 64}
  train:
    epochs: 1
    token_budget: 600
    max_requests_per_batch: 16
    learning_rate: 0.005
    device: cpu
  evaluate: {lengths: [0, 4, 16], served_length: 64, bootstrap_samples: 30}
variants:
  stca: {}
  mean: {model.kind: mean, model.recency: token}
seeds: [0, 1]
"""


def write_study(
    folder: Path,
    text: str = STUDY,
) -> Path:
    """Write the YAML file of a study."""
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def load_study(
    folder: Path,
    text: str = STUDY,
) -> StudyConfig:
    """Return the study of YAML text."""
    return load(write_study(folder, text))


def results_in(out: Path) -> dict[str, Result]:
    """Return the results of a study by trial id."""
    results = {}
    for path in sorted((out / "trials").iterdir()):
        results[path.stem] = json.loads(path.read_text())
    return results


def write_result(
    out: Path,
    trial_id: str,
    result: Result,
) -> None:
    """Write the result of a trial."""
    folder = out / "trials"
    folder.mkdir(exist_ok=True)
    (folder / f"{trial_id}.json").write_text(json.dumps(result))


def at_length(
    result: Result,
    length: int,
) -> Result:
    """Return the metrics of a result at a served length."""
    [row] = [row for row in result["lengths"] if row["length"] == length]
    return row


def without_metric(
    result: Result,
    metric: str,
    length: int,
) -> Result:
    """Return a result with a metric that is not defined at one length.

    That happens if scores are not finite, or if no user has both labels.
    """
    rows = []
    for row in result["lengths"]:
        if row["length"] == length:
            samples = dict(row["samples"])
            samples.pop(metric, None)
            row = {**row, metric: None, "samples": samples}
        rows.append(row)
    return {**result, "lengths": rows}


def study_arguments(
    config: Path,
    histories: object,
    out: Path,
    *options: str,
) -> list[str]:
    """Return the arguments of `longrec study`."""
    return [
        "study",
        "--config",
        str(config),
        "--histories",
        str(histories),
        "--out",
        str(out),
        *options,
    ]
