"""Train and measure one trial.

The result holds the metrics and the bootstrap values behind their intervals. All trials use the
same resamples, so the results of any two can be compared as a pair. Arguments are paths and plain
values: a trial can run in another process, or on another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from longrec.config import RunConfig, TrainConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import ConfigError
from longrec.evaluation import bootstrap
from longrec.evaluation.length_curve import LengthScores, score_lengths
from longrec.evaluation.sample import EvaluationSample, draw_sample
from longrec.nn.flops import TRAINING_FLOPS_FACTOR, forward_flops
from longrec.nn.rounding import ceil_div
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.study.rows import at_length
from longrec.study.trial import Row, Trial, result_path
from longrec.training import encoded_cache, loop, progress
from longrec.training.curve import Listener
from longrec.training.id_init import initialize_ids
from longrec.training.report import TrainReport
from longrec.training.resources import autocast, choose_device
from longrec.training.trainer import Trainer

RESAMPLED_METRICS = ("auc", "gauc", "logloss", "calibration")
"""Metrics with resampled values in a result, at each served length."""
NUM_DIGITS = 6
"""Decimal places of losses and resampled values in a result."""
MAX_EPOCHS = 1_000
Data: TypeAlias = tuple[Histories, Encoder, EncodedHistories]


def prepare(histories_dir: str | Path, cache_dir: str | Path) -> None:
    """Fit the encoder and encode the histories into `cache_dir`, once for all trials."""
    encoded_cache.encode(Histories.open(histories_dir), Path(cache_dir))


def run_trials(
    histories_dir: str | Path, out_dir: str | Path, trials: Iterable[Trial]
) -> list[Row]:
    """Train and measure trials one after the other; return their results.

    Args, Raises: see `run_trial`.
    """
    with tempfile.TemporaryDirectory(prefix="longrec-study-") as cache_dir:
        prepare(histories_dir, cache_dir)
        rows = [
            run_trial(histories_dir, out_dir, trial.to_dict(), cache_dir=cache_dir)
            for trial in trials
        ]
        close_data()
    return rows


def run_trial(
    histories_dir: str | Path,
    out_dir: str | Path,
    trial: Mapping[str, Any],
    *,
    cache_dir: str | Path | None = None,
) -> Row:
    """Train and measure one trial unless `out_dir` has its result; return the result.

    Args:
        histories_dir: made by `store.retrieve`.
        out_dir: folder of the study; the result is its file trials/<id>.json.
        trial: result of `Trial.to_dict`.
        cache_dir: folder that `prepare` filled for these histories; None to prepare for this trial
            alone.

    Raises:
        DataError: the histories cannot be used.
        LongrecError: the training failed.
    """
    asked = Trial.from_dict(trial)
    path = result_path(out_dir, asked)
    if path.exists():
        return dict(files.read_json(path))
    with contextlib.ExitStack() as stack:
        if cache_dir is None:
            temporary = tempfile.TemporaryDirectory(prefix="longrec-study-")
            cache_dir = stack.enter_context(temporary)
            prepare(histories_dir, cache_dir)
        data = _open(str(histories_dir), str(cache_dir))
        result = _train_and_measure(data, asked, Path(out_dir))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
    return result


def close_data() -> None:
    """Release the histories that this process holds open."""
    _open.cache_clear()


@functools.lru_cache(maxsize=1)
def _open(histories_dir: str, cache_dir: str) -> Data:
    """Open the data that the trials of one process share."""
    histories = Histories.open(histories_dir)
    encoder, encoded = encoded_cache.encode(histories, Path(cache_dir))
    return histories, encoder, encoded


def _train_and_measure(
    data: Data,
    trial: Trial,
    out_dir: Path,
) -> Row:
    """Return the result of a trial."""
    start = time.perf_counter()
    histories, _, encoded = data
    config = trial.config
    encoder = _encoder_of(data, config.train)
    limited = limit_events(encoded, config, trial.train_events, trial.seed)
    own_config = dataclasses.replace(config, train=limited, seed=trial.seed)
    trainer = _train(encoder, encoded, own_config, out_dir, progress.ignore_row)
    report = TrainReport.from_trainer(trainer)
    bundle = Bundle(
        trainer.ranker,
        encoder,
        config.model,
        max(config.evaluate.served_lengths),
        {},
    )
    scorer = Scorer(
        bundle,
        trainer.device,
        config.train.token_budget,
        config.train.max_requests_per_batch,
    )
    sample = draw_sample(encoded, config.evaluate, config.seed)
    # In the training's precision, for speed. `longrec evaluate` measures the served precision.
    with autocast(trainer.device, trainer.precision):
        lengths = list(_measure_lengths(scorer, encoded, sample, config))
    facts = histories.manifest.get("dataset_facts", {})
    best_possible = facts.get("best_possible_auc", ())
    return {
        **trial.to_dict(),
        "served_length": max(config.evaluate.served_lengths),
        "lengths": lengths,
        "auc": at_length(lengths, max(config.evaluate.served_lengths))["auc"],
        **_training_facts(report, config),
        "curve": _rounded_curve(trainer),
        "sample": _sample_id(sample),
        "best_possible": [dict(row) for row in best_possible],
        "seconds": time.perf_counter() - start,
        "data": _data_facts(histories, encoded, sample),
    }


def _encoder_of(data: Data, train: TrainConfig) -> Encoder:
    """Return the encoder of a trial; the encoded histories do not depend on its settings."""
    histories, encoder, _ = data
    if not train.id_min_count:
        return encoder
    return encoded_cache.fit_encoder(histories, train.id_min_count)


def train_on_cache(
    histories_dir: str | Path,
    cache_dir: str | Path,
    config: RunConfig,
    *,
    out_dir: Path,
    on_progress: Listener,
) -> Trainer:
    """Train a configuration on histories that other trainings share; return its trainer.

    Args:
        histories_dir: made by `store.retrieve`.
        cache_dir: folder of the encoded histories; `prepare` fills it.
        config: its seed is that of the training.
        out_dir: folder for the batch of a loss that is not finite.
        on_progress: gets the rows of the curve; an exception of it ends the training.
    """
    data = _open(str(histories_dir), str(cache_dir))
    encoder = _encoder_of(data, config.train)
    return _train(encoder, data[2], config, out_dir, on_progress)


def _train(
    encoder: Encoder,
    encoded: EncodedHistories,
    config: RunConfig,
    out_dir: Path,
    on_progress: Listener,
) -> Trainer:
    """Train the ranker of a configuration; return its trainer."""
    device, _ = choose_device(config.train)
    ranker = loop.make_ranker(config.model, encoder, config.seed).to(device)
    if config.train.id_init == "lsa":
        initialize_ids(ranker, encoder, encoded, seed=config.seed)
    return loop.fit(
        ranker,
        encoded,
        config.lengths,
        config.train,
        seed=config.seed,
        out_dir=out_dir,
        on_progress=on_progress,
    )


def limit_events(
    encoded: EncodedHistories,
    config: RunConfig,
    train_events: int,
    seed: int,
) -> TrainConfig:
    """Return training settings that read `train_events` events, to within one step.

    A bound in `train.max_steps` stays: whichever is reached first ends the training.

    Args:
        encoded: the histories.
        config: configuration of the trial; its training length distribution decides the number of
            requests.
        train_events: number of events; 0 leaves the settings as they are.
        seed: seed of the trial.

    Raises:
        ConfigError: MAX_EPOCHS epochs have fewer events.
    """
    settings = config.train
    if not train_events:
        return settings
    num_events = 0
    num_steps = 0
    for epoch in range(MAX_EPOCHS):
        batch_events = _batch_events(encoded, config, seed, epoch)
        events_after_batch = num_events + np.cumsum(batch_events)
        last_step = num_steps + ceil_div(len(batch_events), settings.accumulate_steps)
        is_enough = events_after_batch[-1] >= train_events
        is_bounded = 0 < settings.max_steps <= last_step
        if is_enough or is_bounded:
            # The last batch is the one that reaches the number; else the epoch ends it.
            num_batches = int(np.searchsorted(events_after_batch, train_events)) + 1
            num_batches = min(num_batches, len(batch_events))
            num_steps += ceil_div(num_batches, settings.accumulate_steps)
            return dataclasses.replace(
                settings,
                epochs=epoch + 1,
                max_steps=min(num_steps, settings.max_steps or num_steps),
            )
        num_events = int(events_after_batch[-1])
        num_steps = last_step
    raise ConfigError(
        "study.train_events cannot be reached",
        found=f"{num_events:,} events after {MAX_EPOCHS} epochs",
        expected=f"{train_events:,}",
    )


def _batch_events(
    encoded: EncodedHistories,
    config: RunConfig,
    seed: int,
    epoch: int,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the number of events in each batch of an epoch."""
    stream = RequestStream.for_training(
        encoded,
        LengthSampler(config.lengths, seed),
        token_budget=config.train.token_budget,
        max_requests=config.train.max_requests_per_batch,
        seed=seed,
        epoch=epoch,
    )
    request_events = stream.ends - stream.starts
    return np.add.reduceat(request_events, stream.bounds[:-1])


