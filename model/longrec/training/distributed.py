"""Train one ranker with several processes, each on its part of every batch, started by torchrun.

    torchrun --nproc-per-node 2 -m longrec train HISTORIES OUT

A batch is the one of a single process, split into one part per rank by
`longrec.data.loading.batching.balance_events`. Dense gradients go through
DistributedDataParallel. Gradients of the id tables are sparse: all ranks gather their rows. So
every rank holds the whole ranker and makes the same update. Without torchrun there is one rank,
and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longrec import child
from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import ConfigError, LongrecError
from longrec.training.checkpoint import Checkpoint
from longrec.training.optimizers import sparse_tables

RANK_ZERO_TIMEOUT_SECONDS = 12 * 3_600
"""How long other ranks wait for work of rank zero alone, such as encoding the histories."""
TORCHRUN_VARIABLES = frozenset({"RANK", "WORLD_SIZE", "MASTER_ADDR"})
T = TypeVar("T")


class RankLost(LongrecError):
    """Another process of the training has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among those that train together.

    Args:
        rank: rank of this process. Rank zero writes all files and reports to the user.
        num_ranks: number of processes.
        device: device of this process.
        host_group: process group for values in host memory; None for one rank.
    """

    rank: int = 0
    num_ranks: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    host_group: dist.ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def wrap(self, ranker: nn.Module) -> nn.Module:
        """Return the module to call: its backward pass averages dense gradients over all ranks."""
        if self.num_ranks == 1:
            return ranker
        parallel = nn.parallel.DistributedDataParallel
        sparse_ids = set(map(id, sparse_tables(ranker)))
        ignored = []
        for name, parameter in ranker.named_parameters():
            if id(parameter) in sparse_ids:
                ignored.append(name)
        # Buffers never change: they are equal on all ranks.
        for name, _ in ranker.named_buffers():
            ignored.append(name)
        # DDP has no public way to leave parameters out.
        parallel._set_params_and_buffers_to_ignore_for_model(ranker, ignored)
        return parallel(ranker, gradient_as_bucket_view=True)

    def without_exchange(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Let backward passes of the result of `wrap` add up on this rank within the block."""
        if self.num_ranks == 1:
            return contextlib.nullcontext()
        parallel = cast("nn.parallel.DistributedDataParallel", module)
        return parallel.no_sync()

    def loss_weight(
        self,
        batch: RequestBatch,
        config: TrainConfig,
    ) -> float:
        """Return the factor of this rank's loss.

        The mean over ranks of the weighted losses is the loss of the whole batch.
        """
        whole = batch.global_batch
        if whole is None:
            return 1.0
        if whole.is_placeholder:
            return 0.0
        if config.loss == "request":
            share = batch.num_requests / whole.num_requests
        else:
            share = batch.num_targets / whole.num_targets
        return self.num_ranks * share

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all ranks; `values` is overwritten."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
            values /= self.num_ranks
        return values

    def max(self, value: int) -> int:
        """Return the largest value of any rank; all ranks must call this together."""
        if self.num_ranks == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX, self.host_group)
        return int(values)

    def average_sparse_gradients(self, tables: Iterable[Tensor]) -> None:
        """Replace the sparse gradients of tables by their mean over all ranks.

        A rank sends the rows that its part of the batch touched, padded to the largest number of
        rows of any rank. The numbers are exchanged in host memory: nothing waits for a CUDA device.
        """
        if self.num_ranks == 1:
            return
        tables = list(tables)
        if not tables:
            return
        gradients = [_coalesced_on_cpu(table) for table in tables]
        counts = self._gather_row_counts(gradients)
        for table, gradient, lengths in zip(tables, gradients, counts, strict=True):
            rows, values = _rows_and_values(table, gradient)
            all_rows = _gather_padded(rows, lengths)
            all_values = _gather_padded(values, lengths)
            table.grad = torch.sparse_coo_tensor(
                all_rows[None],
                all_values / self.num_ranks,
                table.shape,
                check_invariants=False,
            )

    def _gather_row_counts(self, gradients: list[Tensor | None]) -> list[list[int]]:
        """Return the number of gradient rows by table and rank."""
        own_counts = []
        for gradient in gradients:
            own_counts.append(0 if gradient is None else gradient._nnz())
        own = torch.tensor(own_counts)
        counts = [torch.zeros_like(own) for _ in range(self.num_ranks)]
        dist.all_gather(counts, own, self.host_group)
        by_table: list[list[int]] = torch.stack(counts, dim=1).tolist()
        return by_table

    def gather_to_rank_zero(
        self,
        rows: Tensor,
        num_rows: int,
    ) -> Tensor:
        """Return all ranks' rows in host memory on rank zero, and an empty tensor elsewhere.

        Args:
            rows: this rank's rows.
            num_rows: number of rows of all ranks together.
        """
        # TorchRec gives this many rows, rounded up, to every rank but the last ones.
        rows_per_rank = -(-num_rows // self.num_ranks)
        padded = torch.zeros((rows_per_rank, *rows.shape[1:]), dtype=rows.dtype)
        padded[: rows.shape[0]] = rows.detach()
        parts = None
        if self.is_rank_zero:
            parts = [torch.empty_like(padded) for _ in range(self.num_ranks)]
        dist.gather(padded, parts, 0, self.host_group)
        if parts is None:
            return padded[:0]
        return torch.cat(parts)[:num_rows]

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Return on every rank the plain value that `make` returns on rank zero.

        Only rank zero calls `make`.
        """
        if self.num_ranks == 1:
            return make()
        values = [make() if self.is_rank_zero else None]
        dist.broadcast_object_list(values, 0, self.host_group)
        return cast("T", values[0])

    def broadcast_checkpoint(self, read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """Return on every rank the checkpoint that `read` returns on rank zero.

        Only rank zero needs access to the files.
        """
        if self.num_ranks == 1:
            return read()
        checkpoint = read() if self.is_rank_zero else None
        header = self.broadcast_object(lambda: _header(checkpoint))
        if header is None:
            return None
        if checkpoint is None:
            tensors = {}
            for name, shape, dtype in header.layouts:
                tensors[name] = torch.empty(shape, dtype=dtype)
            checkpoint = Checkpoint(header.step, tensors, header.values)
        for name, _, _ in header.layouts:
            dist.broadcast(checkpoint.tensors[name], 0, self.host_group)
        return checkpoint

    def rank_zero_first(
        self,
        make: Callable[[], T],
        then: Callable[[], T],
    ) -> T:
        """Return the result of `make` on rank zero, and afterwards of `then` on the others."""
        if self.is_rank_zero:
            result = make()
            self._barrier()
            return result
        self._barrier()
        return then()

    def _barrier(self) -> None:
        if self.num_ranks > 1:
            dist.barrier(self.host_group)


@dataclasses.dataclass(frozen=True, slots=True)
class _CheckpointHeader:
    """A checkpoint without its tensors' content.

    Args:
        step: number of steps done.
        values: plain values.
        layouts: (name, shape, dtype) of each tensor.
    """

    step: int
    values: Mapping[str, object]
    layouts: list[tuple[str, tuple[int, ...], torch.dtype]]


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[DistributedContext]:
    """Yield the processes that torchrun started; one on `device` without torchrun.

    On GPUs, a process takes the GPU with its number on its machine and communicates through NCCL.
    On CPUs it communicates through gloo.

    Raises:
        ConfigError: the machine has fewer GPUs than processes.
        RankLost: another process ended during the block.
    """
    if not _started_by_torchrun():
        yield DistributedContext(device=device)
        return
    child.end_with(os.getppid())
    # DDP warns once per process about dimensions of size 1; they cost nothing
    warnings.filterwarnings("ignore", "Grad strides do not match")
    if device.type == "cuda":
        device = _local_gpu()
    try:
        _init_process_group(device)
        timeout = datetime.timedelta(seconds=RANK_ZERO_TIMEOUT_SECONDS)
        yield DistributedContext(
            dist.get_rank(),
            dist.get_world_size(),
            device,
            dist.new_group(backend="gloo", timeout=timeout),
        )
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise RankLost(
            "another process of the training has ended",
            found=first_line.partition(". ")[0],
            fix=(
                "Its own message says why. Run the same command again: the training resumes from"
                " the last checkpoint."
            ),
        ) from error


def _started_by_torchrun() -> bool:
    """Return whether torchrun started this process together with others."""
    if not os.environ.keys() >= TORCHRUN_VARIABLES:
        return False
    return os.environ["WORLD_SIZE"] != "1"


def _init_process_group(device: torch.device) -> None:
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")


def _is_communication_error(error: RuntimeError) -> bool:
    """Return whether an error comes from the communication between ranks."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(word in text for word in ("gloo", "NCCL", "Connection"))


def _local_gpu() -> torch.device:
    """Return the GPU of this process, by its number on this machine."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count()
    if number >= num_gpus:
        raise ConfigError(
            "more processes than GPUs on this machine",
            found=f"process {number} of 0..., {num_gpus} GPUs",
            fix="Lower --nproc-per-node, or set train.device=cpu.",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _coalesced_on_cpu(table: Tensor) -> Tensor | None:
    """Return the gradient of a table, with repeated rows summed if it is in host memory.

    On a CUDA device, the sum would have to wait until the number of different rows is known.
    """
    gradient = table.grad
    if gradient is None or table.is_cuda:
        return gradient
    return gradient.coalesce()


def _rows_and_values(table: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (row numbers, values) of a sparse gradient; empty tensors for None."""
    if gradient is not None:
        return gradient._indices()[0], gradient._values()
    no_rows = torch.zeros(
        0,
        dtype=torch.int64,
        device=table.device,
    )
    no_values = table.new_zeros(0, table.shape[1])
    return no_rows, no_values


def _gather_padded(values: Tensor, lengths: list[int]) -> Tensor:
    """Return the values of all ranks one after another, lengths[r] of rank r."""
    padded = values.new_zeros((max(lengths), *values.shape[1:]))
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    trimmed = []
    for part, length in zip(parts, lengths, strict=True):
        trimmed.append(part[:length])
    return torch.cat(trimmed)


def _header(checkpoint: Checkpoint | None) -> _CheckpointHeader | None:
    if checkpoint is None:
        return None
    layouts = []
    for name, tensor in checkpoint.tensors.items():
        shape = tuple(tensor.shape)
        layouts.append((name, shape, tensor.dtype))
    return _CheckpointHeader(checkpoint.step, checkpoint.values, layouts)
