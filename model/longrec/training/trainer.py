"""Train a ranker step by step, and save and restore the whole state of the training."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError, LongrecError
from longrec.nn.dropout import StepDropout
from longrec.nn.flops import TRAINING_FLOPS_FACTOR, stca_flops
from longrec.nn.ranker import Ranker
from longrec.training import losses, optimizers, resources, sharded_tables
from longrec.training.checkpoint import Checkpoint
from longrec.training.curve import NO_ROW, CurveRow, ValidationRow, best_of
from longrec.training.distributed import DistributedContext
from longrec.training.recipe import schedule
from longrec.training.recipe.attention_dropout import (
    start_attention_dropout,
    stop_attention_dropout,
)
from longrec.training.recipe.averaged_weights import AveragedWeights
from longrec.training.recipe.redrawn_ids import redraw_ids

BatchPair: TypeAlias = tuple[RequestBatch, RequestBatch]
"""A batch in host memory, and the same batch on the device."""
LOSS_LAG = 2
"""Number of steps that a CUDA device may run ahead of the losses that were read."""
MIN_SECONDS = 1e-9
MIN_TIMED_STEPS = 10
"""Steps whose time predicts the number of steps within `max_seconds`."""
RANKER_PREFIX = "ranker."
"""Start of the names of the ranker's tensors in a checkpoint."""
BEST_PREFIX = "best."
"""Start of the names of the best weights in a checkpoint."""
AVERAGE_PREFIX = "average."
"""Start of the names of the averaged weights in a checkpoint."""


