"""Evaluate a bundle on later requests: metrics, comparisons, verdict of the gate, report.

All scores come from `Scorer`, which the service uses too. A few requests are scored again from raw
rows, and both scores must agree. All lengths see the same requests and the same resamples.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import EvaluateConfig, GateConfig
from longrec.data import files
from longrec.data.columns import int64_column
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation import bootstrap, model_card, provenance, report
from longrec.evaluation.baselines import comparison
from longrec.evaluation.baselines.comparison import POPULARITY, Baseline
from longrec.evaluation.champion_comparison import ChampionScores
from longrec.evaluation.gate import BaselineDifference, Evidence, Verdict, judge
from longrec.evaluation.length_curve import LengthCurve, measure_lengths
from longrec.evaluation.sample import EvaluationInputs, draw_sample
from longrec.evaluation.serving_checks import latency_ms, parity_error
from longrec.evaluation.slices import measure_slices
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID
from longrec.scoring.scorer import Scorer

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]
Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The results of an evaluation; metrics.json in `path` holds them and more.

    Args:
        gate: the verdict.
        metrics: task -> metrics at the served length (`TaskMetrics.to_dict`).
        popularity: task -> metrics of the better popularity baseline, with its `name` (`item rate`
            or `item count`).
        gain: task -> AUC minus the AUC of popularity: `value`, `low`, `high`, `reason`.
        baselines: task -> one row per baseline: `name`, its metrics, the AUC of the ranker minus
            its AUC (`difference`, `difference_low`, `difference_high`, paired), and `standing` of
            the ranker: `above`, `level`, `below` or `unknown`. Best baseline first.
        lengths: curve of the first task: `length`, `auc`, `auc_low`, `auc_high`, `logloss`,
            `mean_events`, `seconds`, `same_as`.
        slices: the first task by history length, item age, user activity, cold start.
        extrapolation: AUC of the first task at the served length minus its AUC at the mean
            training length, paired: `value`, `low`, `high`, `trained_length`, `cost` (ratio of the
            mean events); {} if the bundle does not record the training length.
        champion: the compared model and the paired differences by task; {} without a champion.
        best_possible: best possible AUC by length, if the dataset knows it.
        best_possible_full: best possible AUC with every event.
        num_requests, num_targets, num_users: sizes of the evaluated sample.
        served_length: length of the metrics.
        longest_history: events of the longest history in the sample.
        parity_error: largest difference of a probability between batches and raw rows; None if a
            score is not finite.
        latency_ms: {"p50", "p95"} of scoring one request alone, of those with the longest
            histories, on this machine.
        unknown_item_share: share of the targets whose item the encoder does not know.
        seconds: wall time.
        path: folder with metrics.json, predictions.parquet, report.html and MODEL_CARD.md.
    """

    gate: Verdict
    metrics: Mapping[str, Row]
    popularity: Mapping[str, Row]
    gain: Mapping[str, Row]
    baselines: Mapping[str, tuple[Row, ...]]
    lengths: tuple[Row, ...]
    slices: tuple[Row, ...]
    extrapolation: Row
    champion: Row
    best_possible: tuple[Row, ...]
    best_possible_full: float | None
    num_requests: int
    num_targets: int
    num_users: int
    served_length: int
    longest_history: int
    parity_error: float | None
    latency_ms: Row
    unknown_item_share: float
    seconds: float
    path: str

    def to_dict(self) -> Row:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def evaluate(
    bundle_dir: str | Path,
    histories_dir: str | Path,
    out_dir: str | Path,
    *,
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    champion_dir: str | Path | None = None,
    device: str = "auto",
) -> EvaluationReport:
    """Evaluate a bundle, write the results to `out_dir` at once, and return the report.

    A model that fails the gate raises nothing here; the verdict says so.

    Args:
        bundle_dir: the trained ranker.
        histories_dir: data of its training; the split `eval` is scored, and the baselines are
            fitted on the split `train`.
        out_dir: folder for metrics.json, predictions.parquet, report.html and MODEL_CARD.md.
        config: lengths, sample size, resamples.
        gate: bounds of the verdict.
        seed: of the sample of requests and of the resamples.
        champion_dir: bundle that is served now; the gate compares with it on the same requests, at
            its own served length.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        SchemaMismatch: the bundle was trained for another schema.
        DataError: the histories cannot be used, or hold no evaluation request.
    """
    started = time.perf_counter()
    out_dir = Path(out_dir)
    histories = Histories.open(histories_dir)
    scorer = Scorer.load(bundle_dir, _resolve_device(device), schema=histories.schema)
    bundle = scorer.bundle
    served_length = config.served_length or bundle.served_length
    _warn_of_other_length(bundle.served_length, served_length)
    config = dataclasses.replace(config, served_length=served_length)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out_dir.name}.encoded-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out_dir.parent) as cache:
        cache_dir = Path(cache)
        encoded = EncodedHistories.encode(histories, bundle.encoder, cache_dir / "histories")
        inputs = EvaluationInputs(
            scorer=scorer,
            histories=histories,
            encoded=encoded,
            sample=draw_sample(encoded, config, seed),
            config=config,
            gate=gate,
            seed=seed,
        )
        curve = measure_lengths(inputs)
        champion = ChampionScores.compute(champion_dir, inputs, cache_dir / "champion")
        result = _measure(inputs, curve, champion)
        predictions = _predictions(inputs, curve.served_scores)
    seconds = time.perf_counter() - started
    result = dataclasses.replace(result, seconds=seconds, path=str(out_dir))
    origin = provenance.describe(inputs, curve.served_scores, Path(bundle_dir))
    _write(out_dir, {**result.to_dict(), **origin}, predictions)
    verdict = "passed" if result.gate.passed else "failed"
    log.info("evaluated %d requests in %.1f s, gate %s", result.num_requests, seconds, verdict)
    return result


