"""evaluate: a bundle on the later requests, at several served lengths, against popularity; metrics,
verdict of the gate, report.

Everything is scored through `Scorer`: the batches of the evaluation split by the code that serves,
and a sample of the same
requests once more from raw rows, which must agree. All lengths see the same requests and the same
bootstrap resamples.

The peer is popularity at its best: of the items' smoothed mean labels and their event counts, both
from before the split, the
one with the higher AUC on the evaluation split itself.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import EvaluateConfig, GateConfig
from longrec.data import files
from longrec.data.encoder import int64_column
from longrec.data.histories import Histories
from longrec.data.loader import EncodedHistories, RequestStream
from longrec.errors import DataError, SchemaMismatch
from longrec.evaluation import gate as gating
from longrec.evaluation import metrics, report
from longrec.evaluation import slices as slicing
from longrec.evaluation.gate import Evidence, Verdict
from longrec.evaluation.metrics import Estimate, Measurement, Resamples
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID, Schema
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]
Int: TypeAlias = npt.NDArray[np.int64]
Row: TypeAlias = dict[str, Any]

PARITY_REQUESTS, LATENCY_REQUESTS = 16, 24


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found; metrics.json in `path` holds it and more.

    Args:
        gate: the verdict.
        metrics: task -> metrics at the served length (`Measurement.to_dict`).
        popularity: task -> the same of the better popularity score, with its `name` (`rate` or
            `count`).
        gain: task -> AUC minus the AUC of popularity: `value`, `low`, `high`, `reason`.
        lengths: the curve of the first task: `length`, `auc`, `auc_low`, `auc_high`, `logloss`,
            `mean_events`, `seconds`, `same_as`.
        slices: the first task by history length, item age, user activity, cold start.
        extrapolation: AUC of the first task at the served length minus that at the mean length of
            the training, paired: `value`, `low`,
            `high`, `trained_length`, `cost` (mean events served over those at that length); {}
            where the bundle does not say.
        champion: what the model was compared with, and the paired differences by task; {} without
            one.
        bayes: best possible AUC by length where the data set knows it; bayes_full: with every
            event.
        num_requests, num_targets, num_users: of the evaluated sample.
        served_length: length of the metrics; longest_history: events of the longest history in the
            sample.
        parity_error: largest difference of a probability between batches and raw rows; None when a
            score is not finite.
        latency_ms: {"p50", "p95"} of scoring one request alone, of those with the longest
            histories, on this machine.
        unknown_item_share: share of the targets whose item the encoder does not know.
        seconds: wall time.
        path: directory with metrics.json, predictions.parquet and report.html.
    """

    gate: Verdict
    metrics: Mapping[str, Row]
    popularity: Mapping[str, Row]
    gain: Mapping[str, Row]
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
        """Returns the JSON form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The evaluated requests and their targets, in time order.

    Args:
        requests: int64 [R], positions of the requests in `encoded`.
        positions: int64 [N], positions of their targets; owners: int64 [N], the request of each.
        labels: int8 [N, K].
        lengths: int64 [N], events before the request of each target.
        resamples: of the users of the targets.
    """

    requests: Int
    positions: Int
    owners: Int
    labels: Array
    lengths: Int
    resamples: Resamples


