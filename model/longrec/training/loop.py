"""The training loop: encoded histories in, a trained ranker and its curve out."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from longrec.config import LengthConfig, ModelConfig, TrainConfig
from longrec.data.encoder import Encoder
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.item_rates import ItemRates
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.prefetch import prefetch, prefetch_to_device
from longrec.data.loading.request_stream import RequestStream
from longrec.errors import DataError, Stopped
from longrec.nn.item_rates import item_values
from longrec.nn.ranker import Ranker
from longrec.nn.rounding import ceil_div
from longrec.training import progress, resources
from longrec.training.checkpoint import Checkpoint, Checkpoints
from longrec.training.curve import CurveRow, Listener, num_without_improvement
from longrec.training.distributed import DistributedContext
from longrec.training.recipe.schedule import require_validations
from longrec.training.trainer import Trainer
from longrec.training.validation import Validator

FAILED_BATCH_NAME = "failed_batch"
RANKER_MEMORY_FIX = "Lower model.width, model.id_dim, or max_size of the schema's ids."
"""Advice for a ranker that does not fit into memory."""
log = logging.getLogger(__name__)


def fit(
    ranker: Ranker,
    encoded: EncodedHistories,
    lengths: LengthConfig,
    train: TrainConfig,
    *,
    seed: int,
    out_dir: Path,
    checkpoints: Checkpoints | None = None,
    log_dir: Path | None = None,
    on_progress: Listener | None = None,
    context: DistributedContext | None = None,
) -> Trainer:
    """Train `ranker` in place; return its trainer, with the ranker in evaluation mode.

    Args:
        ranker: result of `make_ranker`, on the device of the configuration.
        encoded: the histories.
        lengths: the training length distribution.
        train: settings of the training.
        seed: seed of the request order and of the drawn lengths.
        out_dir: folder for the batch of a loss that is not finite.
        checkpoints: checkpoints to resume from and to write; None for none.
        log_dir: folder of TensorBoard's files; None for none.
        on_progress: see longrec.training.train.train.
        context: the processes that train together; None for this one alone.

    Raises:
        ConfigError: `train.recompute` with a model that cannot; or memory ran out.
        DataError: the histories were encoded for another ranker; a checkpoint is of another
            training, or does not fit.
        LongrecError: the loss is not finite.
    """
    context = context or DistributedContext()
    ignore_sparse_warning()
    _, precision = resources.choose_device(train)
    check_indices(ranker, encoded)
    if train.recompute:
        ranker.enable_recompute()
    length_sampler = LengthSampler(lengths, seed)
    streams = training_streams(
        set_item_rates(ranker, encoded),
        length_sampler,
        train,
        seed=seed,
        context=context,
    )
    validator = Validator.of(
        encoded,
        train,
        length=lengths.maximum,
        seed=seed,
    )
    require_validations(train, validator is not None)
    with resources.explain_out_of_memory("the optimizers' state", RANKER_MEMORY_FIX):
        trainer = Trainer(
            ranker,
            train,
            num_steps=_num_steps(streams, train),
            precision=precision,
            seed=seed,
            failed_batch=out_dir / _failed_batch_name(context),
            epoch_starts=_epoch_ends(streams, train)[:-1],
            context=context,
        )
        if checkpoints is not None:
            resume(trainer, checkpoints)
    if not context.is_rank_zero:
        on_progress = progress.ignore_row
    if not context.is_rank_zero or not train.tensorboard:
        log_dir = None
    first_step = trainer.state.step
    with (
        progress.progress_reporter(on_progress) as reporter,
        progress.tensorboard_reporter(log_dir, first_step) as tensorboard,
    ):
        run_steps(trainer, streams, checkpoints, (reporter, tensorboard), validator)
    return trainer


def make_ranker(config: ModelConfig, encoder: Encoder, seed: int) -> Ranker:
    """Return a ranker with initial weights drawn from `seed`.

    The global random state does not change.
    """
    item_table = torch.from_numpy(encoder.item_table)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Ranker(
            config,
            encoder.schema,
            encoder.sizes,
            item_table,
        )


def training_streams(
    encoded: EncodedHistories,
    length_sampler: LengthSampler,
    config: TrainConfig,
    *,
    seed: int,
    context: DistributedContext | None = None,
) -> list[RequestStream]:
    """Return one stream of batches per epoch; with several ranks, of this rank's parts.

    Raises:
        DataError: there is no training request.
    """
    if not len(encoded.requests("train")):
        raise DataError(
            "the histories have no training request",
            found=f"{encoded.num_requests} requests of other splits",
            fix=(
                "Lower data.eval_fraction, data.validation_fraction or data.warmup_fraction, or use"
                " a larger log."
            ),
        )
    context = context or DistributedContext()
    return [
        RequestStream.for_training(
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


def set_item_rates(ranker: Ranker, encoded: EncodedHistories) -> EncodedHistories:
    """Give the ranker the item rates of the training; return the histories with those of targets.

    Nothing changes for a ranker without `model.item_rates`.
    """
    if ranker.item_rates is None:
        return encoded
    table = ranker.item_table.cpu()
    values = item_values(torch.arange(len(table)), table).numpy()
    rates = ItemRates.compute(encoded, values, ranker.item_rates.num_values)
    ranker.item_rates.of_values.copy_(torch.from_numpy(rates.of_values))
    return dataclasses.replace(encoded, target_rates=rates.of_targets)


def resume(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Restore the newest checkpoint, if there is one.

    Raises:
        DataError: the checkpoint is of another training, or does not fit.
    """
    is_rank_zero = trainer.context.is_rank_zero
    if is_rank_zero:
        checkpoints.remove_unfinished()
    checkpoint = trainer.context.broadcast_checkpoint(checkpoints.latest)
    if checkpoint is None:
        return
    trainer.restore(checkpoint)
    # A warning: whoever expected a new training must see it.
    log.log(
        logging.WARNING if is_rank_zero else logging.DEBUG,
        "resuming after step %d of %d, from %s",
        checkpoint.step,
        trainer.num_steps,
        checkpoints.folder,
    )


