"""Id tables that are too large for one process: each rank holds a block of rows (TorchRec,
row-wise, `train.embedding_sharding: row_wise`).

    torchrec.EmbeddingCollection, sharded row-wise     a lookup sends indices to the ranks that hold
    the rows, and rows back
    EXACT_ROWWISE_ADAGRAD, fused                       the update of
    longrec.training.optimizers.RowWiseAdagrad, inside the backward pass

TorchRec divides the gradients that it sends by the number of ranks, as DDP does. What is written
(checkpoints, bundles) holds the whole
tables under their ordinary names: whoever reads it knows nothing of shards. TorchRec is imported
here and nowhere else.
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

KEY = "ids"
EPS = 1e-8
INSTALL = (
    "pip install --no-deps -c constraints.txt torchrec fbgemm-gpu-cpu tensordict torchmetrics pyre-extensions pyvers "
    "lightning-utilities typing-inspect"
)
"""On a CPU; TorchRec requires fbgemm-gpu, the CUDA twin of fbgemm-gpu-cpu, which must not lie
beside it.
"""
log = logging.getLogger(__name__)


class ShardedTable(nn.Module):
    """A table of ids called like nn.Embedding, whose rows lie on all ranks; every rank calls it
    once in a step.

    The collection is kept out of sight of nn.Module: neither DDP nor the optimizers may touch its
    parameters.

    Args:
        table: the whole table with its values; not kept.
        learning_rate: of the fused update.
        ranks: that share the table.
    """

    def __init__(
        self,
        table: nn.Embedding,
        learning_rate: float,
        context: DistributedContext,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.context = (
            table.num_embeddings,
            table.embedding_dim,
            context,
        )
        self._hidden = (_collection(table, learning_rate, context),)
        self.load(table.weight, None)

    def forward(self, indices: Int[Tensor, "T F"]) -> Float[Tensor, "T F K"]:
        """Returns the rows of all indices."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        flat = indices.flatten()
        features = KeyedJaggedTensor(
            keys=[KEY],
            values=flat,
            lengths=torch.ones_like(flat),
        )
        rows: Tensor = self._hidden[0](features).wait()[KEY].values()
        return rows.view(*indices.shape, self.embedding_dim)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step; before its forward pass, which remembers it."""
        optimizer = self._hidden[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()  # updates nothing: passes the rate on

    @property
    def weight(self) -> Float[Tensor, "rows K"]:
        """The whole table, on the lead, in host memory; an empty one elsewhere. Every rank asks for
        it together.
        """
        return self.context.gather_to_rank_zero(self._rows()[0], self.num_embeddings)

    @property
    def row_sums(self) -> Float[Tensor, " rows"]:
        """The accumulators of the update, like `weight`."""
        return self.context.gather_to_rank_zero(self._sums()[0], self.num_embeddings)

    def load(self, rows: Tensor | None, sums: Tensor | None) -> None:
        """Takes this rank's part of a whole table, or of its accumulators."""
        for whole, (part, first) in ((rows, self._rows()), (sums, self._sums())):
            if whole is not None:
                part.detach().copy_(whole.detach()[first : first + part.shape[0]])

    def _rows(self) -> tuple[Tensor, int]:
        return _local(next(iter(self._hidden[0].state_dict().values())))

    def _sums(self) -> tuple[Tensor, int]:
        [state] = self._hidden[0].fused_optimizer.state_dict()["state"].values()
        return _local(state[f"{KEY}.momentum1"])

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
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
        name, shape = f"{prefix}weight", (self.num_embeddings, self.embedding_dim)
        if name not in state_dict:
            missing_keys.append(name)
        elif state_dict[name].shape != shape:
            error_msgs.append(
                f"size mismatch for {name}: {tuple(state_dict[name].shape)}, here {shape}"
            )
        else:
            self.load(state_dict[name], None)


@dataclasses.dataclass(frozen=True, slots=True)
class ShardedTables:
    """The sharded tables of a ranker: its `longrec.training.optimizers.FusedTables`.

    Args:
        owners: modules whose `ids` is a ShardedTable.
    """

    owners: Sequence[FeatureEmbedding]

    @property
    def tables(self) -> list[ShardedTable]:
        return [cast("ShardedTable", owner.ids) for owner in self.owners]

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step; before its forward pass."""
        for table in self.tables:
            table.set_rate(rate)

    def row_sums(self) -> list[Tensor]:
        """Returns the accumulators of each table, whole on the lead."""
        return [table.row_sums for table in self.tables]

    def load_row_sums(self, sums: Sequence[Tensor]) -> None:
        """Takes this rank's part of whole accumulators."""
        for table, whole in zip(self.tables, sums, strict=True):
            table.load(None, whole)

    def gather(self) -> None:
        """Puts ordinary whole tables back into the ranker on the lead; elsewhere their values are
        left out (device `meta`).
        """
        for owner, table in zip(self.owners, self.tables, strict=True):
            device, whole = table.context.device, table.weight
            plain = nn.Embedding(
                table.num_embeddings, table.embedding_dim, sparse=True, device="meta"
            )
            if table.context.is_rank_zero:
                plain.weight = nn.Parameter(whole.to(device))
            owner.ids = plain


def shard(
    ranker: nn.Module, config: TrainConfig, context: DistributedContext
) -> ShardedTables | None:
    """Returns the id tables of `ranker` after spreading their rows over the ranks, in place; None
    for one rank, which holds them whole.

    Raises:
        ConfigError: TorchRec is not installed.
    """
    if context.num_ranks == 1:
        log.warning(
            "train.embedding_sharding=row_wise needs several processes (torchrun): this one holds its id tables whole"
        )
        return None
    owners = [
        module
        for module in ranker.modules()
        if isinstance(module, FeatureEmbedding) and module.ids is not None
    ]
    for owner in owners:
        owner.ids = cast(
            "nn.Embedding",
            ShardedTable(cast("nn.Embedding", owner.ids), config.embedding_learning_rate, context),
        )
    return ShardedTables(owners)


def _collection(table: nn.Embedding, learning_rate: float, context: DistributedContext) -> Any:
    """Returns a sharded EmbeddingCollection of one table like `table`, its values not set."""
    try:
        import torchrec
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv
    except ImportError as error:
        raise ConfigError(
            "train.embedding_sharding=row_wise needs TorchRec", found=str(error), fix=INSTALL
        ) from error
    kind = context.device.type
    config = torchrec.EmbeddingConfig(
        name=KEY,
        embedding_dim=table.embedding_dim,
        num_embeddings=table.num_embeddings,
        feature_names=[KEY],
    )
    collection = torchrec.EmbeddingCollection(tables=[config], device=torch.device("meta"))
    sharder = EmbeddingCollectionSharder(
        {
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": learning_rate,
            "eps": EPS,
        }
    )
    plan = construct_module_sharding_plan(
        collection,
        {KEY: row_wise(compute_kernel="fused")},
        sharder,
        local_size=context.num_ranks,
        world_size=context.num_ranks,
        device_type=kind,
    )
    return sharder.shard(
        collection,
        plan,
        ShardingEnv.from_process_group(torch.distributed.group.WORLD),
        context.device,
    )


def _local(sharded: Any) -> tuple[Tensor, int]:
    """Returns the rows that this rank holds and the first one's number."""
    shards = sharded.local_shards()
    if not shards:  # a table with fewer rows than ranks
        return torch.zeros(0, *sharded.size()[1:]), 0
    return shards[0].tensor, shards[0].metadata.shard_offsets[0]