def evaluate(
    bundle_dir: str | Path,
    histories_dir: str | Path,
    out_dir: str | Path,
    evaluate: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    *,
    champion_dir: str | Path | None = None,
    device: str = "auto",
) -> EvaluationReport:
    """Returns metrics and verdict after writing metrics.json, predictions.parquet, report.html and
    MODEL_CARD.md to `out_dir` (at once).

    Args:
        bundle_dir: the trained ranker.
        histories_dir: what it was trained on; the split `eval` is used, and the rest for
            popularity.
        out_dir: where the results go.
        evaluate: lengths, sample, resamples.
        gate: bounds of the verdict; a refused model raises nothing here.
        seed: of the sample of requests and of the resamples.
        champion_dir: the bundle that is served now; the gate compares with it on the same requests,
            at its own served length.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        SchemaMismatch: the bundle was trained for another schema.
        DataError: the histories cannot be used, or hold no evaluation request.
    """
    started, out_dir = time.perf_counter(), Path(out_dir)
    histories = Histories.open(histories_dir)
    scorer = Scorer.load(bundle_dir, _device(device), schema=histories.schema)
    if scorer.bundle.served_length != evaluate.served_length:
        log.warning(
            "the bundle is served at %d events, but evaluated at %d",
            scorer.bundle.served_length,
            evaluate.served_length,
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{out_dir.name}.encoded-", dir=out_dir.parent
    ) as cache:
        encoded = EncodedHistories.make(histories, scorer.bundle.encoder, Path(cache) / "histories")
        sample = draw(encoded, evaluate, seed)
        scores, curve, extrapolation = score_lengths(scorer, encoded, sample, evaluate)
        champion = Champion.of(
            champion_dir, histories, sample, scorer.device, Path(cache) / "champion"
        )
        found = _assemble(
            scorer, histories, encoded, sample, scores, curve, champion, evaluate, gate, seed
        )
        predictions = _predictions(histories.schema, encoded, histories, sample, scores)
    found = dataclasses.replace(
        found, extrapolation=extrapolation, seconds=time.perf_counter() - started, path=str(out_dir)
    )
    facts = {
        **found.to_dict(),
        **_context(scorer, histories, Path(bundle_dir), sample, scores, evaluate, gate, seed),
    }
    with files.replacing(out_dir) as temporary:
        temporary.mkdir()
        files.write_json(temporary / "metrics.json", facts)
        pq.write_table(predictions, temporary / "predictions.parquet", compression="zstd")
        (temporary / "report.html").write_text(report.render(facts), encoding="utf-8")
        (temporary / "MODEL_CARD.md").write_text(report.card(facts), encoding="utf-8")
    log.info(
        "evaluated %d requests in %.1f s, gate %s",
        found.num_requests,
        found.seconds,
        "passed" if found.gate.passed else "refused",
    )
    return found