def run_steps(
    trainer: Trainer,
    streams: Sequence[RequestStream],
    checkpoints: Checkpoints | None,
    reporters: Sequence[progress.Reporter],
    validator: Validator | None = None,
) -> None:
    """Train from the trainer's step to the end, and keep the best weights.

    It ends after the last step, when validations stop to improve, or when the time is up. All ranks
    end after the same step.

    Raises:
        Stopped: a rank got SIGTERM, for example from Kubernetes before it removes a node. All
            ranks end after the same step, with a checkpoint.
    """
    num_done = trainer.state.step
    schedule = _Schedule.of(streams, trainer, has_validation=validator is not None)
    remaining = _remaining(streams, num_done, trainer.config)
    batches = prefetch(
        remaining,
        num_workers=trainer.config.num_workers,
        pin=trainer.device.type == "cuda",
    )
    sizes = _batches_per_step(remaining, trainer.config)[: trainer.num_steps - num_done]
    trainer.start()
    with contextlib.closing(batches), _stop_on_sigterm() as stop_requested:
        if validator is not None and _lacks_validation(trainer, schedule):
            # It was stopped between the step and its validation.
            trainer.close_row()
            trainer.add_validation(validator.measure(trainer))
        pairs = prefetch_to_device(itertools.islice(batches, sum(sizes)), trainer.device)
        for step, size in enumerate(sizes, num_done + 1):
            if _has_converged(trainer):
                break
            rows = trainer.step([next(pairs) for _ in range(size)])
            stop = _agree_on_stop(trainer, stop_requested)
            rows += _end_step(trainer, schedule, stop, validator)
            _report(trainer, rows, reporters)
            is_checkpoint_due = stop is _Stop.SIGTERM or schedule.is_checkpoint_due(step)
            if is_checkpoint_due and checkpoints is not None:
                _save(checkpoints, trainer)
            if stop is _Stop.SIGTERM:
                raise _stopped(trainer, step, checkpoints)
            if stop is _Stop.TIME:
                trainer.is_out_of_time = True
                break
    trainer.finish()


