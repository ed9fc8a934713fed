"""train: histories in, bundle and training curve out."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import itertools
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import nn

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data import files
from longrec.data.encoder import Encoder, int64_column
from longrec.data.histories import Histories
from longrec.data.length_sampler import LengthSampler
from longrec.data.loader import EncodedHistories, RequestStream, moved, prefetch
from longrec.errors import ConfigError, DataError, Stopped
from longrec.nn.ranker import Ranker
from longrec.schema import ITEM_ID, TIMESTAMP
from longrec.scoring.bundle import Bundle
from longrec.training import distributed
from longrec.training.checkpoint import Checkpoint, Checkpoints
from longrec.training.distributed import DistributedContext
from longrec.training.trainer import CurveRow, Listener, Trainer, enough_memory

ENCODED, CHECKPOINTS, SOURCE = "encoded", "checkpoints", "source.json"
SMALLER = "Lower model.width, model.id_dim, or max_size of the schema's ids."
NON_SEMANTIC_KEYS = (
    "precision",
    "device",
    "recompute",
    "checkpoint_every",
    "num_workers",
    "tensorboard",
    "embedding_sharding",
)
"""Keys of TrainConfig that do not decide what is computed; the precision that was chosen does."""
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run did.

    Args:
        version: of the bundle.
        num_steps: optimizer steps; num_requests, num_events, num_targets: seen in them (an epoch
            counts its own).
        seconds: of the training loop alone, over all starts; total_seconds: of the last start, with
            fitting and encoding.
        events_per_second, targets_per_second: of the training loop.
        mean_length: realised mean of events per request, after the training length distribution.
        first_loss, final_loss: mean loss of the first and of the last log_every steps.
        memory_bytes: most that the device (on a CPU: the process) held.
        mfu: share of the measured matrix peak `peak_flops` (FLOP/s), a lower bound (see CurveRow);
            None on a CPU.
        num_parameters: of the ranker; num_table_parameters: of them, in tables with sparse
            gradients.
        device, precision: that were used.
    """

    version: str
    num_steps: int
    num_requests: int
    num_events: int
    num_targets: int
    seconds: float
    total_seconds: float
    events_per_second: float
    targets_per_second: float
    mean_length: float
    first_loss: float
    final_loss: float
    memory_bytes: int
    mfu: float | None
    peak_flops: float | None
    num_parameters: int
    num_table_parameters: int
    device: str
    precision: str


def train(
    histories_dir: str | Path,
    out_dir: str | Path,
    model: ModelConfig,
    lengths: LengthConfig,
    train: TrainConfig,
    served_length: int,
    seed: int,
    *,
    checkpoint_dir: str | Path | None = None,
    log_dir: str | Path | None = None,
    on_progress: Listener | None = None,
) -> TrainReport:
    """Returns the report of one training run, after writing a bundle and training_curve.csv to
    `out_dir` (replaced at once).

    On a CPU equal arguments give equal weights, bit for bit, for one number of threads; also when
    the process was killed in between and
    started again, since it goes on from its last checkpoint. Beside `out_dir` lie, while it runs,
    `.<name>.work` (encoded histories,
    checkpoints), and for good `<name>.tensorboard`.

    Args:
        histories_dir: made by `store.retrieve`.
        out_dir: of the bundle; training_curve.csv lies beside its files.
        model, lengths, train: sections of the configuration.
        served_length: most recent events that the bundle uses when it scores.
        seed: of initial weights, order of requests and lengths.
        checkpoint_dir: where checkpoints lie (longrec.training.checkpoint), for example on a volume
            that outlives the process; a training removes
            its own when it is through. None for `.<name>.work/checkpoints`.
        log_dir: TensorBoard's files go to `<log_dir>/<fingerprint>`; None for `<name>.tensorboard`
            beside `out_dir`.
        on_progress: called at each row of the curve; None for a progress bar when stderr is a
            terminal.

    Raises:
        ConfigError: the device is not there, memory does not suffice, a training length distribution cannot be, or
            `out_dir` is being written already.
        DataError: the histories cannot be used, or have no training request.
        LongrecError: the loss is not finite; the batch is saved in
            out_dir/failed_batch.safetensors.
    """
    started, out_dir = time.perf_counter(), Path(out_dir)
    device, precision = choose_device(train)
    histories = Histories.open(histories_dir)
    with distributed.process_group(device) as context, _work_dir(out_dir, context) as work:
        encoder, encoded = context.rank_zero_first(
            lambda: encode(histories, work / ENCODED),
            lambda: _open_encoded(histories, work / ENCODED),
        )
        with enough_memory("the ranker", SMALLER):
            ranker = make_ranker(model, encoder, seed).to(context.device)
        identity = context.broadcast_object(
            lambda: _identity(work / ENCODED, model, lengths, train, precision, seed)
        )
        checkpoints = Checkpoints(Path(checkpoint_dir or work / CHECKPOINTS), identity)
        logs = (
            Path(log_dir or out_dir.with_name(f"{out_dir.name}.tensorboard"))
            / checkpoints.fingerprint
        )
        report, curve = fit(
            ranker,
            encoded,
            lengths,
            train,
            seed,
            out_dir,
            checkpoints=checkpoints,
            log_dir=logs,
            on_progress=on_progress,
            context=context,
        )
        report = dataclasses.replace(report, total_seconds=time.perf_counter() - started)
        facts = {
            **dataclasses.asdict(report),
            "seed": seed,
            "lengths": dataclasses.asdict(lengths),
            "train": dataclasses.asdict(train),
            "split_time_ms": histories.split_time_ms,
            "torch": torch.__version__,
        }
        version = context.broadcast_object(
            lambda: _write(out_dir, Bundle(ranker, encoder, model, served_length, facts), curve)
        )
        if context.is_rank_zero:
            checkpoints.remove()
    log.info(
        "trained %d steps in %.1f s, %.0f events/s, final loss %.4f",
        report.num_steps,
        report.seconds,
        report.events_per_second,
        report.final_loss,
    )
    return dataclasses.replace(report, version=version)


