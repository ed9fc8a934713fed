"""Trainer: a ranker, its optimizers and how far they are; one `step` per batch, and all of it in a
checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.nn.flops import stca_flops
from longrec.nn.ranker import Ranker
from longrec.training import losses, optimizers, sharded_tables
from longrec.training.checkpoint import Checkpoint
from longrec.training.distributed import DistributedContext

LOSS_LAG = 2
"""Steps whose loss a CUDA device may still owe: the next ones are on their way before it is
read.
"""
PEAK_SIZE = 4096
"""Side of the square matrix product whose rate is the peak that MFU is a share of."""


@dataclasses.dataclass(frozen=True, slots=True)
class CurveRow:
    """One row of training_curve.csv.

    Args:
        step: optimizer steps since the start.
        loss: mean since the row before; gradient_norm: of the dense gradients of the last step,
            before clipping.
        learning_rate: of the last step.
        events, targets, seconds: totals since the start; of a resumed run, over all its starts.
        events_per_second, targets_per_second: since the row before.
        memory_bytes: most that the device (on a CPU: the process) has held so far.
        mfu: share of the matrix peak since the row before: three times the counted FLOPs of the
            stack's forward pass, so a lower bound;
            None where there is no peak to hold it against.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    events: int
    targets: int
    seconds: float
    events_per_second: float
    targets_per_second: float
    memory_bytes: int
    mfu: float | None = None


@dataclasses.dataclass(slots=True)
class TrainState:
    """How far a training is; with weights and optimizers' state, all that a checkpoint holds.

    Args:
        step: optimizer steps done, of which the position in the data follows.
        num_requests, num_events, num_targets: seen in them.
        flops: counted for them; 0 where there is no peak.
        seconds: of the training loop, over all starts.
        first_losses, last_losses: of the first and of the last log_every steps.
        curve: rows so far.
    """

    step: int = 0
    num_requests: int = 0
    num_events: int = 0
    num_targets: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    first_losses: list[float] = dataclasses.field(default_factory=list)
    last_losses: list[float] = dataclasses.field(default_factory=list)
    curve: list[CurveRow] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class _PendingStep:
    """A step whose loss has not been read: its batch in host memory, [loss, gradient norm] there
    once `ready` has happened.
    """

    batch: RequestBatch
    values: Tensor
    ready: torch.cuda.Event | None
    scale: float