def ignore_sparse_warning() -> None:
    """Silence torch's warning that it does not validate sparse tensors.

    Some versions of torch warn once per process although longrec passes `check_invariants=False`.
    Its sparse gradients have the indices of their batch, which `check_indices` has checked.
    """
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")


def check_indices(ranker: Ranker, encoded: EncodedHistories) -> None:
    """Check that every index of the histories is within its table of the ranker.

    This reads all indices once.

    Raises:
        DataError: an index is outside. It would read another feature's rows, or crash a GPU.
    """
    num_items = ranker.item_table.shape[0]
    for name in ("event_items", "target_items"):
        rows = getattr(encoded, name)
        if not len(rows):
            continue
        lowest = rows.min()
        highest = rows.max()
        if lowest < 0 or highest >= num_items:
            raise DataError(
                f"{name} of the histories are outside the item table",
                found=f"{lowest}..{highest}",
                expected=f"0..{num_items - 1}",
                fix="Encode with the encoder that the model was built with.",
            )
    tables = {"event_features": ranker.actions, "user_features": ranker.users}
    for name, table in tables.items():
        indices = getattr(encoded, name)
        if len(indices):
            bounds = np.stack([indices.min(0), indices.max(0)])
            table.check(torch.from_numpy(bounds), f"{name} of the histories")


class _Stop(enum.IntEnum):
    """Why a training ends before its last step; of several ranks, the largest value counts."""

    NO = 0
    TIME = 1
    SIGTERM = 2


@dataclasses.dataclass(frozen=True, slots=True)
class _Schedule:
    """What is due after which step.

    Args:
        num_steps: number of steps of the whole training.
        epoch_ends: last step of each epoch.
        checkpoint_every: steps between checkpoints, besides epoch ends; 0 for no checkpoint at all.
        validate_every: steps between validations, besides epoch ends; 0 for epoch ends alone.
        has_validation: whether there are validation requests.
    """

    num_steps: int
    epoch_ends: frozenset[int]
    checkpoint_every: int
    validate_every: int
    has_validation: bool

    @classmethod
    def of(
        cls,
        streams: Sequence[RequestStream],
        trainer: Trainer,
        *,
        has_validation: bool,
    ) -> _Schedule:
        return cls(
            trainer.num_steps,
            frozenset(_epoch_ends(streams, trainer.config)),
            trainer.config.checkpoint_every,
            trainer.config.validate_every,
            has_validation,
        )

    def is_checkpoint_due(self, step: int) -> bool:
        if not self.checkpoint_every:
            return False
        return step % self.checkpoint_every == 0 or step in self.epoch_ends

    def is_validation_due(self, step: int) -> bool:
        if not self.has_validation or not step:
            return False
        if step in self.epoch_ends or step == self.num_steps:
            return True
        return bool(self.validate_every) and step % self.validate_every == 0


def _agree_on_stop(trainer: Trainer, stop_requested: threading.Event) -> _Stop:
    """Return why all ranks end after this step; NO after the last one.

    It costs one small message in host memory.
    """
    stop = _Stop.NO
    if stop_requested.is_set():
        stop = _Stop.SIGTERM
    elif trainer.is_time_up():
        stop = _Stop.TIME
    agreed = _Stop(trainer.context.max(stop))
    return _Stop.NO if trainer.num_steps_done == trainer.num_steps else agreed


def _end_step(
    trainer: Trainer,
    schedule: _Schedule,
    stop: _Stop,
    validator: Validator | None,
) -> list[CurveRow]:
    """Validate if that is due; return the rows that became complete."""
    step = trainer.num_steps_done
    # After SIGTERM there is no time: the resumed training validates first.
    is_validation_due = schedule.is_validation_due(step) and stop is not _Stop.SIGTERM
    is_row_due = is_validation_due or stop is _Stop.TIME
    is_flush_due = is_row_due or stop is _Stop.SIGTERM or step == trainer.num_steps
    if not is_flush_due and not schedule.is_checkpoint_due(step):
        return []
    rows = trainer.flush()
    if is_row_due:
        rows += trainer.close_row()
    if is_row_due and validator is not None:
        validated = trainer.add_validation(validator.measure(trainer))
        rows = [*(row for row in rows if row.step != validated.step), validated]
    return rows


