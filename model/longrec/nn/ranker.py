"""Ranker: a RequestBatch in, one logit per target and task out.

    item features --e--+--------------- x_t (targets) --> STCA --> z --+
    action features a--+-- fusion --> x (events) -------^              |-- [z ; user ; target ; context] --> RankMixer --> logits
    user features ------------------------------------------- user ----+
    hour and weekday of the request ------------------------- context -+
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.layers import NUM_GAP_BUCKETS, FeatureEmbedding, SwiGLUFFN, gap_buckets
from longrec.nn.mixer import RankMixer
from longrec.nn.stca import STCA
from longrec.schema import Schema

NUM_MIXER_TOKENS = 4
HOUR_MS, HOURS, DAYS = 3_600_000, 24, 7


@dataclasses.dataclass(frozen=True, slots=True)
class RankerOutput:
    """Logits of a batch.

    Args:
        logits: float [N, K].
        aux_logits: float [N, K] from z alone, for the auxiliary loss; None without it.
        aux_weight: of the auxiliary loss.
    """

    logits: Float[Tensor, "N K"]
    aux_logits: Float[Tensor, "N K"] | None = None
    aux_weight: float = 0.0


class Ranker(nn.Module):
    """STCA over the history, RankMixer head, one logit per task.

    Event token x = e + SwiGLUFFN([e ; a]), e the item part and a the action part (arXiv 2609.08443, appendix D); target token
    x_t = e. The length of the history enters nowhere: it would not extrapolate.

    Args:
        config: sizes and options.
        schema: of the features and tasks.
        sizes: rows of each feature's table, by group (Encoder.sizes).
        item_table: int [num_items + 1, F], indices of the item features; row 0 is the unknown item.
    """

    item_table: Tensor

    def __init__(self, config: ModelConfig, schema: Schema, sizes: Mapping[str, Sequence[int]], item_table: Int[Tensor, "I F"]) -> None:
        super().__init__()
        width, dims = config.width, {"id_dim": config.id_dim, "feature_dim": config.feature_dim}
        self.register_buffer("item_table", item_table.to(torch.int32))
        self.items = FeatureEmbedding(schema.item, sizes["item"], **dims)
        self.actions = FeatureEmbedding(schema.event, sizes["event"], **dims)
        self.users = FeatureEmbedding(schema.user, sizes["user"], **dims)
        self.item_part = nn.Linear(self.items.out_width, width, bias=False)
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, config.feature_dim) if config.recency == "token" else None
        self.action_part = nn.Linear(self.actions.out_width + (config.feature_dim if self.gap is not None else 0), width)
        self.fusion = SwiGLUFFN(width, config.ffn_ratio, in_width=2 * width) if config.fusion else None
        self.stca = STCA(config)
        self.user_part = nn.Linear(self.users.out_width, width)
        self.hour, self.day = nn.Embedding(HOURS, width), nn.Embedding(DAYS, width)
        self.mixer = RankMixer(config.mixer_layers, NUM_MIXER_TOKENS, width, config.ffn_ratio)
        self.head = nn.Linear(width, len(schema.tasks))
        self.aux_head = nn.Linear(width, len(schema.tasks)) if config.aux_loss_weight else None
        for linear in (self.item_part, self.action_part):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.recency, self.aux_loss_weight = config.recency, config.aux_loss_weight

    def forward(self, batch: RequestBatch) -> RankerOutput:
        """Returns the logits of all targets, in their order."""
        gaps = self.gaps(batch)
        target_tokens = self.item_tokens(batch.target_items)
        z = self.stca(target_tokens, self.event_tokens(batch, gaps), batch.event_offsets, batch.target_offsets, gaps)
        return self.head_output(batch, target_tokens, z)

    def gaps(self, batch: RequestBatch) -> Int[Tensor, " T"] | None:
        """Returns the time-gap bucket of each event, or None where recency is not used."""
        if self.recency == "none":
            return None
        moments = batch.request_timestamps.repeat_interleave(batch.event_offsets.diff(), output_size=batch.num_events)
        return gap_buckets(moments, batch.event_timestamps)

    def item_tokens(self, items: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Returns e of rows of the item table."""
        tokens: Tensor = self.item_part(self.items(self.item_table[items.long()]))
        return tokens

    def event_tokens(self, batch: RequestBatch, gaps: Int[Tensor, " T"] | None) -> Float[Tensor, "T D"]:
        """Returns x of every event; depends on the request's moment only with `recency: token`."""
        items, actions = self.item_tokens(batch.event_items), self.actions(batch.event_features)
        if self.gap is not None and gaps is not None:
            actions = torch.cat([actions, self.gap(gaps)], dim=1)
        acted = self.action_part(actions)
        if self.fusion is None:
            summed: Tensor = items + acted
            return summed
        fused: Tensor = items + self.fusion(torch.cat([items, acted], dim=1))
        return fused

    def head_output(self, batch: RequestBatch, target_tokens: Float[Tensor, "N D"], z: Float[Tensor, "N D"]) -> RankerOutput:
        """Returns the logits from z and the tokens of target, user and context."""
        counts = batch.target_offsets.diff()
        hours = batch.request_timestamps.div(HOUR_MS, rounding_mode="floor")
        context = self.hour(hours.remainder(HOURS)) + self.day(hours.div(HOURS, rounding_mode="floor").remainder(DAYS))
        user = self.user_part(self.users(batch.user_features).to(context.dtype))
        shared = torch.stack([user, context.to(user.dtype)], dim=1).repeat_interleave(counts, dim=0, output_size=batch.num_targets)
        tokens = torch.stack([z.to(user.dtype), shared[:, 0], target_tokens.to(user.dtype), shared[:, 1]], dim=1)
        logits = self.head(self.mixer(tokens)).float() if user.dtype != torch.float64 else self.head(self.mixer(tokens))
        return RankerOutput(logits, None if self.aux_head is None else self.aux_head(z), self.aux_loss_weight)