class Trainer:
    """Trains a ranker batch by batch.

    Args:
        ranker: with its initial weights, on the device of the training.
        config: of the training.
        num_steps: of the whole training, for the schedule.
        precision: `float32` or `bfloat16`.
        failed_batch: where the batch of a loss that is not finite goes.
        ranks: the processes that train together; None for this one alone.
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
        self.ranker, self.config, self.num_steps, self.precision = (
            ranker,
            config,
            num_steps,
            precision,
        )
        self.failed_batch, self.device = failed_batch, next(ranker.parameters()).device
        self.context = context or DistributedContext()
        self.sharded = (
            sharded_tables.shard(ranker, config, self.context)
            if config.embedding_sharding == "row_wise"
            else None
        )
        self.optimizers = optimizers.build(ranker, config, self.sharded)
        self.forward: nn.Module = self.context.wrap(ranker)
        self.state = TrainState()
        self.peak_flops = (
            _matmul_peak(self.device, precision) if ranker.config.kind == "stca" else 0.0
        )
        self._unread: collections.deque[_PendingStep] = collections.deque()
        self._clock, self._flops_of_last_row = time.perf_counter(), 0.0

    def start(self) -> None:
        """Starts the clock and puts the ranker into training mode."""
        self.ranker.train()
        self._clock = time.perf_counter()

    def step(self, host: RequestBatch, batch: RequestBatch) -> list[CurveRow]:
        """Updates the weights by one batch; returns the rows of the curve that became complete.

        On a CUDA device nothing is waited for: the loss is read UNREAD steps later.

        Args:
            host, batch: the same batch in host memory and on the device.

        Raises:
            LongrecError: a loss or gradient is not finite, the batch saved; or memory does not
                suffice.
        """
        scale = optimizers.schedule(
            self.state.step + len(self._unread),
            num_steps=self.num_steps,
            warmup_fraction=self.config.warmup_fraction,
        )
        with enough_memory(*_of_batch(batch)):
            self.optimizers.start(scale)
            loss = self.loss(batch)
            torch.autograd.backward(loss)
            self.context.exchange(self.optimizers.table_weights)
            norm = self.optimizers.step(scale)
            values = self.context.mean(torch.stack([loss.detach().float(), norm.float()]))
        self._unread.append(_PendingStep(host, *_to_host(values), scale))
        return self.flush(LOSS_LAG if self.device.type == "cuda" else 0)

    def loss(self, batch: RequestBatch) -> Tensor:
        """Returns the loss of a batch on the device; of several ranks, the one whose mean over them
        is the loss of the whole batch.
        """
        with (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.precision == "bfloat16"
            else contextlib.nullcontext()
        ):
            output = self.forward(batch)
        loss, weight = (
            losses.total(output, batch, self.config),
            self.context.weight(batch, self.config),
        )
        return loss if weight == 1 else loss * weight

    def flush(self, unread: int = 0) -> list[CurveRow]:
        """Reads the losses of all steps but the last `unread`; returns the rows of the curve that
        became complete.

        Raises:
            LongrecError: a loss or gradient is not finite; its batch is saved.
        """
        rows = []
        while len(self._unread) > unread:
            done = self._unread.popleft()
            if done.ready is not None:
                done.ready.synchronize()
            loss, norm = done.values.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._not_finite(done.batch, loss, norm)
            self._count(done.batch, loss)
            if self.state.step % self.config.log_every == 0 or self.state.step == self.num_steps:
                rows.append(self._row(norm, self.config.learning_rate * done.scale))
        return rows

    def finish(self) -> None:
        """Leaves the ranker in evaluation mode, its tables whole on the lead."""
        if self.sharded is not None:
            self.sharded.gather()
        self.ranker.eval()

    def checkpoint(self) -> Checkpoint:
        """Returns the state after the last step, as views; every loss must have been read
        (`flush`).

        Every rank calls it together; that of the lead is whole.
        """
        tensors = {f"ranker.{name}": tensor for name, tensor in self.ranker.state_dict().items()}
        values = dataclasses.asdict(self.state)
        return Checkpoint(self.state.step, {**tensors, **self.optimizers.tensors()}, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes the state of a checkpoint.

        Raises:
            DataError: its tensors do not fit, as from another version of longrec.
        """
        prefix = "ranker."
        try:
            self.ranker.load_state_dict(
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in checkpoint.tensors.items()
                    if name.startswith(prefix)
                }
            )
            self.optimizers.load(checkpoint.tensors)
            self.state = _state(checkpoint.values)
        except (RuntimeError, TypeError, KeyError, DataError) as error:
            first = str(error).strip().splitlines()[0]
            raise DataError(
                "a checkpoint does not fit this ranker",
                found=first,
                fix="It is of another version of longrec: delete it.",
            ) from error
        self._flops_of_last_row = self.state.flops

    def _count(self, batch: RequestBatch, loss: float) -> None:
        state, now = self.state, time.perf_counter()
        state.step += 1
        seen = batch.whole or batch
        state.num_requests += seen.num_requests
        state.num_events += seen.num_events
        state.num_targets += seen.num_targets
        state.seconds += now - self._clock
        self._clock = now
        if self.peak_flops and batch.host_counts is not None:
            requests = zip(*batch.host_counts, strict=True)
            state.flops += 3.0 * sum(
                stca_flops(self.ranker.config, events, targets).total
                for events, targets in requests
            )
        if len(state.first_losses) < self.config.log_every:
            state.first_losses.append(loss)
        state.last_losses = [*state.last_losses, loss][-self.config.log_every :]

    def _row(self, norm: float, learning_rate: float) -> CurveRow:
        state, before = self.state, self.state.curve[-1] if self.state.curve else None
        step, events, targets, seconds = (
            (0, 0, 0, 0.0)
            if before is None
            else (before.step, before.events, before.targets, before.seconds)
        )
        passed, losses_since = (
            max(state.seconds - seconds, 1e-9),
            state.last_losses[step - state.step :],
        )
        mfu = (
            (state.flops - self._flops_of_last_row) / passed / self.peak_flops
            if self.peak_flops
            else None
        )
        self._flops_of_last_row = state.flops
        state.curve.append(
            CurveRow(
                state.step,
                fmean(losses_since),
                learning_rate,
                norm,
                state.num_events,
                state.num_targets,
                state.seconds,
                (state.num_events - events) / passed,
                (state.num_targets - targets) / passed,
                _memory(self.device),
                mfu,
            )
        )
        return state.curve[-1]

    def _not_finite(
        self,
        batch: RequestBatch,
        loss: float,
        norm: float,
    ) -> LongrecError:
        """Returns the error after saving the batch for inspection."""
        from safetensors.torch import save_file

        path = self.failed_batch
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        save_file(
            {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}, path
        )
        what = "the gradient norm" if math.isfinite(loss) else "the training loss"
        return LongrecError(
            f"{what} is {norm if math.isfinite(loss) else loss} at step {self.state.step + 1}",
            expected="a finite number",
            fix=f"Lower train.learning_rate or set train.precision=float32; the batch is in {path}.",
        )


def _state(values: Mapping[str, Any]) -> TrainState:
    return TrainState(**{**values, "curve": [CurveRow(**row) for row in values["curve"]]})


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Returns a copy in host memory, and for a CUDA device what happens when it has arrived;
    nothing is waited for.
    """
    if not values.is_cuda:
        return values, None
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
        values, non_blocking=True
    )
    return copied, torch.cuda.current_stream(values.device).record_event()


@contextlib.contextmanager
def enough_memory(what: str, fix: str) -> Iterator[None]:
    """Turns running out of memory in the block into one line.

    Raises:
        ConfigError: `what` does not fit; `fix` says what to lower.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"{what} does not fit into memory",
            found=str(error).partition("\n")[0] or "no memory left",
            fix=fix,
        ) from error


def _of_batch(batch: RequestBatch) -> tuple[str, str]:
    """Returns what does not fit when a step does not, and what to lower."""
    knob = (
        "train.token_budget"
        if batch.num_requests > 1
        else "lengths.maximum (this batch is one request)"
    )
    return (
        f"a training step of {batch.num_requests} requests, {batch.num_events} events and {batch.num_targets} targets",
        f"Lower {knob}, or set train.recompute=true.",
    )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _matmul_peak(device: torch.device, precision: str) -> float:
    """Returns the measured rate of a matrix product on a CUDA device, FLOP/s; 0 on a CPU, where no
    peak is stated.
    """
    if device.type != "cuda":
        return 0.0
    left = torch.rand(
        PEAK_SIZE,
        PEAK_SIZE,
        device=device,
        dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
    )
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for mark in marks:  # the first round warms up
        mark.record()
        for _ in range(20):
            left @ left
    last = torch.cuda.Event(enable_timing=True)
    last.record()
    last.synchronize()
    return float(20 * 2 * PEAK_SIZE**3 / marks[1].elapsed_time(last) * 1e3)


Listener = Callable[[CurveRow, int], None]
"""Called with each row of the training curve and the number of steps of the whole training."""