def _resolve_device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _warn_of_other_length(bundle_length: int, evaluated_length: int) -> None:
    if bundle_length != evaluated_length:
        log.warning(
            "the bundle is served at %d events, but evaluated at %d",
            bundle_length,
            evaluated_length,
        )


def _measure(
    inputs: EvaluationInputs,
    curve: LengthCurve,
    champion: ChampionScores,
) -> EvaluationReport:
    """Return the report without its wall time and path."""
    sample = inputs.sample
    baselines = comparison.measure_baselines(inputs)
    latency = latency_ms(inputs)
    evidence = _gather_evidence(
        inputs,
        curve.served_scores,
        baselines,
        champion,
        latency_p95_ms=latency["p95"],
    )
    dataset_facts = inputs.histories.manifest.get("dataset_facts", {})
    best_possible = dataset_facts.get("best_possible_auc", ())
    return EvaluationReport(
        gate=judge(evidence, inputs.gate),
        metrics={task: metrics.to_dict() for task, metrics in evidence.tasks.items()},
        popularity={task: _popularity_row(measured) for task, measured in baselines.items()},
        gain={task: dataclasses.asdict(gain) for task, gain in evidence.gains.items()},
        baselines={
            task: comparison.comparison_rows(measured, evidence.tasks[task])
            for task, measured in baselines.items()
        },
        lengths=curve.rows,
        slices=tuple(evidence.slices),
        extrapolation=curve.extrapolation,
        champion=champion.to_dict(evidence.champion_differences, inputs.gate.metric),
        best_possible=tuple(dict(row) for row in best_possible),
        best_possible_full=dataset_facts.get("best_possible_auc_full"),
        num_requests=len(sample.requests),
        num_targets=len(sample.target_positions),
        num_users=sample.resamples.num_users,
        served_length=inputs.config.served_length,
        longest_history=int(sample.history_lengths.max(initial=0)),
        parity_error=evidence.parity_error,
        latency_ms=latency,
        unknown_item_share=evidence.unknown_item_share,
        seconds=0.0,
        path="",
    )


def _gather_evidence(
    inputs: EvaluationInputs,
    scores: Array,
    baselines: Mapping[str, tuple[Baseline, ...]],
    champion: ChampionScores,
    latency_p95_ms: float,
) -> Evidence:
    """Return the measurements that the gate reads."""
    sample = inputs.sample
    measured = {}
    gains = {}
    best_baselines = {}
    for column, task in enumerate(inputs.task_names):
        labels = sample.labels[:, column]
        measured[task] = bootstrap.measure(
            labels,
            scores[:, column],
            sample.resamples,
        )
        popularity = comparison.best(baselines[task], POPULARITY)
        gains[task] = bootstrap.paired_difference(measured[task], popularity.metrics)
        best = comparison.best(baselines[task])
        difference = bootstrap.paired_difference(measured[task], best.metrics)
        best_baselines[task] = BaselineDifference(best.name, difference)
    first_task = inputs.task_names[0]
    popularity = comparison.best(baselines[first_task], POPULARITY)
    return Evidence(
        tasks=measured,
        gains=gains,
        parity_error=parity_error(inputs, scores),
        slices=measure_slices(
            inputs,
            scores[:, 0],
            popularity.scores,
            champion,
        ),
        best_baselines=best_baselines,
        champion_differences=champion.differences(
            measured,
            sample,
            inputs.gate.metric,
        ),
        champion_problem=champion.problem,
        latency_p95_ms=latency_p95_ms,
        unknown_item_share=_unknown_item_share(inputs),
    )


def _popularity_row(baselines: tuple[Baseline, ...]) -> Row:
    popularity = comparison.best(baselines, POPULARITY)
    return {"name": popularity.name, **popularity.metrics.to_dict()}


def _unknown_item_share(inputs: EvaluationInputs) -> float:
    items = inputs.encoded.target_items[inputs.sample.target_positions]
    # Row 0 of the item table stands for all unknown items.
    return float((items == 0).mean())


def _predictions(inputs: EvaluationInputs, scores: Array) -> pa.Table:
    """Return one row per target: ids, history length, labels and scores."""
    sample = inputs.sample
    encoded = inputs.encoded
    target_requests = sample.target_requests
    item_ids = int64_column(inputs.histories.targets, ITEM_ID)
    request_times = encoded.request_timestamps[target_requests]
    columns: dict[str, Any] = {
        REQUEST_ID: encoded.request_ids[target_requests],
        USER_ID: encoded.request_users[target_requests],
        TIMESTAMP: pa.array(request_times, pa.timestamp("ms", "UTC")),
        ITEM_ID: item_ids[sample.target_positions],
        "history_length": sample.history_lengths.astype(np.int32),
    }
    for position, task in enumerate(inputs.task_names):
        columns[f"{task}_label"] = sample.labels[:, position]
        columns[f"{task}_score"] = scores[:, position].astype(np.float32)
    return pa.table(columns)


def _write(out_dir: Path, results: Row, predictions: pa.Table) -> None:
    with files.atomic_replace(out_dir) as temporary:
        temporary.mkdir()
        files.write_json(temporary / "metrics.json", results)
        pq.write_table(
            predictions,
            temporary / "predictions.parquet",
            compression="zstd",
        )
        (temporary / "report.html").write_text(report.render(results), encoding="utf-8")
        (temporary / "MODEL_CARD.md").write_text(model_card.render(results), encoding="utf-8")