def _measure_lengths(
    scorer: Scorer,
    encoded: EncodedHistories,
    sample: EvaluationSample,
    config: RunConfig,
) -> Iterator[Row]:
    """Yield the metrics at each served length, with their resampled values.

    The row holds those of the first task; its entry `tasks` holds those of each task by name.
    """
    tasks = scorer.bundle.encoder.schema.task_names
    lengths = (*config.evaluate.lengths, max(config.evaluate.served_lengths))
    for scores in score_lengths(scorer, encoded, sample, lengths):
        measured = {name: _measure(scores, sample, i) for i, name in enumerate(tasks)}
        num_targets = len(sample.target_positions) / len(sample.requests)
        yield {
            "length": scores.length,
            "mean_events": scores.mean_events,
            "request_flops": forward_flops(config.model, scores.mean_events, num_targets),
            **measured[tasks[0]],
            "tasks": measured,
        }


def _measure(scores: LengthScores, sample: EvaluationSample, task: int) -> Row:
    """Return the metrics of one task at one served length."""
    measured = bootstrap.measure(
        sample.labels[:, task],
        scores.scores[:, task],
        sample.resamples,
    )
    row: Row = {metric: measured.values.get(metric) for metric in bootstrap.METRICS}
    samples = {}
    for metric in RESAMPLED_METRICS:
        if metric in measured.samples:
            rounded = np.round(measured.samples[metric], NUM_DIGITS)
            samples[metric] = rounded.tolist()
    row["samples"] = samples
    return row