def fit(
    ranker: Ranker,
    encoded: EncodedHistories,
    lengths: LengthConfig,
    train: TrainConfig,
    seed: int,
    out_dir: Path,
    *,
    checkpoints: Checkpoints | None = None,
    log_dir: Path | None = None,
    on_progress: Listener | None = None,
    context: DistributedContext | None = None,
) -> tuple[TrainReport, list[CurveRow]]:
    """Returns what happened and the training curve, after training `ranker` where it is; it is left
    in evaluation mode.

    Args:
        ranker: from `make_ranker`, on the device of the configuration.
        encoded: the histories.
        lengths, train, seed, on_progress: see `train`.
        out_dir: where a batch with a loss that is not finite is saved.
        checkpoints: where the training goes on from, and what it writes; None for none.
        log_dir: of TensorBoard's files; None for none.
        ranks: the processes that train together; None for this one alone.

    Raises:
        ConfigError: `train.recompute` with a history reader that cannot; or memory does not
            suffice.
        DataError: the histories were encoded for another ranker; a checkpoint is of another
            training, or does not fit.
        LongrecError: the loss is not finite.
    """
    (_, precision), context = choose_device(train), context or DistributedContext()
    _check_indices(ranker, encoded)
    if train.recompute:
        ranker.recompute()
    streams = training_streams(encoded, LengthSampler(lengths, seed), train, seed, context)
    failed_batch = out_dir / (
        "failed_batch.safetensors"
        if context.is_rank_zero
        else f"failed_batch.rank{context.rank}.safetensors"
    )
    with enough_memory("the optimizers' state", SMALLER):
        trainer = Trainer(
            ranker,
            train,
            num_steps=_num_steps(streams, train),
            precision=precision,
            failed_batch=failed_batch,
            context=context,
        )
        if checkpoints is not None:
            resume(trainer, checkpoints)
    if not context.is_rank_zero:
        on_progress, log_dir = lambda row, num_steps: None, None
    with (
        _reporting(on_progress) as report_row,
        _tensorboard(log_dir if train.tensorboard else None, trainer.state.step) as log_row,
    ):
        loop(trainer, streams, checkpoints, (report_row, log_row))
    return _report(trainer), trainer.state.curve


