"""Ranker: a RequestBatch in, one logit per target and task out.

    item features --e--+--------------- x_t (targets) --> STCA --> z --+
    action features a--+-- fusion --> x (events) -------^              |-- [z ; user ; target ; context] --> RankMixer --> logits
    user features ------------------------------------------- user ----+
    hour and weekday of the request ------------------------- context -+

Shape letters: R requests, T packed events, N packed targets, D width, K tasks, I items, F item features.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.errors import ConfigError
from longrec.nn import casting, fused_tokens, parallel
from longrec.nn.baselines import history_reader
from longrec.nn.fused_stca import SideBySide
from longrec.nn.layers import (
    FEATURE_STD,
    NUM_GAP_BUCKETS,
    FeatureEmbedding,
    SwiGLUFFN,
    gap_buckets,
    linear,
)
from longrec.nn.matches import Matches
from longrec.nn.mixer import RankMixer
from longrec.nn.stca import STCA, Memory
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.cached import KeptKeysValues, Repeats
from longrec.schema import Schema

NUM_MIXER_TOKENS = 4
HOUR_MS, HOURS, DAYS = 3_600_000, 24, 7
CONTEXT_STD = 0.1
"""Initial deviation of the context's embeddings: next to nothing beside the other mixer tokens,
until data says more.
"""
EVENTS_OF_A_PIECE, TARGETS_OF_A_PIECE = 1_024, 256
"""Of work that is shared out (longrec.nn.parallel)."""
PRODUCTS = re.compile(
    r"(user_part|stca\.join|stca\.fuse\.\d+|aux_head|matches\.part)\.(weight|bias)|stca\.layers\.\d+\.w_[qo]"
    r"|mixer\.blocks\.\d+\.[wb]_(in|out)"
)
"""Parameters that nothing but products read: a whole pass casts them together
(longrec.nn.casting).
"""


@dataclasses.dataclass(frozen=True, slots=True)
class RankerOutput:
    """Logits of a batch, at least float32.

    Args:
        logits: [N, K].
        aux_logits: [N, K] from z alone, for the auxiliary loss (arXiv 2609.01240); None without it.
        aux_weight: of the auxiliary loss.
    """

    logits: Float[Tensor, "N K"]
    aux_logits: Float[Tensor, "N K"] | None = None
    aux_weight: float = 0.0


class Ranker(nn.Module):
    """STCA over the history, RankMixer head, one logit per task.

    Event token x = e + SwiGLUFFN([e ; a]) with e the item part and a the action part (arXiv
    2609.08443, appendix D), or e + a
    without `fusion`; target token x_t = e. The length of a history enters nowhere, since it would
    not extrapolate. Items are
    embedded and projected once per event, not once per distinct item: that costs less than 3 % of a
    layer's FFN, about as
    much as finding the distinct ones.

    The attribute `stca` is what reads the history: STCA, or with another `config.kind` a baseline
    that is called like it.

    Args:
        config: sizes and options.
        schema: of the features and tasks.
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
        width, dims = config.width, {"id_dim": config.id_dim, "feature_dim": config.feature_dim}
        self.register_buffer("item_table", item_table.to(torch.int32))
        self.items = FeatureEmbedding(schema.item, sizes["item"], **dims, id_std=config.id_std)
        self.items.check(item_table, "the item table")
        self.actions = FeatureEmbedding(schema.event, sizes["event"], **dims)
        self.users = FeatureEmbedding(schema.user, sizes["user"], **dims)
        self.gap = (
            _embedding(NUM_GAP_BUCKETS, config.feature_dim, FEATURE_STD)
            if config.recency == "token"
            else None
        )
        self.item_part = linear(self.items.out_width, width)
        self.action_part = linear(
            self.actions.out_width + (0 if self.gap is None else config.feature_dim),
            width,
            bias=True,
        )
        self.fusion = (
            SwiGLUFFN(width, config.ffn_ratio, in_width=2 * width) if config.fusion else None
        )
        self.stca = history_reader(config)
        self.matches = (
            Matches(item_table.shape[1], width, config.feature_dim) if config.matches else None
        )
        self.user_part = linear(self.users.out_width, width, bias=True)
        self.hour, self.day = (_embedding(size, width, CONTEXT_STD) for size in (HOURS, DAYS))
        self.mixer = RankMixer(config.mixer_layers, NUM_MIXER_TOKENS, width, config.ffn_ratio)
        self.head = linear(width, len(schema.tasks), bias=True)
        self.aux_head = (
            linear(width, len(schema.tasks), bias=True) if config.aux_loss_weight else None
        )
        self.config = config
        self.recency, self.aux_loss_weight = config.recency, config.aux_loss_weight
        self._products = {
            name: _owner(self, name)
            for name, _ in self.named_parameters()
            if PRODUCTS.fullmatch(name)
        }

    def forward(self, batch: RequestBatch) -> RankerOutput:
        """Returns the logits of all targets, in their order."""
        with casting.together(self._products, self.item_table.device):
            gaps = self.gaps(batch)
            targets, events = self._tokens(batch, gaps)
            z = self.stca(
                targets, events, batch.event_offsets, batch.target_offsets, gaps, batch.host_counts
            )
            return self._output(batch, targets, z)

    def encode(self, batch: RequestBatch) -> list[Tensor]:
        """Returns X_1 ... X_M of the events, each [T, D]; targets are not read.

        A row depends on its own event alone, so that it can be kept and appended to, except with
        `recency: token`, where
        it also depends on the moment of its request.
        """
        return self._separable().encode(self.event_tokens(batch, self.gaps(batch)))

    def keys_values(self, batch: RequestBatch, weights: SideBySide | None = None) -> list[Tensor]:
        """Returns keys and values of the events in each layer, each [T, 2 D], rows as independent
        as those of `encode`.

        Args:
            batch: targets are not read.
            weights: `side_by_side`, of a caller who comes again with the same parameters.
        """
        gaps = (
            None if self.gap is None else self.gaps(batch)
        )  # what a bias makes of them comes later
        if parallel.num_threads(batch.event_items) == 1 or batch.num_events <= EVENTS_OF_A_PIECE:
            return self._separable().keys_values(self.event_tokens(batch, gaps), weights)

        def of(start: int) -> list[Tensor]:
            rows = slice(start, start + EVENTS_OF_A_PIECE)
            part = dataclasses.replace(
                batch,
                event_items=batch.event_items[rows],
                event_features=batch.event_features[rows],
            )
            return self._separable().keys_values(
                self.event_tokens(part, None if gaps is None else gaps[rows]), weights
            )

        found = parallel.run(
            [
                functools.partial(of, start)
                for start in range(0, batch.num_events, EVENTS_OF_A_PIECE)
            ]
        )
        return [torch.cat(layer) for layer in zip(*found, strict=True)]

    def side_by_side(self) -> SideBySide | None:
        """Returns what `keys_values` reads of the stack as it is now, None where it reads layer by
        layer.
        """
        return self._separable().side_by_side()

    def kept(
        self,
        parts: Sequence[Sequence[Tensor]],
        timestamps: Sequence[Tensor],
        batch: RequestBatch,
        segments: Segments | None = None,
        repeats: Sequence[Repeats | None] | None = None,
    ) -> list[KeptKeysValues]:
        """Returns what `score` takes as `encoded`, for a batch that holds no events because their
        keys and values were kept.

        Args:
            parts: [R][M] of [L, 2 D], rows that `keys_values` made.
            timestamps: R of int64 [L], ms, of the events.
            batch: the requests.
            segments: of the parts side by side, where they are on their device already.
            repeats: R, equal events of each request, to be attended to once; None for a request to
                attend to all.
        """
        gaps = None
        if self.recency == "bias":
            gaps = [
                gap_buckets(request_time.expand(len(times)), times)
                for request_time, times in zip(
                    batch.request_timestamps.split(1), timestamps, strict=True
                )
            ]
        counts = (
            batch.target_offsets.diff().tolist()
            if batch.host_counts is None
            else batch.host_counts[1]
        )
        return self._separable().kept(parts, gaps, counts, segments, repeats)

    def score(self, batch: RequestBatch, encoded: Iterable[Memory]) -> RankerOutput:
        """Returns the logits of all targets over encoded or kept events; `score(batch,
        encode(batch))` equals `forward(batch)`.
        """
        targets = self.item_tokens(batch.target_items)
        z = self._separable().score(
            targets,
            encoded,
            batch.event_offsets,
            batch.target_offsets,
            self.gaps(batch),
            batch.host_counts,
        )
        return self._output(batch, targets, z)

    def recompute(self) -> None:
        """From now on the backward pass computes the history's FFN again instead of keeping its
        hidden rows; values do not change.

        Raises:
            ConfigError: the model reads its history in another way than STCA.
        """
        self._separable().recompute = True

    def _separable(self) -> STCA:
        if not isinstance(self.stca, STCA):
            raise ConfigError(
                "this model does not encode a history apart from its targets",
                found=self.config.kind,
                expected="model.kind stca",
                fix="Score whole batches instead.",
            )
        return self.stca

    def check(self, batch: RequestBatch) -> None:
        """Passes when every index of the batch is within its table; for the border, since it waits
        for the device.

        Raises:
            DataError: an index is outside its table, or offsets do not fit.
        """
        batch.validate(num_items=self.item_table.shape[0])
        self.actions.check(batch.event_features, "event features")
        self.users.check(batch.user_features, "user features")

    def gaps(self, batch: RequestBatch) -> Int[Tensor, " T"] | None:
        """Returns the time-gap bucket of each event, or None with `recency: none`."""
        if self.recency == "none":
            return None
        request_times = batch.request_timestamps.repeat_interleave(
            batch.event_offsets.diff(), output_size=batch.num_events
        )
        return gap_buckets(request_times, batch.event_timestamps)

    def item_tokens(self, items: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Returns e of rows of the item table."""
        tokens: Tensor = self.item_part(self.items(self.item_table.index_select(0, items)))
        return tokens

    def event_tokens(
        self, batch: RequestBatch, gaps: Int[Tensor, " T"] | None
    ) -> Float[Tensor, "T D"]:
        """Returns x of every event; the gaps are part of it only with `recency: token`."""
        if fused_tokens.usable(self.item_part, batch.event_items) and not (
            self.items.is_sharded or self.actions.is_sharded
        ):
            return self._fused_tokens(batch, gaps)
        return self._acted(self.item_tokens(batch.event_items), batch, gaps)

    def _tokens(self, batch: RequestBatch, gaps: Int[Tensor, " T"] | None) -> tuple[Tensor, Tensor]:
        """Returns x_t of the targets and x of the events; items whose table is sharded are looked
        up together.
        """
        if not self.items.is_sharded:
            return self.item_tokens(batch.target_items), self.event_tokens(batch, gaps)
        items = self.item_tokens(torch.cat([batch.target_items, batch.event_items]))
        return items[: batch.num_targets], self._acted(items[batch.num_targets :], batch, gaps)

    def _acted(
        self, items: Float[Tensor, "T D"], batch: RequestBatch, gaps: Int[Tensor, " T"] | None
    ) -> Float[Tensor, "T D"]:
        """Returns x of events from e of their items."""
        actions = self.actions(batch.event_features)
        if self.gap is not None and gaps is not None:
            actions = torch.cat([actions, self.gap(gaps)], dim=1)
        acted: Tensor = self.action_part(actions)
        if self.fusion is not None:
            acted = self.fusion(torch.cat([items, acted], dim=1))
        return items + acted

    def _fused_tokens(
        self, batch: RequestBatch, gaps: Int[Tensor, " T"] | None
    ) -> Float[Tensor, "T D"]:
        """Returns what `event_tokens` returns, with the kernels of a CUDA device."""
        lookups = [
            *self.items.lookups(self.item_table, batch.event_items),
            *self.actions.lookups(batch.event_features),
        ]
        if self.gap is not None and gaps is not None:
            zero = gaps.new_zeros(1)
            lookups.append(fused_tokens.Lookup(self.gap.weight, False, gaps[:, None], zero, zero))
        z = fused_tokens.embeddings(
            lookups, batch.num_events, fused_tokens.precision(self.item_part.weight)
        )
        b = fused_tokens.projection(self.item_part, self.action_part, z.shape[1])
        if self.fusion is None:
            tokens: Tensor = z @ (b[:, : b.shape[1] // 2] + b[:, b.shape[1] // 2 :]).to(z.dtype)
            return tokens
        return fused_tokens.fused(
            z, b, self.fusion.w_u.weight, self.fusion.w_v.weight, self.fusion.w_o.weight
        )

    def _output(
        self,
        batch: RequestBatch,
        targets: Tensor,
        z: Tensor,
    ) -> RankerOutput:
        """Returns the logits from z and the tokens of user, target and context."""
        hours = batch.request_timestamps.div(HOUR_MS, rounding_mode="floor")
        context = self.hour(hours.remainder(HOURS)) + self.day(
            hours.div(HOURS, rounding_mode="floor").remainder(DAYS)
        )
        user = self.user_part(self.users(batch.user_features))
        if self.matches is not None:
            targets = targets + self.matches(batch, self.item_table)
        counts = batch.target_offsets.diff()
        user, context = (
            part.repeat_interleave(counts, dim=0, output_size=batch.num_targets)
            for part in (user, context)
        )
        mixed = parallel.by_rows(
            self.mixer, torch.stack([z, user, targets, context], dim=1), TARGETS_OF_A_PIECE
        )
        with torch.autocast(
            mixed.device.type, enabled=False
        ):  # a logit above 2 that is rounded to 16 bits is off by 8e-3
            logits = _at_least_float32(self.head(mixed.to(self.head.weight.dtype)))
        aux_logits = None if self.aux_head is None else _at_least_float32(self.aux_head(z))
        return RankerOutput(logits, aux_logits, self.aux_loss_weight)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return module.get_submodule(path), last


def _embedding(num_rows: int, dim: int, std: float) -> nn.Embedding:
    table = nn.Embedding(num_rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
