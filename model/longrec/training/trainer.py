"""Train a ranker step by step, and save and restore the whole state of the training."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError, LongrecError
from longrec.nn.flops import TRAINING_FLOPS_FACTOR, stca_flops
from longrec.nn.ranker import Ranker
from longrec.training import losses, optimizers, resources, sharded_tables
from longrec.training.checkpoint import Checkpoint
from longrec.training.curve import NO_ROW, CurveRow
from longrec.training.distributed import DistributedContext

LOSS_LAG = 2
"""Number of steps that a CUDA device may run ahead of the losses that were read."""
MIN_SECONDS = 1e-9
RANKER_PREFIX = "ranker."
"""Start of the names of the ranker's tensors in a checkpoint."""


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Return the state of its JSON form."""
        curve = [CurveRow(**row) for row in values["curve"]]
        # Older checkpoints do not have it. The MFU of the next row is too low then.
        flops_at_last_row = values.get("flops_at_last_row", values["flops"])
        return cls(**{**values, "curve": curve, "flops_at_last_row": flops_at_last_row})


@dataclasses.dataclass(frozen=True, slots=True)
class _PendingStep:
    """A step with a loss that was not read yet.

    Args:
        batch: its batch in host memory.
        values: [loss, gradient norm] in host memory, valid once `ready` has happened.
        ready: event of the copy to host memory; None on a CPU.
        scale: share of the peak learning rate.
    """

    batch: RequestBatch
    values: Tensor
    ready: torch.cuda.Event | None
    scale: float


class Trainer:
    """Trains a ranker batch by batch.

    Args:
        ranker: the ranker with its initial weights, on the device of the training.
        config: settings of the training.
        num_steps: number of steps of the whole training, for the schedule.
        precision: `float32` or `bfloat16`.
        failed_batch: file for the batch of a loss that is not finite.
        context: the processes that train together; None for this one alone.
    """

    def __init__(
        self,
        ranker: Ranker,
        config: TrainConfig,
        *,
        num_steps: int,
        precision: str,
        failed_batch: Path,
        context: DistributedContext | None = None,
    ) -> None:
        self.ranker = ranker
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
        self.forward: nn.Module = self.context.wrap(ranker)
        self.state = TrainState()
        self.peak_flops = 0.0
        # `stca_flops` counts this kind only.
        if ranker.config.kind == "stca":
            self.peak_flops = resources.measure_peak_flops(self.device, precision)
        self._pending: collections.deque[_PendingStep] = collections.deque()
        self._step_start = time.perf_counter()

    def start(self) -> None:
        """Start the clock and put the ranker into training mode."""
        self.ranker.train()
        self._step_start = time.perf_counter()

    def step(
        self,
        host_batch: RequestBatch,
        batch: RequestBatch,
    ) -> list[CurveRow]:
        """Update the weights by one batch; return the rows of the curve that became complete.

        On a CUDA device this waits for nothing: the loss is read LOSS_LAG steps later.

        Args:
            host_batch: the batch in host memory.
            batch: the same batch on the device.

        Raises:
            LongrecError: a loss or gradient is not finite; its batch is saved.
            ConfigError: memory ran out.
        """
        # Steps with an unread loss are done, but not counted in the state yet.
        num_done = self.state.step + len(self._pending)
        scale = optimizers.learning_rate_scale(
            num_done,
            num_steps=self.num_steps,
            warmup_fraction=self.config.warmup_fraction,
        )
        with resources.explain_out_of_memory(_step_name(batch), _step_memory_fix(batch)):
            self.optimizers.start(scale)
            loss = self.loss(batch)
            torch.autograd.backward(loss)
            tables = self.optimizers.table_weights
            self.context.average_sparse_gradients(tables)
            norm = self.optimizers.step(scale)
            own_values = torch.stack([loss.detach().float(), norm.float()])
            values = self.context.mean(own_values)
        host_values, ready = _copy_to_host(values)
        self._pending.append(
            _PendingStep(
                host_batch,
                host_values,
                ready,
                scale,
            )
        )
        max_pending = LOSS_LAG if self.device.type == "cuda" else 0
        return self.flush(max_pending)

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
            loss, norm = done.values.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._not_finite(done.batch, loss, norm)
            self._add_step(done.batch, loss)
            is_last = self.state.step == self.num_steps
            if is_last or self.state.step % self.config.log_every == 0:
                learning_rate = self.config.learning_rate * done.scale
                rows.append(self._add_row(norm, learning_rate))
        return rows

    def finish(self) -> None:
        """Put the ranker into evaluation mode, its tables whole on rank zero."""
        if self.sharded is not None:
            self.sharded.restore_tables()
        self.ranker.eval()

    def checkpoint(self) -> Checkpoint:
        """Return the state after the last step, as views; call `flush` before.

        Every rank must call this together; the result of rank zero is whole.
        """
        tensors = {}
        for name, tensor in self.ranker.state_dict().items():
            tensors[f"{RANKER_PREFIX}{name}"] = tensor
        tensors |= self.optimizers.tensors()
        values = dataclasses.asdict(self.state)
        return Checkpoint(self.state.step, tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state of a checkpoint.

        Raises:
            DataError: its tensors do not fit, for example those of another version of longrec.
        """
        ranker_tensors = {}
        for name, tensor in checkpoint.tensors.items():
            if name.startswith(RANKER_PREFIX):
                ranker_tensors[name.removeprefix(RANKER_PREFIX)] = tensor
        try:
            self.ranker.load_state_dict(ranker_tensors)
            self.optimizers.load(checkpoint.tensors)
            self.state = TrainState.from_dict(checkpoint.values)
        except (RuntimeError, TypeError, KeyError, DataError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise DataError(
                "a checkpoint does not fit this ranker",
                found=first_line,
                fix="Another version of longrec wrote it: delete it.",
            ) from error

    def _add_step(
        self,
        batch: RequestBatch,
        loss: float,
    ) -> None:
        """Add a step that ended now to the state."""
        state = self.state
        now = time.perf_counter()
        state.seconds += now - self._step_start
        self._step_start = now
        whole = batch.global_batch or batch
        state.step += 1
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

    def _add_row(
        self,
        norm: float,
        learning_rate: float,
    ) -> CurveRow:
        """Return the next row of the curve, after adding it to the state."""
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
        state.flops_at_last_row = state.flops
        row = CurveRow(
            step=state.step,
            loss=fmean(state.last_losses[-num_steps:]),
            learning_rate=learning_rate,
            gradient_norm=norm,
            events=state.num_events,
            targets=state.num_targets,
            seconds=state.seconds,
            events_per_second=num_events / seconds,
            targets_per_second=num_targets / seconds,
            memory_bytes=resources.peak_memory_bytes(self.device),
            mfu=mfu,
        )
        state.curve.append(row)
        return row

    def _not_finite(
        self,
        batch: RequestBatch,
        loss: float,
        norm: float,
    ) -> LongrecError:
        """Return the error for a loss that is not finite, after saving its batch."""
        _save_batch(batch, self.failed_batch)
        if math.isfinite(loss):
            what = f"the gradient norm is {norm}"
        else:
            what = f"the training loss is {loss}"
        return LongrecError(
            f"{what} at step {self.state.step + 1}",
            expected="a finite number",
            fix=(
                "Lower train.learning_rate or set train.precision=float32; the batch is in"
                f" {self.failed_batch}."
            ),
        )


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