def loop(
    trainer: Trainer,
    streams: Sequence[RequestStream],
    checkpoints: Checkpoints | None,
    listeners: Sequence[Listener],
) -> None:
    """Trains to the end, from where the trainer is; writes checkpoints and tells the listeners of
    each row of the curve.

    Raises:
        Stopped: a rank got SIGTERM, as from Kubernetes before it takes a node away; all end after
            the same step, with a checkpoint.
    """
    config, done = trainer.config, trainer.state.step
    ends = set(np.cumsum([len(stream) for stream in streams]).tolist())
    batches = prefetch(
        _left(streams, done), num_workers=config.num_workers, pin=trainer.device.type == "cuda"
    )
    trainer.start()
    with contextlib.closing(batches), _stop_on_sigterm() as stop_requested:
        for step, (host, batch) in enumerate(
            moved(itertools.islice(batches, trainer.num_steps - done), trainer.device), done + 1
        ):
            rows = trainer.step(host, batch)
            stop = trainer.context.any(stop_requested.is_set()) and step < trainer.num_steps
            due = stop or (
                config.checkpoint_every and (step % config.checkpoint_every == 0 or step in ends)
            )
            if due or step == trainer.num_steps:
                rows += trainer.flush()
            for row, listener in itertools.product(rows, listeners):
                listener(row, trainer.num_steps)
            if checkpoints is not None and due:
                _save(checkpoints, trainer)
            if stop:
                raise Stopped(
                    "the training was told to stop (SIGTERM)",
                    found=f"step {step} of {trainer.num_steps}",
                    fix=""
                    if checkpoints is None
                    else "Start the same command again: it goes on from there.",
                )
    trainer.finish()


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    """Yields what is set once this process gets SIGTERM, which does nothing else meanwhile; it is
    heard in the main thread only.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: stop_requested.set())
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, previous)


def resume(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Puts the trainer where its newest checkpoint is, if there is one.

    Raises:
        DataError: the checkpoint is of another training, or does not fit.
    """
    if trainer.context.is_rank_zero:
        checkpoints.sweep()
    if (checkpoint := trainer.context.broadcast_checkpoint(checkpoints.latest)) is not None:
        trainer.restore(checkpoint)
        level = logging.WARNING if trainer.context.is_rank_zero else logging.DEBUG
        log.log(
            level,
            "going on after step %d of %d, from %s",
            checkpoint.step,
            trainer.num_steps,
            checkpoints.folder,
        )


def _save(checkpoints: Checkpoints, trainer: Trainer) -> None:
    """Writes a checkpoint on the lead, for which the others wait, as they would in the next
    step.
    """
    checkpoint = trainer.checkpoint()
    trainer.context.rank_zero_first(
        lambda: _write_checkpoint(checkpoints, checkpoint), lambda: None
    )


def _write_checkpoint(checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; where that fails, as on a full disk, the training goes on with those
    before, and a warning.
    """
    from safetensors import SafetensorError

    try:
        checkpoints.save(checkpoint)
    except (DataError, OSError, SafetensorError) as error:
        log.warning(
            "the checkpoint of step %d could not be written, the training goes on without it: %s",
            checkpoint.step,
            error,
        )


def _check_indices(ranker: Ranker, encoded: EncodedHistories) -> None:
    """Passes when every index of the histories is within its table of the ranker; reads them once.

    Raises:
        DataError: one is not; in a batch it would read the rows of another feature, or stop a GPU.
    """
    num_items = ranker.item_table.shape[0]
    for name in ("event_items", "target_items"):
        rows = getattr(encoded, name)
        if len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
            raise DataError(
                f"{name} of the histories are outside the item table",
                found=f"{rows.min()}..{rows.max()}",
                expected=f"0..{num_items - 1}",
                fix="Encode with the encoder that the model was built with.",
            )
    for table, name in ((ranker.actions, "event_features"), (ranker.users, "user_features")):
        indices = getattr(encoded, name)
        if len(indices):
            table.check(
                torch.from_numpy(np.stack([indices.min(0), indices.max(0)])),
                f"{name} of the histories",
            )


def encode(histories: Histories, directory: Path) -> tuple[Encoder, EncodedHistories]:
    """Returns the encoder of the training window and the encoded histories, after writing both to
    `directory`.

    What a killed process left there is taken when it is whole and of the same files.
    """
    source = {
        str(path): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(histories.path.resolve().iterdir())
    }
    with contextlib.suppress(DataError):
        encoder, encoded = (
            Encoder.load(directory / "encoder", histories.schema),
            EncodedHistories.open(directory / "histories"),
        )
        if files.read_json(directory / SOURCE) == {"files": source, "digest": encoded.digest()}:
            return encoder, encoded
    shutil.rmtree(directory, ignore_errors=True)
    encoder = fit_encoder(histories)
    encoder.save(directory / "encoder")
    encoded = EncodedHistories.make(histories, encoder, directory / "histories")
    files.write_json(directory / SOURCE, {"files": source, "digest": encoded.digest()})
    return encoder, encoded


def _open_encoded(histories: Histories, directory: Path) -> tuple[Encoder, EncodedHistories]:
    """Returns what the lead's `encode` wrote to `directory`.

    Raises:
        ConfigError: this process does not see it.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"{directory} is not there for every process",
            expected="one output folder that all machines see",
            fix="Put the output on a volume that all of them mount.",
        )
    return Encoder.load(directory / "encoder", histories.schema), EncodedHistories.open(
        directory / "histories"
    )


