"""Shard id tables that are too large for one process: each rank holds a block of rows.

`train.embedding_sharding: row_wise` turns it on; TorchRec does the work and is imported here only.

    torchrec.EmbeddingCollection     a lookup sends indices to the ranks that hold the rows, and
                                     the rows back
    EXACT_ROWWISE_ADAGRAD, fused     the update of longrec.training.optimizers.RowWiseAdagrad,
                                     inside the backward pass

TorchRec divides the gradients that it sends by the number of ranks, as DDP does. Checkpoints and
bundles hold the whole tables under their ordinary names, so code that reads them needs no change.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.nn.layers import FeatureEmbedding
from longrec.training.distributed import DistributedContext
from longrec.training.optimizers import ADAGRAD_EPS, id_learning_rate

FEATURE_NAME = "ids"
INSTALL_COMMAND = (
    "pip install --no-deps -c constraints.txt torchrec fbgemm-gpu-cpu tensordict torchmetrics"
    " pyre-extensions pyvers lightning-utilities typing-inspect"
)
"""Command for a CPU.

TorchRec requires fbgemm-gpu, the CUDA build of fbgemm-gpu-cpu; only one of them may be installed.
"""
log = logging.getLogger(__name__)


class ShardedTable(nn.Module):
    """A table of ids, called like nn.Embedding, with its rows spread over all ranks.

    Every rank must call it once in a step. Its TorchRec EmbeddingCollection is not registered as a
    submodule: neither DDP nor the optimizers may touch its parameters.

    Args:
        table: the whole table with its values; it is not stored.
        learning_rate: peak rate of the fused update.
        weight_decay: L2 penalty of the rows that a step touches.
        context: the processes that share the table.
    """

    def __init__(
        self,
        table: nn.Embedding,
        learning_rate: float,
        weight_decay: float,
        context: DistributedContext,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.num_embeddings = table.num_embeddings
        self.embedding_dim = table.embedding_dim
        self.context = context
        # in a tuple: nn.Module registers modules, but not tuples of them
        self._hidden = (_make_collection(table, learning_rate, weight_decay, context),)
        self.load_weight(table.weight)

    def forward(self, indices: Int[Tensor, "T F"]) -> Float[Tensor, "T F K"]:
        """Return the rows of all indices."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        flat = indices.flatten()
        features = KeyedJaggedTensor(
            keys=[FEATURE_NAME],
            values=flat,
            lengths=torch.ones_like(flat),
        )
        lookup = self._hidden[0](features).wait()
        rows: Tensor = lookup[FEATURE_NAME].values()
        return rows.view(*indices.shape, self.embedding_dim)

    def set_scale(self, scale: float) -> None:
        """Set the share of the peak rate for the next step; TorchRec reads it in the forward pass.

        It does not change weight decay.
        """
        optimizer = self._hidden[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * scale
        # Copies the rate to the kernels. Rows are updated in the backward pass.
        optimizer.step()

    @property
    def weight(self) -> Float[Tensor, "rows K"]:
        """The whole table in host memory on rank zero, an empty one elsewhere.

        Every rank must read it together.
        """
        rows, _ = self._local_rows()
        return self.context.gather_to_rank_zero(rows, self.num_embeddings)

    @property
    def row_sums(self) -> Float[Tensor, " rows"]:
        """The accumulators of the update, gathered like `weight`."""
        row_sums, _ = self._local_row_sums()
        return self.context.gather_to_rank_zero(row_sums, self.num_embeddings)

    def load_weight(self, weight: Tensor) -> None:
        """Load this rank's part of a whole table."""
        _copy_part(weight, *self._local_rows())

    def load_row_sums(self, row_sums: Tensor) -> None:
        """Load this rank's part of the accumulators of a whole table."""
        _copy_part(row_sums, *self._local_row_sums())

    def forget(self) -> None:
        """Set this rank's part of the accumulators to zero."""
        row_sums, _ = self._local_row_sums()
        row_sums.detach().zero_()

    def _local_rows(self) -> tuple[Tensor, int]:
        """Return this rank's rows, and the number of the first one."""
        values = self._hidden[0].state_dict().values()
        return _local_shard(next(iter(values)))

    def _local_row_sums(self) -> tuple[Tensor, int]:
        """Return this rank's accumulators, and the number of the first one's row."""
        optimizer = self._hidden[0].fused_optimizer
        [state] = optimizer.state_dict()["state"].values()
        # FBGEMM calls the accumulators of Adagrad momentum1.
        return _local_shard(state[f"{FEATURE_NAME}.momentum1"])

    def _save_to_state_dict(
        self,
        destination: dict[str, Any],
        prefix: str,
        keep_vars: bool,
    ) -> None:
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}weight"
        shape = (self.num_embeddings, self.embedding_dim)
        if name not in state_dict:
            missing_keys.append(name)
            return
        weight = state_dict[name]
        if weight.shape != shape:
            found = tuple(weight.shape)
            error_msgs.append(f"size mismatch for {name}: {found}, here {shape}")
            return
        self.load_weight(weight)