def draw(encoded: EncodedHistories, config: EvaluateConfig, seed: int) -> Sample:
    """Returns the evaluation requests, a seeded sample when there are more than `max_requests`.

    Raises:
        DataError: there is none.
    """
    requests = encoded.requests("eval")
    if not len(requests):
        raise DataError(
            "the histories hold no evaluation request",
            fix="Raise data.eval_fraction or use more requests.",
        )
    if 0 < config.max_requests < len(requests):
        requests = np.sort(
            np.random.default_rng(seed).choice(requests, config.max_requests, replace=False)
        )
    stream = RequestStream.serving(
        encoded, requests, config.served_length, token_budget=1, max_requests=1
    )
    positions, owners = stream.target_positions, stream.target_requests
    lengths = encoded.event_ends[owners] - encoded.event_starts[owners]
    resamples = Resamples.of(encoded.request_users[owners], config.bootstrap_samples, seed)
    return Sample(
        requests,
        positions,
        owners,
        encoded.labels[positions],
        np.asarray(lengths, np.int64),
        resamples,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class LengthScores:
    """The scores of a sample at one served length.

    Args:
        length: most recent events served.
        mean_events: mean of the events that the requests have then.
        same_as: the shorter length whose scores these are, where no history is cut differently;
            else None.
        seconds: of scoring.
        scores: float32 [N, K].
    """

    length: int
    mean_events: float
    same_as: int | None
    seconds: float
    scores: Array


def scores_by_length(
    scorer: Scorer, encoded: EncodedHistories, sample: Sample, lengths: Iterable[int]
) -> Iterator[LengthScores]:
    """Yields the scores of the sample at each length, shortest first.

    A length that leaves every history as the one before did has the same scores; they are not
    computed again.
    """
    events = encoded.event_ends[sample.requests] - encoded.event_starts[sample.requests]
    last: LengthScores | None = None
    for length in sorted(set(lengths)):
        started, mean_events = time.perf_counter(), float(np.minimum(events, length).mean())
        if last is not None and last.mean_events == mean_events:
            same_as = last.length if last.same_as is None else last.same_as
            last = LengthScores(length, mean_events, same_as, 0.0, last.scores)
        else:
            scores = _score(scorer, encoded, sample, length)
            last = LengthScores(length, mean_events, None, time.perf_counter() - started, scores)
        yield last


def score_lengths(
    scorer: Scorer, encoded: EncodedHistories, sample: Sample, config: EvaluateConfig
) -> tuple[Array, list[Row], Row]:
    """Returns the scores at the served length, float32 [N, K], the curve of the first task over all
    lengths, and the extrapolation.
    """
    curve: list[Row] = []
    trained = _trained_length(scorer)
    served = np.zeros((0, sample.labels.shape[1]), np.float32)
    at: dict[int, Measurement] = {}
    events: dict[int, float] = {}
    for entry in scores_by_length(
        scorer, encoded, sample, {*config.lengths, config.served_length, *trained}
    ):
        measured = (
            at[entry.same_as]
            if entry.same_as is not None
            else metrics.measure(sample.labels[:, 0], entry.scores[:, 0], sample.resamples)
        )
        at[entry.length], events[entry.length] = measured, entry.mean_events
        served = entry.scores if entry.length == config.served_length else served
        if entry.length in (*config.lengths, config.served_length):
            same_as = entry.same_as if curve and entry.same_as is not None else None
            curve.append(
                {
                    "length": entry.length,
                    **_point(measured),
                    "mean_events": entry.mean_events,
                    "same_as": same_as,
                    "seconds": entry.seconds,
                }
            )
            log.info(
                "served length %d: AUC %s, %.1f s", entry.length, curve[-1]["auc"], entry.seconds
            )
    extrapolation = {
        length: {
            **dataclasses.asdict(metrics.difference(at[config.served_length], at[length])),
            "trained_length": length,
            "cost": events[config.served_length] / max(events[length], 1e-9),
        }
        for length in trained
    }
    return served, curve, next(iter(extrapolation.values()), {})


def _trained_length(scorer: Scorer) -> tuple[int, ...]:
    """The realised mean length of the bundle's training, if it says."""
    mean = scorer.bundle.facts.get("mean_length")
    return (round(mean),) if isinstance(mean, (int, float)) and mean >= 1 else ()


@dataclasses.dataclass(frozen=True, slots=True)
class Champion:
    """The served model on the requests of the sample.

    Args:
        facts: `version` and `served_length`, or `problem`; {} without a champion.
        scores: float32 [N, K], or None.
    """

    facts: Row
    scores: Array | None

    @classmethod
    def of(
        cls,
        bundle_dir: str | Path | None,
        histories: Histories,
        sample: Sample,
        device: Any,
        cache_dir: Path,
    ) -> Champion:
        """Returns the champion's scores, encoded by its own encoder; a champion of another schema
        cannot be compared, and says so.
        """
        if bundle_dir is None:
            return cls({}, None)
        try:
            scorer = Scorer.load(bundle_dir, device, schema=histories.schema)
        except SchemaMismatch as error:
            return cls({"problem": f"{error}"}, None)
        encoded = EncodedHistories.make(histories, scorer.bundle.encoder, cache_dir)
        length = scorer.bundle.served_length
        return cls(
            {"version": scorer.bundle.version, "served_length": length},
            _score(scorer, encoded, sample, length),
        )

    def differences(
        self, measured: Mapping[str, Measurement], sample: Sample, metric: str
    ) -> dict[str, Estimate]:
        """Returns task -> metric of the ranker minus the champion's, on the same resamples."""
        if self.scores is None:
            return {}
        return {
            task: metrics.difference(
                ours,
                metrics.measure(sample.labels[:, k], self.scores[:, k], sample.resamples),
                metric,
            )
            for k, (task, ours) in enumerate(measured.items())
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Popularity:
    """Popularity scores of the sample's targets from before the split.

    Args:
        rates: float64 [N, K], smoothed mean label of the item over the targets of earlier requests.
        counts: float64 [N], events of the item before the split moment.
    """

    rates: Array
    counts: Array

    @classmethod
    def of(
        cls,
        histories: Histories,
        encoded: EncodedHistories,
        sample: Sample,
    ) -> Popularity:
        """Returns the scores from the histories' own training window."""
        ids, items = np.unique(int64_column(histories.targets, ITEM_ID), return_inverse=True)
        earlier = _earlier_targets(encoded)
        wanted = items[sample.positions]
        rates = [
            metrics.smoothed_rates(items[earlier], encoded.labels[earlier, task], len(ids))[wanted]
            for task in range(encoded.labels.shape[1])
        ]
        return cls(
            np.stack(rates, axis=1), _event_counts(histories, ids)[wanted].astype(np.float64)
        )

    def best(self, sample: Sample, task: int) -> tuple[str, Measurement]:
        """Returns the better score of a task, by its AUC on the sample itself, with its name."""
        largest = self.counts.max(initial=1.0) or 1.0
        found = {
            "rate": metrics.measure(sample.labels[:, task], self.rates[:, task], sample.resamples),
            "count": metrics.measure(
                sample.labels[:, task], self.counts / largest, sample.resamples
            ),
        }
        name = max(found, key=lambda entry: found[entry].values.get("auc", -1.0))
        return name, found[name]


def parity_error(
    scorer: Scorer, histories: Histories, sample: Sample, scores: Array, length: int, seed: int
) -> float | None:
    """Returns the largest difference of a probability between `scores` and the scores of the raw
    rows of a few requests.

    None when a score is not finite.
    """
    chosen = np.random.default_rng(seed).permutation(sample.requests)[:PARITY_REQUESTS]
    rows = [histories_rows(histories, int(request)) for request in chosen]
    again = scorer.score(rows, length)
    errors = [
        np.abs(scores[sample.owners == request] - answer).max()
        for request, answer in zip(chosen, again, strict=True)
    ]
    return float(np.max(errors)) if np.isfinite(errors).all() else None


def histories_rows(histories: Histories, request: int) -> RequestRows:
    """Returns one request as the feature store would answer it."""
    row = histories.requests.slice(request, 1).to_pylist()[0]
    user = histories.users.slice(row["user_row"], 1).to_pylist()[0]
    candidates = int64_column(
        histories.targets.slice(row["target_start"], row["target_end"] - row["target_start"]),
        ITEM_ID,
    )
    return RequestRows(
        histories.events(row["event_start"], row["event_end"]), user, row[TIMESTAMP], candidates
    )


def _score(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: Sample,
    length: int,
) -> Array:
    stream = RequestStream.serving(
        encoded,
        sample.requests,
        length,
        token_budget=scorer.token_budget,
        max_requests=scorer.max_requests,
    )
    return np.concatenate(list(scorer.score_batches(stream)))


def latency_ms(
    scorer: Scorer,
    histories: Histories,
    sample: Sample,
    length: int,
) -> Row:
    """Returns {"p50", "p95"}: milliseconds of scoring one request alone, of those with the longest
    histories, after a first try.
    """
    longest = sample.requests[
        np.argsort(-_request_lengths(sample), kind="stable")[:LATENCY_REQUESTS]
    ]
    rows = [histories_rows(histories, int(request)) for request in longest]
    scorer.score(rows[:1], length)
    seconds = []
    for row in rows:
        started = time.perf_counter()
        scorer.score([row], length)
        seconds.append(time.perf_counter() - started)
    return {
        "p50": float(np.percentile(seconds, 50)) * 1e3,
        "p95": float(np.percentile(seconds, 95)) * 1e3,
    }


def _request_lengths(sample: Sample) -> Int:
    """Events before each request of the sample, int64 [R]."""
    _, first = np.unique(sample.owners, return_index=True)
    return sample.lengths[first]


def _point(measured: Measurement) -> Row:
    """The first task's row of the length curve."""
    auc = measured.estimate("auc")
    return {
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "logloss": measured.estimate("logloss").value,
    }


def _assemble(
    scorer: Scorer,
    histories: Histories,
    encoded: EncodedHistories,
    sample: Sample,
    scores: Array,
    curve: list[Row],
    champion: Champion,
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
) -> EvaluationReport:
    tasks = histories.schema.task_names
    measured = {
        task: metrics.measure(sample.labels[:, k], scores[:, k], sample.resamples)
        for k, task in enumerate(tasks)
    }
    popularity = Popularity.of(histories, encoded, sample)
    peers = {task: popularity.best(sample, k) for k, task in enumerate(tasks)}
    gains = {task: metrics.difference(measured[task], peers[task][1]) for task in tasks}
    peer_scores = popularity.rates[:, 0] if peers[tasks[0]][0] == "rate" else popularity.counts
    slices = _slices(encoded, sample, scores[:, 0], peer_scores, champion, config)
    apart = champion.differences(measured, sample, gate.metric)
    parity = parity_error(scorer, histories, sample, scores, config.served_length, seed)
    latency = latency_ms(scorer, histories, sample, config.served_length)
    unknown = float((encoded.target_items[sample.positions] == 0).mean())
    evidence = Evidence(
        measured,
        gains,
        parity,
        slices,
        apart,
        champion.facts.get("problem", ""),
        latency["p95"],
        unknown,
    )
    best_possible, best_possible_full = _best_possible(histories.manifest)
    return EvaluationReport(
        gate=gating.judge(evidence, gate),
        metrics={task: entry.to_dict() for task, entry in measured.items()},
        popularity={
            task: {"name": name, **entry.to_dict()} for task, (name, entry) in peers.items()
        },
        gain={task: dataclasses.asdict(entry) for task, entry in gains.items()},
        lengths=tuple(curve),
        slices=tuple(slices),
        extrapolation={},
        champion=_champion_facts(champion, apart, gate),
        best_possible=best_possible,
        best_possible_full=best_possible_full,
        num_requests=len(sample.requests),
        num_targets=len(sample.positions),
        num_users=sample.resamples.num_users,
        served_length=config.served_length,
        longest_history=int(sample.lengths.max(initial=0)),
        parity_error=parity,
        latency_ms=latency,
        unknown_item_share=unknown,
        seconds=0.0,
        path="",
    )


def _champion_facts(champion: Champion, apart: Mapping[str, Estimate], gate: GateConfig) -> Row:
    if not champion.facts:
        return {}
    return {
        **champion.facts,
        "metric": gate.metric,
        "differences": {task: dataclasses.asdict(entry) for task, entry in apart.items()},
    }


def _slices(
    encoded: EncodedHistories,
    sample: Sample,
    scores: Array,
    baseline: Array,
    champion: Champion,
    config: EvaluateConfig,
) -> list[Row]:
    """The first task by slice, with popularity and, where there is one, the champion on the same
    targets.
    """
    rows = []
    for family, name, inside in slicing.slices(
        encoded, sample.positions, sample.owners, config.served_length
    ):
        labels = sample.labels[inside, 0]
        resamples = Resamples.of(
            sample.resamples.users[inside], config.bootstrap_samples, sample.resamples.seed
        )
        found = metrics.measure(labels, scores[inside], resamples)
        auc, other = found.estimate("auc"), metrics.auc(labels, baseline[inside])
        row = {
            "family": family,
            "name": name,
            "num_requests": len(np.unique(sample.owners[inside])),
            "num_targets": len(labels),
            "rate": float(labels.mean()),
            "auc": auc.value,
            "auc_low": auc.low,
            "auc_high": auc.high,
            "popularity_auc": other if np.isfinite(other) else None,
            "calibration": found.estimate("calibration").value,
            "ece": found.estimate("ece").value,
            "reason": auc.reason,
        }
        if champion.scores is not None:
            apart = metrics.difference(
                found, metrics.measure(labels, champion.scores[inside, 0], resamples)
            )
            row |= {
                "difference": apart.value,
                "difference_low": apart.low,
                "difference_high": apart.high,
            }
        rows.append(row)
    return rows


def _earlier_targets(encoded: EncodedHistories) -> Int:
    """Positions of the targets of all requests that are not in the evaluation split."""
    requests = np.concatenate([encoded.requests("warmup"), encoded.requests("train")])
    return RequestStream.serving(
        encoded, requests, 0, token_budget=1, max_requests=1
    ).target_positions


def _event_counts(histories: Histories, ids: Int) -> Int:
    """Events before the split moment of each of the sorted item ids, int64."""
    counts = np.zeros(len(ids), np.int64)
    for batch in histories.event_batches():
        items = int64_column(batch, ITEM_ID)[
            int64_column(batch, TIMESTAMP) < histories.split_time_ms
        ]
        places = np.minimum(np.searchsorted(ids, items), len(ids) - 1)
        counts += np.bincount(places[ids[places] == items], minlength=len(ids))
    return counts


def _best_possible(manifest: Mapping[str, Any]) -> tuple[tuple[Row, ...], float | None]:
    """Best possible AUC by length and at full length, where the facts of the data set hold them."""
    facts = manifest.get("dataset_facts", {})
    return tuple(dict(row) for row in facts.get("best_possible_auc", ())), facts.get(
        "best_possible_auc_full"
    )


def _predictions(
    schema: Schema, encoded: EncodedHistories, histories: Histories, sample: Sample, scores: Array
) -> pa.Table:
    columns: dict[str, Any] = {
        REQUEST_ID: encoded.request_ids[sample.owners],
        USER_ID: encoded.request_users[sample.owners],
        TIMESTAMP: pa.array(encoded.request_timestamps[sample.owners], pa.timestamp("ms", "UTC")),
        ITEM_ID: int64_column(histories.targets, ITEM_ID)[sample.positions],
        "history_length": sample.lengths.astype(np.int32),
    }
    for position, task in enumerate(schema.task_names):
        columns |= {
            f"{task}_label": sample.labels[:, position],
            f"{task}_score": scores[:, position].astype(np.float32),
        }
    return pa.table(columns)


def _context(
    scorer: Scorer,
    histories: Histories,
    bundle_dir: Path,
    sample: Sample,
    scores: Array,
    config: EvaluateConfig,
    gate: GateConfig,
    seed: int,
) -> Row:
    """What the report says beside the results."""
    bundle, tasks = scorer.bundle, histories.schema.task_names
    finite = np.isfinite(scores).all()
    bins = {
        task: metrics.reliability(sample.labels[:, k], scores[:, k]) if finite else []
        for k, task in enumerate(tasks)
    }
    return {
        "name": histories.manifest.get("dataset", histories.schema.name),
        "calibration_bins": bins,
        "training": dict(bundle.facts),
        "training_curve": _training_curve(bundle_dir),
        "bundle": {
            "version": bundle.version,
            "served_length": bundle.served_length,
            "schema_fingerprint": histories.schema.fingerprint,
            "model": dataclasses.asdict(bundle.config),
        },
        "data": _data_facts(histories),
        "data_version": histories.manifest.get("dataset_hash"),
        "versions": _versions(),
        "command": shlex.join(["longrec", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "longrec"
        else "",
        "config": {
            "seed": seed,
            "evaluate": dataclasses.asdict(config),
            "gate": dataclasses.asdict(gate),
        },
    }


def _training_curve(bundle_dir: Path) -> list[Row]:
    """Rows of training_curve.csv in the bundle or beside it; none when there is no such file."""
    for path in (bundle_dir / "training_curve.csv", bundle_dir.parent / "training_curve.csv"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(path, newline="", encoding="utf-8") as stream,
        ):
            return [
                {name: float(value) for name, value in row.items()}
                for row in csv.DictReader(stream)
            ]
    return []


def _data_facts(histories: Histories) -> Row:
    request_times = int64_column(histories.requests, TIMESTAMP)
    splits = histories.requests.column("split").value_counts().to_pylist()
    lengths = np.percentile(
        int64_column(histories.requests, "event_end")
        - int64_column(histories.requests, "event_start"),
        [50, 90, 100],
    )
    return {
        "events": histories.num_events,
        "users": histories.users.num_rows,
        "items": histories.items.num_rows,
        "targets": histories.targets.num_rows,
        "requests": histories.requests.num_rows,
        "requests by split": ", ".join(
            f"{entry['values']} {entry['counts']:,}" for entry in splits
        ),
        "events kept per request": histories.manifest.get("max_history"),
        "history length p50, p90, max": ", ".join(f"{length:,.0f}" for length in lengths),
        "first request": _minute(request_times[0]),
        "evaluated from": _minute(histories.split_time_ms),
        "last request": _minute(request_times[-1]),
    }


def _minute(request_time_ms: int) -> str:
    return str(np.datetime64(int(request_time_ms), "ms").astype("datetime64[m]")).replace("T", " ")


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in ("longrec", "torch", "numpy", "pyarrow", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _device(name: str) -> str:
    import torch

    return name if name != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
