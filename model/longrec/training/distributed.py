"""Several processes that train one ranker, each on its part of every batch, started by torchrun.

    torchrun --nproc-per-node 2 -m longrec train HISTORIES OUT

A batch is that of one process, split into one part per rank (longrec.data.loader.balanced). Dense
gradients go through
DistributedDataParallel, those of the id tables are rows that all ranks gather; so every rank holds
the whole ranker and makes the
same update. Without torchrun there is one rank, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import ConfigError, LongrecError
from longrec.training.checkpoint import Checkpoint

PATIENCE = datetime.timedelta(hours=12)
"""How long ranks wait for what the lead does alone, such as encoding the histories."""
T = TypeVar("T")


class RankLost(LongrecError):
    """Another process of the training has gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among those that train together.

    Args:
        rank: of this one, 0 for the lead, which writes all files and speaks to the user; num_ranks:
            of all.
        device: of this process.
        host: the group in which ranks exchange what lies in host memory; None for one rank.
    """

    rank: int = 0
    num_ranks: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    host_group: dist.ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def wrap(self, ranker: nn.Module) -> nn.Module:
        """Returns what to call instead of the ranker, so that its backward pass leaves the mean of
        all ranks in every dense gradient.
        """
        if self.num_ranks == 1:
            return ranker
        parallel = nn.parallel.DistributedDataParallel
        sparse = {
            id(module.weight)
            for module in ranker.modules()
            if isinstance(module, nn.Embedding) and module.sparse
        }
        tables = [name for name, parameter in ranker.named_parameters() if id(parameter) in sparse]
        constants = [name for name, _ in ranker.named_buffers()]
        parallel._set_params_and_buffers_to_ignore_for_model(ranker, [*tables, *constants])
        return parallel(ranker, gradient_as_bucket_view=True)

    def weight(self, batch: RequestBatch, config: TrainConfig) -> float:
        """Returns the factor of the loss of this rank's part: the mean over ranks of the products
        is the loss of the whole batch.
        """
        if (whole := batch.whole) is None:
            return 1.0
        if whole.is_stand_in:
            return 0.0
        own, of = (
            (batch.num_requests, whole.num_requests)
            if config.loss == "request"
            else (batch.num_targets, whole.num_targets)
        )
        return self.num_ranks * own / of

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean over all ranks; `values` is overwritten."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
            values /= self.num_ranks
        return values

    def any(self, claim: bool) -> bool:
        """Returns on every rank whether `claim` holds on one of them; every rank asks together."""
        if self.num_ranks == 1:
            return claim
        held = torch.tensor([int(claim)])
        dist.all_reduce(held, dist.ReduceOp.MAX, self.host_group)
        return bool(held)

    def exchange(self, tables: Iterable[Tensor]) -> None:
        """Puts the mean over all ranks into the sparse gradients of tables.

        A rank sends the rows that its part of the batch touched, padded to those of the rank with
        the most; their numbers are known on
        the host, so that nothing waits for a CUDA device.
        """
        tables = [] if self.num_ranks == 1 else list(tables)
        gradients = [
            table.grad if table.is_cuda or table.grad is None else table.grad.coalesce()
            for table in tables
        ]
        counts = [torch.zeros(len(tables), dtype=torch.int64) for _ in range(self.num_ranks)]
        if tables:
            dist.all_gather(
                counts,
                torch.tensor(
                    [0 if gradient is None else gradient._nnz() for gradient in gradients]
                ),
                self.host_group,
            )
        for table, gradient, lengths in zip(
            tables, gradients, torch.stack(counts, 1).tolist(), strict=True
        ):
            empty = (
                torch.zeros(0, dtype=torch.int64, device=table.device),
                table.new_zeros(0, table.shape[1]),
            )
            rows, values = (
                empty if gradient is None else (gradient._indices()[0], gradient._values())
            )
            all_rows, all_values = _gathered(rows, lengths), _gathered(values, lengths)
            table.grad = torch.sparse_coo_tensor(
                all_rows[None], all_values / self.num_ranks, table.shape, check_invariants=False
            )

    def gather_to_rank_zero(self, rows: Tensor, num_rows: int) -> Tensor:
        """Returns on the lead the rows of all ranks one after another, `num_rows` of them, in host
        memory; elsewhere an empty tensor.
        """
        padded = torch.zeros((-(-num_rows // self.num_ranks), *rows.shape[1:]), dtype=rows.dtype)
        padded[: rows.shape[0]] = rows.detach()
        parts = (
            [torch.empty_like(padded) for _ in range(self.num_ranks)] if self.is_rank_zero else None
        )
        dist.gather(padded, parts, 0, self.host_group)
        return torch.cat(parts)[:num_rows] if parts else padded[:0]

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Returns on every rank what `make` returned on the lead, the only one that calls it: a
        plain value.
        """
        if self.num_ranks == 1:
            return make()
        values = [make() if self.is_rank_zero else None]
        dist.broadcast_object_list(values, 0, self.host_group)
        return cast("T", values[0])

    def broadcast_checkpoint(self, read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """Returns on every rank the checkpoint that `read` returned on the lead: only the lead
        needs to see the files.
        """
        if self.num_ranks == 1:
            return read()
        mine = read() if self.is_rank_zero else None
        outline = self.broadcast_object(
            lambda: None if mine is None else (mine.step, mine.values, _outline(mine.tensors))
        )
        if outline is None:
            return None
        step, values, shapes = outline
        tensors = (
            {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in shapes}
            if mine is None
            else mine.tensors
        )
        for name, _, _ in shapes:
            dist.broadcast(tensors[name], 0, self.host_group)
        return Checkpoint(step, tensors, values)

    def rank_zero_first(self, make: Callable[[], T], then: Callable[[], T]) -> T:
        """Returns what `make` returned on the lead, and on the others what `then` returned after
        the lead was through.
        """
        made = [make()] if self.is_rank_zero else []
        if self.num_ranks > 1:
            dist.barrier(self.host_group)
        return made[0] if made else then()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[DistributedContext]:
    """Yields the ranks that torchrun's environment names; one, on `device`, where the process was
    not started by torchrun.

    On GPUs a process takes the one of its number on its machine; they talk through NCCL, and on
    CPUs through gloo.

    Raises:
        ConfigError: the machine has fewer GPUs than processes.
        RankLost: another process went away in between.
    """
    if (
        not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
        or os.environ["WORLD_SIZE"] == "1"
    ):
        yield DistributedContext(device=device)
        return
    if device.type == "cuda":
        device = _own_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    warnings.filterwarnings(
        "ignore", "Grad strides do not match"
    )  # of dimensions of size 1, once per process: says and costs nothing
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            device_id=device if device.type == "cuda" else None,
        )
        yield DistributedContext(
            dist.get_rank(),
            dist.get_world_size(),
            device,
            dist.new_group(backend="gloo", timeout=PATIENCE),
        )
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (
            isinstance(error, dist.DistError)
            or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        ):
            raise
        raise RankLost(
            "another process of the training has gone",
            found=str(error).strip().splitlines()[0].partition(". ")[0],
            fix="Its own message says why. Start the same command again: it goes on from the last checkpoint.",
        ) from error


def _own_gpu(number: int) -> torch.device:
    if number >= torch.cuda.device_count():
        raise ConfigError(
            "more processes than GPUs on this machine",
            found=f"process {number} of 0..., {torch.cuda.device_count()} GPUs",
            fix="Lower --nproc-per-node, or set train.device=cpu.",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _gathered(values: Tensor, lengths: list[int]) -> Tensor:
    """Returns the values of all ranks one after another, of which rank r has lengths[r]."""
    padded = values.new_zeros((max(lengths), *values.shape[1:]))
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def _outline(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
