"""Token layers of the ranker: features in, event tokens and target tokens out.

Shape letters: R requests, T packed events, N packed targets, D width, I items, F item features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.fused import tokens as fused_tokens
from longrec.nn.layers import FEATURE_STD, FeatureEmbedding, SwiGLUFFN, linear
from longrec.nn.time_gaps import NUM_GAP_BUCKETS, gap_buckets
from longrec.schema import Schema


class TokenLayers(nn.Module):
    """Embeddings and projections that make the tokens of events and targets.

    The event token is x = e + SwiGLUFFN([e ; a]) with e the item part and a the action part (arXiv
    2609.08443, appendix D), or e + a without `fusion`. The target token is x_t = e.

    Items are embedded and projected once per event, not once per distinct item. This costs less
    than 3 % of one layer's FFN. Finding the distinct items would cost about as much.

    Args:
        config: sizes and options.
        schema: of the features.
        sizes: rows of each feature's table, by group (Encoder.sizes).
        item_table: int [num_items + 1, F], indices of the item features; row 0 is the unknown item.

    Raises:
        DataError: the item table or the sizes do not fit the schema.
    """

    item_table: Tensor

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        sizes: Mapping[str, Sequence[int]],
        item_table: Int[Tensor, "I F"],
    ) -> None:
        super().__init__()
        self.recency = config.recency
        self.register_buffer("item_table", item_table.to(torch.int32))
        width = config.width
        dims = {"id_dim": config.id_dim, "feature_dim": config.feature_dim}
        self.items = FeatureEmbedding(schema.item, sizes["item"], **dims, id_std=config.id_std)
        self.items.check(item_table, "the item table")
        self.table_with_hidden_ids: Tensor | None = None
        self.actions = FeatureEmbedding(schema.event, sizes["event"], **dims)
        self.users = FeatureEmbedding(schema.user, sizes["user"], **dims)
        action_width = self.actions.out_width
        self.gap = None  # embedding of the gap buckets
        if config.recency == "token":
            self.gap = embedding(NUM_GAP_BUCKETS, config.feature_dim, FEATURE_STD)
            action_width += config.feature_dim
        self.item_part = linear(self.items.out_width, width)
        self.action_part = linear(action_width, width, bias=True)
        self.fusion = None
        if config.fusion:
            self.fusion = SwiGLUFFN(width, config.ffn_ratio, in_width=2 * width)

    def check(self, batch: RequestBatch) -> None:
        """Check that every index of the batch is within its table.

        It waits for the device. Call it where batches enter (loading, requests), not in a training
        step.

        Raises:
            DataError: an index is outside its table, or offsets do not fit.
        """
        batch.validate(num_items=self.item_table.shape[0])
        self.actions.check(batch.event_features, "event features")
        self.users.check(batch.user_features, "user features")

    def gaps(self, batch: RequestBatch) -> Int[Tensor, " T"] | None:
        """Return the time-gap bucket of each event, or None with `recency: none`."""
        if self.recency == "none":
            return None
        request_times = batch.request_timestamps.repeat_interleave(
            batch.event_offsets.diff(),
            output_size=batch.num_events,
        )
        return gap_buckets(request_times, batch.event_timestamps)

    @property
    def _token_table(self) -> Tensor:
        """The item table that tokens are read from."""
        if self.table_with_hidden_ids is None or not self.training:
            return self.item_table
        return self.table_with_hidden_ids

    def allow_hidden_ids(self) -> None:
        """Let items be read without their id in training: row I + i is item i without it."""
        without_ids = self.item_table.clone()
        without_ids[:, 0] = 0
        self.table_with_hidden_ids = torch.cat([self.item_table, without_ids])

    def item_tokens(self, items: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Return e of rows of the item table."""
        features = self._token_table.index_select(0, items)
        tokens: Tensor = self.item_part(self.items(features))
        return tokens

    def event_tokens(
        self,
        batch: RequestBatch,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "T D"]:
        """Return x of every event; the gaps are part of it only with `recency: token`."""
        is_sharded = self.items.is_sharded or self.actions.is_sharded
        if not is_sharded and fused_tokens.usable(self.item_part, batch.event_items):
            return self._fused_event_tokens(batch, gaps)
        return self.reference_event_tokens(batch, gaps)

    def reference_event_tokens(
        self,
        batch: RequestBatch,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "T D"]:
        """Return x of every event on any device: the reference of longrec.nn.fused.tokens."""
        return self._fuse_actions(self.item_tokens(batch.event_items), batch, gaps)

    def target_and_event_tokens(
        self,
        batch: RequestBatch,
        gaps: Int[Tensor, " T"] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return x_t of the targets and x of the events; a sharded item table is read once."""
        if not self.items.is_sharded:
            return self.item_tokens(batch.target_items), self.event_tokens(batch, gaps)
        item_tokens = self.item_tokens(torch.cat([batch.target_items, batch.event_items]))
        sizes = [batch.num_targets, batch.num_events]
        target_tokens, event_item_tokens = item_tokens.split(sizes)
        return target_tokens, self._fuse_actions(event_item_tokens, batch, gaps)

    def _fuse_actions(
        self,
        item_tokens: Float[Tensor, "T D"],
        batch: RequestBatch,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "T D"]:
        """Return x of events from e of their items."""
        features = self.actions(batch.event_features)
        if self.gap is not None and gaps is not None:
            features = torch.cat([features, self.gap(gaps)], dim=1)
        action_tokens: Tensor = self.action_part(features)
        if self.fusion is None:
            return item_tokens + action_tokens
        fused: Tensor = self.fusion(torch.cat([item_tokens, action_tokens], dim=1))
        return item_tokens + fused

    def _fused_event_tokens(
        self,
        batch: RequestBatch,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "T D"]:
        """Return x of every event with the kernels of a CUDA device."""
        lookups = [
            *self.items.lookups(self._token_table, batch.event_items),
            *self.actions.lookups(batch.event_features),
        ]
        if self.gap is not None and gaps is not None:
            # The gap table has one index column, 0, whose rows start at row 0.
            zero = gaps.new_zeros(1)
            lookup = fused_tokens.EmbeddingLookup(
                self.gap.weight,
                False,
                gaps[:, None],
                columns=zero,
                starts=zero,
            )
            lookups.append(lookup)
        dtype = fused_tokens.product_dtype(self.item_part.weight)
        gathered = fused_tokens.gather_embeddings(lookups, batch.num_events, dtype)
        projection = fused_tokens.joint_projection(
            self.item_part,
            self.action_part,
            gathered.shape[1],
        )
        if self.fusion is None:
            item_weights, action_weights = projection.chunk(2, dim=1)
            tokens: Tensor = gathered @ (item_weights + action_weights).to(gathered.dtype)
            return tokens
        return fused_tokens.fuse(
            gathered,
            projection,
            self.fusion.w_u.weight,
            self.fusion.w_v.weight,
            self.fusion.w_o.weight,
        )


def embedding(
    num_rows: int,
    dim: int,
    std: float,
) -> nn.Embedding:
    """Return a table with normal initial values of a given deviation."""
    table = nn.Embedding(num_rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table