def _lacks_validation(trainer: Trainer, schedule: _Schedule) -> bool:
    """Return whether the last step should have been validated and was not."""
    state = trainer.state
    last_validated = state.validations[-1].step if state.validations else 0
    return schedule.is_validation_due(state.step) and last_validated < state.step


def _has_converged(trainer: Trainer) -> bool:
    """Return whether `patience` validations have brought no improvement."""
    patience = trainer.config.patience
    return bool(patience) and num_without_improvement(trainer.state.validations) >= patience


def _report(
    trainer: Trainer,
    rows: Sequence[CurveRow],
    reporters: Sequence[progress.Reporter],
) -> None:
    """Show rows; without any, let each reporter ask for the current one."""
    for reporter in reporters:
        for row in rows:
            reporter.show(row, trainer.num_steps)
        if not rows and trainer.state.step:
            reporter.tick(trainer.current_row, trainer.num_steps)


def _stopped(
    trainer: Trainer,
    step: int,
    checkpoints: Checkpoints | None,
) -> Stopped:
    """Return the error of a training that SIGTERM stopped."""
    fix = ""
    if checkpoints is not None:
        fix = "Run the same command again: the training resumes from there."
    return Stopped(
        "SIGTERM stopped the training",
        found=f"step {step} of {trainer.num_steps}",
        fix=fix,
    )


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets instead of ending the process.

    Only the main thread can handle signals; in another one the event is never set.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop_requested.set()

    previous = signal.signal(signal.SIGTERM, request_stop)
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, previous)


def _save(checkpoints: Checkpoints, trainer: Trainer) -> None:
    """Write a checkpoint on rank zero; the others wait for it."""
    checkpoint = trainer.checkpoint()
    trainer.context.rank_zero_first(lambda: _try_to_write(checkpoints, checkpoint), lambda: None)


def _try_to_write(checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; log a warning if that fails, for example on a full disk."""
    from safetensors import SafetensorError

    try:
        checkpoints.save(checkpoint)
    except (DataError, OSError, SafetensorError) as error:
        log.warning(
            "the checkpoint of step %d could not be written, the training goes on without it: %s",
            checkpoint.step,
            error,
        )


def _num_steps(streams: Sequence[RequestStream], config: TrainConfig) -> int:
    """Return the number of optimizer steps of the whole training."""
    num_steps = len(_batches_per_step(streams, config))
    return min(num_steps, config.max_steps) if config.max_steps else num_steps


def _epoch_ends(streams: Sequence[RequestStream], config: TrainConfig) -> list[int]:
    """Return the number of the last step of each epoch."""
    return list(itertools.accumulate(_steps_of_epoch(stream, config) for stream in streams))


def _steps_of_epoch(stream: RequestStream, config: TrainConfig) -> int:
    return ceil_div(len(stream), config.accumulate_steps)


def _batches_per_step(streams: Sequence[RequestStream], config: TrainConfig) -> list[int]:
    """Return the number of batches of each step; the last step of an epoch may have fewer."""
    sizes = []
    for stream in streams:
        for first in range(0, len(stream), config.accumulate_steps):
            sizes.append(min(config.accumulate_steps, len(stream) - first))
    return sizes


def _remaining(
    streams: Sequence[RequestStream],
    num_done: int,
    config: TrainConfig,
) -> list[RequestStream]:
    """Return the streams without the batches of their first `num_done` steps."""
    remaining = []
    for stream in streams:
        num_steps = _steps_of_epoch(stream, config)
        if num_done < num_steps:
            first_batch = stream.first_batch + num_done * config.accumulate_steps
            remaining.append(dataclasses.replace(stream, first_batch=first_batch))
        num_done = max(0, num_done - num_steps)
    return remaining


def _failed_batch_name(context: DistributedContext) -> str:
    """Return the file name for the batch of a loss that is not finite, one per rank."""
    suffix = "" if context.is_rank_zero else f".rank{context.rank}"
    return f"{FAILED_BATCH_NAME}{suffix}.safetensors"