def choose_device(config: TrainConfig) -> tuple[torch.device, str]:
    """Returns (device, precision `float32` or `bfloat16`) of a configuration, `auto` resolved.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError(
            "no GPU is available",
            found="train.device=cuda",
            expected="cpu or auto",
            fix="Set train.device=auto.",
        )
    device = torch.device("cuda" if available and config.device != "cpu" else "cpu")
    precision = (
        config.precision
        if config.precision != "auto"
        else "bfloat16"
        if device.type == "cuda"
        else "float32"
    )
    return device, precision


def fit_encoder(histories: Histories) -> Encoder:
    """Returns the encoder of the training window: events strictly before the split moment, and the
    training targets.
    """
    requests, target_ids = histories.requests, int64_column(histories.targets, ITEM_ID)
    trained = np.asarray(pc.equal(requests.column("split"), "train"))
    owned = np.zeros(len(target_ids) + 1, np.int64)
    for name, change in (("target_start", 1), ("target_end", -1)):
        np.add.at(owned, int64_column(requests, name)[trained], change)
    window = (
        batch.filter(pc.less(batch.column(TIMESTAMP), histories.split_time_ms))
        for batch in histories.event_batches()
    )
    return Encoder.fit(
        histories.schema,
        histories.items,
        histories.users,
        window,
        [target_ids[np.cumsum(owned)[:-1] > 0]],
    )


def training_streams(
    encoded: EncodedHistories,
    length_sampler: LengthSampler,
    config: TrainConfig,
    seed: int,
    context: DistributedContext | None = None,
) -> list[RequestStream]:
    """Returns one stream of batches per epoch; of several ranks, of this one's parts of them.

    Raises:
        DataError: there is no training request.
    """
    if not len(encoded.requests("train")):
        raise DataError(
            "the histories have no training request",
            found=f"{encoded.num_requests} requests of other splits",
            fix="Lower data.eval_fraction or data.warmup_fraction, or use a larger log.",
        )
    context = context or DistributedContext()
    return [
        RequestStream.training(
            encoded,
            length_sampler,
            token_budget=config.token_budget,
            max_requests=config.max_requests_per_batch,
            seed=seed,
            epoch=epoch,
            num_ranks=context.num_ranks,
            rank=context.rank,
        )
        for epoch in range(config.epochs)
    ]


def make_ranker(config: ModelConfig, encoder: Encoder, seed: int) -> Ranker:
    """Returns a ranker with initial weights drawn from `seed`; the global random state is left as
    it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Ranker(config, encoder.schema, encoder.sizes, torch.from_numpy(encoder.item_table))


def _num_steps(streams: Sequence[RequestStream], config: TrainConfig) -> int:
    """Returns the optimizer steps of the whole training."""
    num_batches = sum(map(len, streams))
    return min(num_batches, config.max_steps) if config.max_steps else num_batches


def _left(streams: Sequence[RequestStream], num_done: int) -> Iterator[RequestStream]:
    """Yields what is left of the streams after their first `num_done` batches: the sampler's
    position.
    """
    for stream in streams:
        if num_done < len(stream):
            yield dataclasses.replace(stream, first_batch=stream.first_batch + num_done)
        num_done = max(0, num_done - len(stream))


def _identity(
    encoded_dir: Path,
    model: ModelConfig,
    lengths: LengthConfig,
    train: TrainConfig,
    precision: str,
    seed: int,
) -> dict[str, Any]:
    """Returns all that decides what a training computes: data, configuration without what only
    changes its pace, seed.
    """
    decisive = {
        name: value
        for name, value in dataclasses.asdict(train).items()
        if name not in NON_SEMANTIC_KEYS
    }
    data = files.read_json(encoded_dir / SOURCE)["digest"]
    return {
        "data": data,
        "seed": seed,
        "model": dataclasses.asdict(model),
        "lengths": dataclasses.asdict(lengths),
        "train": {**decisive, "precision": precision},
    }