def _training_facts(report: TrainReport, config: RunConfig) -> Row:
    """Return sizes and cost of the training."""
    num_targets = report.num_targets / report.num_requests
    request_flops = forward_flops(config.model, report.mean_length, num_targets)
    return {
        "training": dataclasses.asdict(report),
        "num_parameters": report.num_parameters,
        "train_events_read": report.num_events,
        "mean_length": report.mean_length,
        "num_layer_parameters": report.num_parameters - report.num_table_parameters,
        "train_flops": TRAINING_FLOPS_FACTOR * report.num_requests * request_flops,
    }


def _rounded_curve(trainer: Trainer) -> list[list[float]]:
    """Return [step, loss] of each row of the training curve."""
    curve = []
    for row in trainer.state.curve:
        loss = round(row.loss, NUM_DIGITS)
        curve.append([row.step, loss])
    return curve


def _data_facts(
    histories: Histories,
    encoded: EncodedHistories,
    sample: EvaluationSample,
) -> Row:
    """Return name and sizes of the data."""
    name = histories.manifest.get("dataset", histories.schema.name)
    longest = sample.history_lengths.max(initial=0)
    return {
        "name": name,
        "requests": len(sample.requests),
        "targets": len(sample.target_positions),
        "users": sample.resamples.num_users,
        "training requests": len(encoded.requests("train")),
        "longest history": int(longest),
    }


def _sample_id(sample: EvaluationSample) -> str:
    """Return a hash of the evaluated targets and the seed of their resamples."""
    resamples = np.array([sample.resamples.num_samples, sample.resamples.seed])
    arrays = (
        sample.target_positions,
        sample.target_requests,
        sample.labels,
        resamples,
    )
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