@dataclasses.dataclass(frozen=True, slots=True)
class ShardedTables:
    """The sharded tables of a ranker, with the methods of optimizers.FusedTables.

    Args:
        owners: modules with a ShardedTable in `ids`.
    """

    owners: Sequence[FeatureEmbedding]

    @property
    def tables(self) -> list[ShardedTable]:
        """The table of each owner."""
        return [cast("ShardedTable", owner.ids) for owner in self.owners]

    def set_scale(self, scale: float) -> None:
        """Set the share of the peak rates for the next step, before its forward pass."""
        for table in self.tables:
            table.set_scale(scale)

    def row_sums(self) -> list[Tensor]:
        """Return the accumulators of each table, whole on rank zero."""
        return [table.row_sums for table in self.tables]

    def load_row_sums(self, sums: Sequence[Tensor]) -> None:
        """Load this rank's part of whole accumulators."""
        for table, row_sums in zip(self.tables, sums, strict=True):
            table.load_row_sums(row_sums)

    def forget(self) -> None:
        """Set the accumulators of each table to zero."""
        for table in self.tables:
            table.forget()

    def restore_tables(self) -> None:
        """Put whole ordinary tables back into the ranker.

        Rank zero gets their values; elsewhere they are on the device `meta`, without values.
        """
        for owner, table in zip(self.owners, self.tables, strict=True):
            weight = table.weight
            plain = nn.Embedding(
                table.num_embeddings,
                table.embedding_dim,
                sparse=True,
                device="meta",
            )
            if table.context.is_rank_zero:
                device = table.context.device
                plain.weight = nn.Parameter(weight.to(device))
            owner.ids = plain


def shard(
    ranker: nn.Module,
    config: TrainConfig,
    context: DistributedContext,
) -> ShardedTables | None:
    """Spread the rows of a ranker's id tables over the ranks, in place; return the tables.

    Returns None with one rank, which holds its tables whole.

    Raises:
        ConfigError: TorchRec is not installed.
    """
    if context.num_ranks == 1:
        log.warning(
            "train.embedding_sharding=row_wise needs several processes (torchrun): this one holds"
            " its id tables whole"
        )
        return None
    owners = {}
    for name, module in ranker.named_modules():
        if isinstance(module, FeatureEmbedding) and module.ids is not None:
            owners[f"{name}.ids"] = module
    for name, owner in owners.items():
        sharded = ShardedTable(
            cast("nn.Embedding", owner.ids),
            id_learning_rate(name, config),
            config.id_weight_decay,
            context,
        )
        owner.ids = cast("nn.Embedding", sharded)
    return ShardedTables(list(owners.values()))


def _make_collection(
    table: nn.Embedding,
    learning_rate: float,
    weight_decay: float,
    context: DistributedContext,
) -> Any:
    """Return a sharded EmbeddingCollection of one table of the same size, without values."""
    _require_torchrec()
    import torchrec
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv

    config = torchrec.EmbeddingConfig(
        name=FEATURE_NAME,
        embedding_dim=table.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[FEATURE_NAME],
    )
    collection = torchrec.EmbeddingCollection(tables=[config], device=torch.device("meta"))
    sharder = _make_sharder(learning_rate, weight_decay)
    plan = construct_module_sharding_plan(
        collection,
        {FEATURE_NAME: row_wise(compute_kernel="fused")},
        sharder,
        # Rows are spread over all ranks: their number on one machine does not matter.
        local_size=context.num_ranks,
        world_size=context.num_ranks,
        device_type=context.device.type,
    )
    environment = ShardingEnv.from_process_group(torch.distributed.group.WORLD)
    return sharder.shard(
        collection,
        plan,
        environment,
        context.device,
    )


def _make_sharder(learning_rate: float, weight_decay: float) -> Any:
    """Return a sharder of tables that row-wise Adagrad updates in the backward pass."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.distributed.embedding import EmbeddingCollectionSharder

    options = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": learning_rate,
        "eps": ADAGRAD_EPS,
    }
    if weight_decay:
        options |= {"weight_decay": weight_decay, "weight_decay_mode": WeightDecayMode.L2}
    return EmbeddingCollectionSharder(options)


def _require_torchrec() -> None:
    """Refuse to go on without TorchRec, and name the command that installs it."""
    try:
        import fbgemm_gpu  # noqa: F401
        import torchrec  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "train.embedding_sharding=row_wise needs TorchRec",
            found=str(error),
            fix=INSTALL_COMMAND,
        ) from error


def _local_shard(sharded: Any) -> tuple[Tensor, int]:
    """Return the rows that this rank holds, and the number of the first one."""
    shards = sharded.local_shards()
    if not shards:
        # a table with fewer rows than ranks
        no_rows = torch.zeros(0, *sharded.size()[1:])
        return no_rows, 0
    first_row = shards[0].metadata.shard_offsets[0]
    return shards[0].tensor, first_row


def _copy_part(
    whole: Tensor,
    part: Tensor,
    first_row: int,
) -> None:
    """Copy the rows of a whole table from `first_row` on into a rank's part of it."""
    end_row = first_row + part.shape[0]
    rows = whole.detach()[first_row:end_row]
    part.detach().copy_(rows)