def _write(out_dir: Path, bundle: Bundle, curve: list[CurveRow]) -> str:
    """Returns the version of the bundle after writing it and the curve to `out_dir`, replaced at
    once.
    """
    with files.replacing(out_dir) as temporary:
        temporary.mkdir()
        version = bundle.write(temporary)
        _write_curve(temporary / "training_curve.csv", curve)
    return version


@contextlib.contextmanager
def _work_dir(out_dir: Path, context: DistributedContext) -> Iterator[Path]:
    """Yields `.<name>.work` beside `out_dir`, which no other training holds; afterwards only
    checkpoints stay in it, if there are any.

    The lead holds it for all ranks.

    Raises:
        ConfigError: another training holds it.
    """
    work = out_dir.parent / f".{out_dir.name}.work"
    if not context.is_rank_zero:
        yield work
        return
    work.mkdir(parents=True, exist_ok=True)
    with open(work / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another training is writing {out_dir}",
                fix="Wait for it, or choose another output.",
            ) from error
        try:
            yield work
        finally:
            shutil.rmtree(work / ENCODED, ignore_errors=True)
            if not any((work / CHECKPOINTS).glob("*/step-*")):
                shutil.rmtree(work, ignore_errors=True)


def _report(trainer: Trainer) -> TrainReport:
    """Returns what happened."""
    ranker, state = trainer.ranker, trainer.state
    in_tables = sum(
        module.weight.numel()
        for module in ranker.modules()
        if isinstance(module, nn.Embedding) and module.sparse
    )
    peak = trainer.peak_flops
    return TrainReport(
        version="",
        num_steps=state.step,
        num_requests=state.num_requests,
        num_events=state.num_events,
        num_targets=state.num_targets,
        seconds=state.seconds,
        total_seconds=state.seconds,
        events_per_second=state.num_events / state.seconds,
        targets_per_second=state.num_targets / state.seconds,
        mean_length=state.num_events / state.num_requests,
        first_loss=fmean(state.first_losses),
        final_loss=fmean(state.last_losses),
        memory_bytes=state.curve[-1].memory_bytes,
        mfu=state.flops / state.seconds / peak if peak else None,
        peak_flops=peak or None,
        num_parameters=sum(parameter.numel() for parameter in ranker.parameters()),
        num_table_parameters=in_tables,
        device=trainer.device.type,
        precision=trainer.precision,
    )


def _write_curve(path: Path, curve: list[CurveRow]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        names = [
            field.name
            for field in dataclasses.fields(CurveRow)
            if getattr(curve[0], field.name) is not None
        ]
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in curve)


@contextlib.contextmanager
def _tensorboard(directory: Path | None, step: int) -> Iterator[Listener]:
    """Yields what writes a row of the curve to TensorBoard's files in `directory`; nothing without
    one, or where it is not installed.

    Rows after `step`, which a killed process had written, are no longer shown.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        directory = None
    if directory is None:
        yield lambda row, num_steps: None
        return
    with SummaryWriter(str(directory), purge_step=step + 1) as writer:

        def write(row: CurveRow, num_steps: int) -> None:
            for name, value in dataclasses.asdict(row).items():
                if name != "step" and value is not None:
                    writer.add_scalar(f"train/{name}", value, row.step)
            writer.flush()

        yield write


@contextlib.contextmanager
def _reporting(on_progress: Listener | None) -> Iterator[Listener]:
    """Yields what is called with each row of the curve: the caller's function, a progress bar on a
    terminal, or the log.
    """
    if on_progress is not None:
        yield on_progress
    elif sys.stderr.isatty():
        with _progress_bar() as update:
            yield update
    else:
        yield _log_row


def _log_row(row: CurveRow, num_steps: int) -> None:
    log.info(
        "step %d/%d %s, %d events, %d targets, %.1f s",
        row.step,
        num_steps,
        _pace(row),
        row.events,
        row.targets,
        row.seconds,
    )


def _pace(row: CurveRow) -> str:
    """Returns loss, pace, memory, and on a GPU the share of its peak, as one line."""
    share = "" if row.mfu is None else f", MFU {row.mfu:.1%}"
    return (
        f"loss {row.loss:.4f}, {row.events_per_second:,.0f} events/s, {row.targets_per_second:,.0f} targets/s, "
        f"{row.memory_bytes / 2**30:.1f} GiB{share}"
    )


@contextlib.contextmanager
def _progress_bar() -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=10), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None)

        def update(row: CurveRow, num_steps: int) -> None:
            bar.update(
                task,
                total=num_steps,
                completed=row.step,
                description=f"step {row.step:,}/{num_steps:,} {_pace(row)}",
            )

        yield update