@dataclasses.dataclass(slots=True)
class TrainState:
    """Progress of a training: the plain values of a checkpoint.

    Args:
        step: number of optimizer steps done; it determines the position in the data.
        num_requests: number of requests read.
        num_events: number of events read.
        num_targets: number of targets read.
        flops: FLOPs counted for them; 0 without a known peak.
        flops_at_last_row: value of `flops` at the last row of the curve.
        seconds: time of the training loop, over all starts.
        first_losses: losses of the first log_every steps.
        last_losses: losses of the last log_every steps.
        curve: rows so far.
        validations: measurements on the validation requests so far.
        validation_seconds: their time, which `seconds` leaves out.
    """

    step: int = 0
    num_requests: int = 0
    num_events: int = 0
    num_targets: int = 0
    flops: float = 0.0
    flops_at_last_row: float = 0.0
    seconds: float = 0.0
    first_losses: list[float] = dataclasses.field(default_factory=list)
    last_losses: list[float] = dataclasses.field(default_factory=list)
    curve: list[CurveRow] = dataclasses.field(default_factory=list)
    validations: list[ValidationRow] = dataclasses.field(default_factory=list)
    validation_seconds: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Return the state of its JSON form."""
        curve = [CurveRow(**row) for row in values["curve"]]
        validations = [ValidationRow(**row) for row in values.get("validations", ())]
        # Older checkpoints do not have it. The MFU of the next row is too low then.
        flops_at_last_row = values.get("flops_at_last_row", values["flops"])
        rows = {"curve": curve, "validations": validations}
        return cls(**{**values, **rows, "flops_at_last_row": flops_at_last_row})


@dataclasses.dataclass(frozen=True, slots=True)
class _PendingStep:
    """A step with a loss that was not read yet.

    Args:
        batches: its batches in host memory.
        values: [loss of each batch, gradient norm] in host memory, valid once `ready` has happened.
        ready: event of the copy to host memory; None on a CPU.
        scale: share of the peak learning rate.
    """

    batches: Sequence[RequestBatch]
    values: Tensor
    ready: torch.cuda.Event | None
    scale: float


class Trainer:
    """Trains a ranker step by step.

    Args:
        ranker: the ranker with its initial weights, on the device of the training.
        config: settings of the training.
        num_steps: number of steps of the whole training, for the schedule.
        precision: `float32` or `bfloat16`.
        failed_batch: file for the batch of a loss that is not finite.
        seed: of the training.
        epoch_starts: number of steps done at the start of each epoch after the first.
        context: the processes that train together; None for this one alone.

    Attributes:
        best_weights: weights of the best validation, in host memory; on rank zero only.
        is_out_of_time: whether `max_seconds` ended the training.
    """

    def __init__(
        self,
        ranker: Ranker,
        config: TrainConfig,
        *,
        num_steps: int,
        precision: str,
        failed_batch: Path,
        seed: int = 0,
        epoch_starts: Collection[int] = (),
        context: DistributedContext | None = None,
    ) -> None:
        self.ranker = ranker
        self.seed = seed
        self.epoch_starts = frozenset(epoch_starts)
        self.config = config
        self.num_steps = num_steps
        self.precision = precision
        self.failed_batch = failed_batch
        self.device = next(ranker.parameters()).device
        self.context = context or DistributedContext()
        self.sharded: sharded_tables.ShardedTables | None = None
        if config.embedding_sharding == "row_wise":
            self.sharded = sharded_tables.shard(
                ranker,
                config,
                self.context,
            )
        self.optimizers = optimizers.build(ranker, config, self.sharded)
        self.averages = AveragedWeights(ranker, config.ema_decay) if config.ema_decay else None
        self._prepare_dropout()
        self.forward: nn.Module = self.context.wrap(ranker)
        self.state = TrainState()
        self.peak_flops = 0.0
        # `stca_flops` counts this kind only.
        if ranker.config.kind == "stca":
            self.peak_flops = resources.measure_peak_flops(self.device, precision)
        self.is_out_of_time = False
        self.best_weights: dict[str, Tensor] | None = None
        self._pending: collections.deque[_PendingStep] = collections.deque()
        self._plateau_scale = 1.0
        self._last_norm = 0.0
        self._last_learning_rate = 0.0
        self._step_start = time.perf_counter()

    def _prepare_dropout(self) -> None:
        config = self.config
        shares = (
            config.token_dropout,
            config.head_dropout,
            config.id_dropout,
            config.attention_dropout,
        )
        self.ranker.step_dropout = None
        if not any(shares):
            return
        self.ranker.step_dropout = StepDropout(
            *shares, seed=self.seed, rank=self.context.rank, device=self.device
        )
        if config.id_dropout:
            self.ranker.allow_hidden_ids()
        if config.attention_dropout:
            start_attention_dropout(self.ranker, self.ranker.step_dropout, self.device)

    @property
    def num_steps_done(self) -> int:
        """Number of steps done, with those whose unread loss is not counted in the state yet."""
        return self.state.step + len(self._pending)

    def start(self) -> None:
        """Start the clock and put the ranker into training mode."""
        self.ranker.train()
        self._step_start = time.perf_counter()

    def step(self, pairs: Sequence[BatchPair]) -> list[CurveRow]:
        """Update the weights once; return the rows of the curve that became complete.

        Several batches have the gradients of one batch with all their requests. On a CUDA device
        this waits for nothing: the loss is read LOSS_LAG steps later.

        Args:
            pairs: the batches of the step, each in host memory and on the device.

        Raises:
            LongrecError: a loss or gradient is not finite; its batch is saved.
            ConfigError: memory ran out.
        """
        step = self.num_steps_done
        scale = schedule.learning_rate_scale(
            step,
            num_steps=self._expected_steps(),
            config=self.config,
            plateau_scale=self._plateau_scale,
        )
        if self.config.redraw_ids and step in self.epoch_starts:
            self._redraw_ids(step)
        if self.ranker.step_dropout is not None:
            self.ranker.step_dropout.start_step(step)
        values, ready = _copy_to_host(self._update(pairs, scale))
        host_batches = [host_batch for host_batch, _ in pairs]
        self._pending.append(_PendingStep(host_batches, values, ready, scale))
        max_pending = LOSS_LAG if self.device.type == "cuda" else 0
        return self.flush(max_pending)

    def _update(self, pairs: Sequence[BatchPair], scale: float) -> Tensor:
        """Update the weights; return [part of each batch in the loss, gradient norm]."""
        self.optimizers.start(scale)
        batch_losses = self._add_gradients(pairs)
        _, largest = max(pairs, key=lambda pair: pair[0].num_events)
        with resources.explain_out_of_memory(_step_name(largest), _step_memory_fix(largest)):
            self.context.average_sparse_gradients(self.optimizers.table_weights)
            norm = self.optimizers.step(scale)
            if self.averages is not None:
                self.averages.update(self.num_steps_done + 1)
            own_values = torch.stack([*batch_losses, norm.float()])
            return self.context.mean(own_values)

    def _redraw_ids(self, step: int) -> None:
        """Draw the id tables anew, and start their averages from there."""
        redraw_ids(self.ranker, self.optimizers, self.seed, step)
        if self.averages is not None:
            self.averages.restart(self.optimizers.table_weights)

    def _add_gradients(self, pairs: Sequence[BatchPair]) -> list[Tensor]:
        """Add up the gradients of the batches of a step; return the part of each in its loss.

        Dense gradients are exchanged between ranks in the last backward pass.
        """
        shares = _shares([host_batch for host_batch, _ in pairs], self.config)
        batch_losses = []
        for number, ((_, batch), share) in enumerate(zip(pairs, shares, strict=True), 1):
            exchange: AbstractContextManager[Any] = contextlib.nullcontext()
            if number < len(pairs):
                exchange = self.context.without_exchange(self.forward)
            memory = resources.explain_out_of_memory(_step_name(batch), _step_memory_fix(batch))
            with memory, exchange:
                loss = self.loss(batch)
                # A step of one batch costs no further kernel.
                loss = loss if share == 1 else loss * share
                torch.autograd.backward(loss)
            batch_losses.append(loss.detach().float())
        return batch_losses

    def loss(self, batch: RequestBatch) -> Tensor:
        """Return the loss of a batch on the device.

        With several ranks, the mean over ranks is the loss of the whole batch.
        """
        with resources.autocast(self.device, self.precision):
            output = self.forward(batch)
        loss = losses.total(output, batch, self.config)
        weight = self.context.loss_weight(batch, self.config)
        # Without several ranks, the loss stays as it is and costs no further kernel.
        return loss if weight == 1 else loss * weight

    def flush(self, max_pending: int = 0) -> list[CurveRow]:
        """Read the losses of all but the last steps; return the rows that became complete.

        Args:
            max_pending: number of steps at the end with a loss that may stay unread.

        Raises:
            LongrecError: a loss or gradient is not finite; its batch is saved.
        """
        rows = []
        while len(self._pending) > max_pending:
            done = self._pending.popleft()
            if done.ready is not None:
                done.ready.synchronize()
            *batch_losses, norm = done.values.tolist()
            loss = sum(batch_losses)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._not_finite(done.batches, batch_losses, norm)
            self._add_step(done.batches, loss)
            self._last_norm = norm
            self._last_learning_rate = self.config.learning_rate * done.scale
            is_last = self.state.step == self.num_steps
            if is_last or self.state.step % self.config.log_every == 0:
                rows.append(self._add_row())
        return rows

    def close_row(self) -> list[CurveRow]:
        """Return the row of the steps since the last row, if there are any; call `flush` before."""
        curve = self.state.curve
        if curve and curve[-1].step == self.state.step:
            return []
        return [self._add_row()]

    def current_row(self) -> CurveRow:
        """Return the steps since the last row as a row that does not enter the curve."""
        return self._row()

    def add_validation(self, validation: ValidationRow) -> CurveRow:
        """Add a validation of the last step and keep the weights if they are the best ones.

        Every rank must call this together, after `close_row`.

        Returns:
            The last row of the curve, now with the metrics.
        """
        state = self.state
        state.validations.append(validation)
        state.validation_seconds += validation.seconds
        self._plateau_scale = schedule.plateau_scale(state.validations, self.config)
        state.curve[-1] = dataclasses.replace(
            state.curve[-1],
            validation_auc=validation.auc,
            validation_logloss=validation.logloss,
        )
        if best_of(state.validations) == validation:
            with self.evaluated_weights():
                weights = self.ranker.state_dict()  # gathers tables that are spread over the ranks
                if self.context.is_rank_zero:
                    self.best_weights = _host_copies(weights)
        self._step_start = time.perf_counter()
        return state.curve[-1]

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Let the ranker have the weights that are validated and packaged within the block."""
        if self.averages is None:
            return contextlib.nullcontext()
        return self.averages.applied()

    def is_time_up(self) -> bool:
        """Return whether a further step and a last validation might pass `max_seconds`."""
        if not self.config.max_seconds:
            return False
        state = self.state
        now = time.perf_counter() - self._step_start
        step_seconds = state.seconds / max(state.step, 1)
        last_validation = state.validations[-1].seconds if state.validations else 0.0
        needed = state.seconds + state.validation_seconds + now + step_seconds + last_validation
        return needed >= self.config.max_seconds

    def _expected_steps(self) -> int:
        """Return the number of steps that the time is expected to suffice for, at most all."""
        state = self.state
        if not self.config.max_seconds or state.step < MIN_TIMED_STEPS:
            return self.num_steps
        seconds = self.context.max(math.ceil(state.seconds + state.validation_seconds))
        affordable = state.step * self.config.max_seconds / max(seconds, 1)
        return min(self.num_steps, max(int(affordable), self.num_steps_done + 1))

    def finish(self) -> None:
        """Put the ranker into evaluation mode: on rank zero whole, with the best weights."""
        if self.sharded is not None:
            self.sharded.restore_tables()
        if self.best_weights is not None:
            self.ranker.load_state_dict(self.best_weights)
        elif self.averages is not None:
            self.averages.apply()
        self.ranker.step_dropout = None
        self.ranker.table_with_hidden_ids = None
        stop_attention_dropout(self.ranker)
        self.ranker.eval()

    def checkpoint(self) -> Checkpoint:
        """Return the state after the last step, as views; call `flush` before.

        Every rank must call this together; the result of rank zero is whole.
        """
        tensors = {}
        for name, tensor in self.ranker.state_dict().items():
            tensors[f"{RANKER_PREFIX}{name}"] = tensor
        tensors |= self.optimizers.tensors()
        for name, tensor in (self.best_weights or {}).items():
            tensors[f"{BEST_PREFIX}{name}"] = tensor
        if self.averages is not None:
            for name, tensor in self.averages.tensors().items():
                tensors[f"{AVERAGE_PREFIX}{name}"] = tensor
        values = dataclasses.asdict(self.state)
        return Checkpoint(self.state.step, tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state of a checkpoint.

        Raises:
            DataError: its tensors do not fit, for example those of another version of longrec.
        """
        best_weights = _with_prefix(checkpoint.tensors, BEST_PREFIX)
        if best_weights and self.context.is_rank_zero:
            self.best_weights = best_weights
        try:
            self.ranker.load_state_dict(_with_prefix(checkpoint.tensors, RANKER_PREFIX))
            self.optimizers.load(checkpoint.tensors)
            if self.averages is not None:
                self.averages.load(_with_prefix(checkpoint.tensors, AVERAGE_PREFIX))
            self.state = TrainState.from_dict(checkpoint.values)
            self._plateau_scale = schedule.plateau_scale(self.state.validations, self.config)
        except (RuntimeError, TypeError, KeyError, DataError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise DataError(
                "a checkpoint does not fit this ranker",
                found=first_line,
                fix="Another version of longrec wrote it: delete it.",
            ) from error

    def _add_step(
        self,
        batches: Sequence[RequestBatch],
        loss: float,
    ) -> None:
        """Add a step that ended now to the state."""
        state = self.state
        now = time.perf_counter()
        state.seconds += now - self._step_start
        self._step_start = now
        state.step += 1
        for batch in batches:
            whole = batch.global_batch or batch
            state.num_requests += whole.num_requests
            state.num_events += whole.num_events
            state.num_targets += whole.num_targets
            if self.peak_flops:
                # MFU is per device: only this rank's part of the batch counts.
                state.flops += self._step_flops(batch)
        if len(state.first_losses) < self.config.log_every:
            state.first_losses.append(loss)
        state.last_losses.append(loss)
        state.last_losses = state.last_losses[-self.config.log_every :]

    def _step_flops(self, batch: RequestBatch) -> float:
        """Return the FLOPs of a step on a batch."""
        if batch.host_counts is None:
            # A batch for a CPU, which has no known peak.
            return 0.0
        config = self.ranker.config
        forward_flops = 0.0
        for num_events, num_targets in zip(*batch.host_counts, strict=True):
            forward_flops += stca_flops(config, num_events, num_targets).total
        return TRAINING_FLOPS_FACTOR * forward_flops

    def _add_row(self) -> CurveRow:
        """Return the next row of the curve, after adding it to the state."""
        row = self._row()
        self.state.flops_at_last_row = self.state.flops
        self.state.curve.append(row)
        return row

    def _row(self) -> CurveRow:
        """Return the row of the steps since the last one."""
        state = self.state
        previous = state.curve[-1] if state.curve else NO_ROW
        num_steps = state.step - previous.step
        num_events = state.num_events - previous.events
        num_targets = state.num_targets - previous.targets
        seconds = max(state.seconds - previous.seconds, MIN_SECONDS)
        mfu = None
        if self.peak_flops:
            flops = state.flops - state.flops_at_last_row
            mfu = flops / seconds / self.peak_flops
        return CurveRow(
            step=state.step,
            loss=fmean(state.last_losses[-num_steps:]),
            learning_rate=self._last_learning_rate,
            gradient_norm=self._last_norm,
            events=state.num_events,
            targets=state.num_targets,
            seconds=state.seconds,
            events_per_second=num_events / seconds,
            targets_per_second=num_targets / seconds,
            memory_bytes=resources.peak_memory_bytes(self.device),
            mfu=mfu,
            validation_auc=previous.validation_auc,
            validation_logloss=previous.validation_logloss,
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float:
        """Return the estimated time to the end, with validations as often as so far."""
        state = self.state
        seconds = state.seconds + state.validation_seconds
        remaining = seconds / state.step * (self.num_steps - state.step)
        if self.config.max_seconds:
            remaining = min(remaining, max(self.config.max_seconds - seconds, 0.0))
        return remaining

    def _not_finite(
        self,
        batches: Sequence[RequestBatch],
        batch_losses: Sequence[float],
        norm: float,
    ) -> LongrecError:
        """Return the error for a loss that is not finite, after saving its batch.

        If all losses are finite, any batch of the step may be the cause: all are saved.
        """
        what = f"the gradient norm is {norm}"
        causes = list(batches)
        for batch, loss in zip(batches, batch_losses, strict=True):
            if not math.isfinite(loss):
                what = f"the training loss is {loss}"
                causes = [batch]
                break
        for number, batch in enumerate(causes, 1):
            path = self.failed_batch
            _save_batch(batch, path if number == 1 else path.with_suffix(f".{number}.safetensors"))
        return LongrecError(
            f"{what} at step {self.state.step + 1}",
            expected="a finite number",
            fix=(
                "Lower train.learning_rate or set train.precision=float32; the batch is in"
                f" {self.failed_batch}."
            ),
        )


def _shares(batches: Sequence[RequestBatch], config: TrainConfig) -> list[float]:
    """Return the weight of each batch's loss in the loss of all of them together."""
    if len(batches) == 1:
        return [1.0]
    wholes = [batch.global_batch or batch for batch in batches]
    if config.loss == "request":
        counts = [whole.num_requests for whole in wholes]
    else:
        counts = [whole.num_targets for whole in wholes]
    return [count / sum(counts) for count in counts]


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in host memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _save_batch(batch: RequestBatch, path: Path) -> None:
    """Write the tensors of a batch to a safetensors file."""
    from safetensors.torch import save_file

    tensors = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return a copy in host memory, and the event of its arrival from a CUDA device."""
    if not values.is_cuda:
        return values, None
    host_values = torch.empty(
        values.shape,
        dtype=values.dtype,
        pin_memory=True,
    )
    host_values.copy_(values, non_blocking=True)
    stream = torch.cuda.current_stream(values.device)
    return host_values, stream.record_event()


def _step_name(batch: RequestBatch) -> str:
    """Return the name of a step for a message about memory."""
    return (
        f"a training step of {batch.num_requests} requests, {batch.num_events} events and"
        f" {batch.num_targets} targets"
    )


def _step_memory_fix(batch: RequestBatch) -> str:
    """Return advice on how to make a step smaller."""
    key = "train.token_budget"
    if batch.num_requests == 1:
        key = "lengths.maximum (this batch is one request)"
    return f"Lower {key}, or set train.recompute=true."
