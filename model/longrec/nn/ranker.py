"""Ranker: a RequestBatch in, one logit per target and task out.

    item features --e--+--------------- x_t (targets) --> STCA --> z ---+
    action features a--+-- fusion --> x (events) -------^               |
    user features ------------------------------------------- user -----+
    hour and weekday of the request ------------------------- context --+
                                                                        |
                        [z ; user ; target ; context] --> RankMixer --> logits

Shape letters: R requests, T packed events, N packed targets, D width, K tasks, I items, F item
features, M layers, L events of one request.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.config import NUM_MIXER_TOKENS, ModelConfig
from longrec.data.batch import RequestBatch
from longrec.errors import ConfigError
from longrec.nn import casting, parallel
from longrec.nn.baselines import sequence_model
from longrec.nn.crosses import Crosses
from longrec.nn.dropout import StepDropout
from longrec.nn.fused.stca import StackedWeights
from longrec.nn.item_rates import ItemRates
from longrec.nn.layers import linear
from longrec.nn.match_features import MatchFeatures
from longrec.nn.mixer import RankMixer
from longrec.nn.stca import STCA
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.cached import CachedKeysValues, DuplicateEvents
from longrec.nn.target_attention.sources import AttentionSource
from longrec.nn.time_gaps import gap_buckets
from longrec.nn.tokens import TokenLayers, embedding
from longrec.schema import Schema

HOUR_MS = 3_600_000
HOURS_PER_DAY = 24
DAYS_PER_WEEK = 7
CONTEXT_STD = 0.1
"""Initial deviation of the context embeddings: small, until data says more."""
ENCODE_CHUNK_EVENTS = 1_024
"""Events that one thread encodes at a time (longrec.nn.parallel)."""
HEAD_CHUNK_TARGETS = 256
"""Targets that pass the head in one thread at a time (longrec.nn.parallel)."""
MATMUL_PARAMETERS = re.compile(
    r"(user_part|crosses\.part|stca\.join|stca\.fuse\.\d+|aux_head|matches\.part|item_rates\.part)\.(weight|bias)"
    r"|stca\.layers\.\d+\.w_[qo]"
    r"|mixer\.blocks\.\d+\.[wb]_(in|out)"
)
"""Names of the parameters that only matrix products read.

longrec.nn.casting casts all of them in one operation.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class RankerOutput:
    """Logits of a batch, at least float32.

    Args:
        logits: [N, K].
        aux_logits: [N, K] from z alone, for the auxiliary loss (arXiv 2609.01240); None without it.
        aux_loss_weight: weight of the auxiliary loss.
    """

    logits: Float[Tensor, "N K"]
    aux_logits: Float[Tensor, "N K"] | None = None
    aux_loss_weight: float = 0.0


class Ranker(TokenLayers):
    """STCA over the history, RankMixer head, one logit per task.

    The length of a history enters nowhere, since it would not extrapolate.

    The attribute `stca` reads the history: STCA, or with another `config.kind` a baseline that is
    called like it. Attributes that hold modules are parts of the names of saved weights and cannot
    be renamed. This is also why the ranker inherits the token layers instead of holding them.

    Args:
        config: sizes and options.
        schema: of the features and tasks.
        sizes: rows of each feature's table, by group (Encoder.sizes).
        item_table: int [num_items + 1, F], indices of the item features; row 0 is the unknown item.

    Raises:
        DataError: the item table or the sizes do not fit the schema.
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        sizes: Mapping[str, Sequence[int]],
        item_table: Int[Tensor, "I F"],
    ) -> None:
        super().__init__(config, schema, sizes, item_table)
        self.config = config
        self.aux_loss_weight = config.aux_loss_weight
        self.stca = sequence_model(config)  # a baseline, too: saved weights have this name
        self.step_dropout: StepDropout | None = None
        self.matches = None
        if config.matches:
            self.matches = MatchFeatures(
                item_table.shape[1], config.width, config.feature_dim, len(schema.tasks)
            )
        self.item_rates = None
        if config.item_rates:
            num_values = (item_table.shape[0], *sizes["item"][1:])
            self.item_rates = ItemRates(num_values, config.width, len(schema.tasks))
        self._add_head_layers(len(schema.tasks))
        self._matmul_slots = casting.parameter_slots(self, MATMUL_PARAMETERS)

    def _add_head_layers(self, num_tasks: int) -> None:
        """Add the layers from z to the logits."""
        config = self.config
        width = config.width
        self.user_part = linear(self.users.out_width, width, bias=True)
        self.crosses = Crosses(width) if config.crosses else None
        self.hour = embedding(HOURS_PER_DAY, width, CONTEXT_STD)
        self.day = embedding(DAYS_PER_WEEK, width, CONTEXT_STD)
        self.mixer = RankMixer(config.mixer_layers, NUM_MIXER_TOKENS, width, config.ffn_ratio)
        self.head = linear(width, num_tasks, bias=True)
        self.aux_head = linear(width, num_tasks, bias=True) if config.aux_loss_weight else None

    def forward(self, batch: RequestBatch) -> RankerOutput:
        """Return the logits of all targets, in their order."""
        with casting.cast_weights_once(self._matmul_slots, self.item_table.device):
            gaps = self.gaps(batch)
            targets, events = self._training_tokens(batch, gaps)
            z = self.stca(targets, events, _segments(batch), gaps)
            return self._output(batch, targets, z)

    def _training_tokens(
        self,
        batch: RequestBatch,
        gaps: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return x_t of the targets and x of the events, in training with dropout."""
        dropout = self.step_dropout
        if dropout is None or not self.training:
            return self.target_and_event_tokens(batch, gaps)
        hidden = dropout.hide_ids(batch, self.item_table.shape[0])
        targets, events = self.target_and_event_tokens(hidden, gaps)
        return dropout.drop_token(targets), dropout.drop_token(events)

    def encode(self, batch: RequestBatch) -> list[Tensor]:
        """Return X_1 ... X_M of the events, each [T, D]; targets are not read.

        A row depends on its own event alone, so a cache can store it and append to it. With
        `recency: token` it also depends on the time of its request.
        """
        return self._stca_or_raise().encode(self.event_tokens(batch, self.gaps(batch)))

    def keys_values(
        self,
        batch: RequestBatch,
        weights: StackedWeights | None = None,
    ) -> list[Tensor]:
        """Return keys and values of the events in each layer, M of [T, 2 D].

        Rows are as independent as those of `encode`.

        Args:
            batch: targets are not read.
            weights: result of `stack_weights`, to reuse while the parameters do not change; None
                stacks them now.
        """
        # Tokens need the gaps with `recency: token` only. A gap bias enters the logits later
        # (`cached_sources`).
        gaps = None if self.gap is None else self.gaps(batch)
        num_threads = parallel.num_threads_for(batch.event_items)
        if num_threads == 1 or batch.num_events <= ENCODE_CHUNK_EVENTS:
            return self._chunk_keys_values(batch, gaps, weights)
        chunks = []
        for start in range(0, batch.num_events, ENCODE_CHUNK_EVENTS):
            rows = slice(start, start + ENCODE_CHUNK_EVENTS)
            # `event_tokens` reads items and features only, so the other fields need no cut.
            part = dataclasses.replace(
                batch,
                event_items=batch.event_items[rows],
                event_features=batch.event_features[rows],
            )
            part_gaps = None if gaps is None else gaps[rows]
            chunks.append(functools.partial(self._chunk_keys_values, part, part_gaps, weights))
        by_chunk = parallel.run_chunks(chunks)
        return [torch.cat(layer) for layer in zip(*by_chunk, strict=True)]

    def _chunk_keys_values(
        self,
        batch: RequestBatch,
        gaps: Tensor | None,
        weights: StackedWeights | None,
    ) -> list[Tensor]:
        events = self.event_tokens(batch, gaps)
        return self._stca_or_raise().keys_values(events, weights)

    def stack_weights(self) -> StackedWeights | None:
        """Return copies of the current weights that `keys_values` reads.

        None if it reads them layer by layer.
        """
        return self._stca_or_raise().stack_weights()

    def cached_sources(
        self,
        layers_by_request: Sequence[Sequence[Tensor]],
        timestamps: Sequence[Tensor],
        batch: RequestBatch,
        *,
        segments: Segments | None = None,
        duplicates: Sequence[DuplicateEvents | None] | None = None,
    ) -> list[CachedKeysValues]:
        """Return the attention sources of cached keys and values, for `score`.

        Args:
            layers_by_request: R lists of M tensors [L, 2 D], rows that `keys_values` made.
            timestamps: R of int64 [L], ms, of the events.
            batch: the requests; its own events are not read.
            segments: of the requests one after another, already on the device; None makes them.
            duplicates: R, duplicate events of each request, to attend to once; None for a request
                that attends to all.
        """
        gaps = None
        if self.recency == "bias":
            requests = zip(batch.request_timestamps.split(1), timestamps, strict=True)
            gaps = [gap_buckets(time.expand(len(events)), events) for time, events in requests]
        if batch.host_counts is not None:
            _, num_targets = batch.host_counts
        else:
            num_targets = batch.target_offsets.diff().tolist()
        return self._stca_or_raise().cached_sources(
            layers_by_request,
            gaps,
            num_targets,
            segments=segments,
            duplicates=duplicates,
        )

    def score(
        self,
        batch: RequestBatch,
        sources: Iterable[AttentionSource],
    ) -> RankerOutput:
        """Return the logits of all targets; `score(batch, encode(batch))` equals `forward(batch)`.

        Args:
            batch: the requests.
            sources: one for each layer, from `encode` or `cached_sources`.
        """
        targets = self.item_tokens(batch.target_items)
        z = self._stca_or_raise().score(
            targets,
            sources,
            _segments(batch),
            self.gaps(batch),
        )
        return self._output(batch, targets, z)

    def enable_recompute(self) -> None:
        """Let the backward pass compute the FFN of the history again, to store no hidden rows.

        Values do not change.

        Raises:
            ConfigError: the model reads its history in another way than STCA.
        """
        self._stca_or_raise().recompute = True

    def _output(
        self,
        batch: RequestBatch,
        targets: Tensor,
        z: Tensor,
    ) -> RankerOutput:
        """Return the logits from z and the tokens of user, target and context."""
        user = self.user_part(self.users(batch.user_features))
        context = self._context(batch.request_timestamps)
        wide_logits = []
        for features in (self.matches, self.item_rates):
            if features is not None:
                row, feature_logits = features(batch, self.item_table)
                targets = targets + row
                wide_logits.append(feature_logits)
        repeat = functools.partial(
            torch.repeat_interleave,
            repeats=batch.target_offsets.diff(),
            dim=0,
            output_size=batch.num_targets,
        )
        user = repeat(user)
        if self.crosses is not None:
            user, z = self.crosses(user, z, targets)
        tokens = torch.stack([z, user, targets, repeat(context)], dim=1)
        if self.step_dropout is not None and self.training:
            tokens = self.step_dropout.drop_head(tokens)
        mixed = parallel.map_rows(self.mixer, tokens, HEAD_CHUNK_TARGETS)
        # Without autocast: a logit above 2 would be rounded to 16 bits, off by up to 8e-3.
        with torch.autocast(mixed.device.type, enabled=False):
            logits = _at_least_float32(self.head(mixed.to(self.head.weight.dtype)))
            for feature_logits in wide_logits:
                logits = logits + feature_logits
        if self.aux_head is None:
            return RankerOutput(logits, aux_loss_weight=self.aux_loss_weight)
        aux_logits = _at_least_float32(self.aux_head(z))
        return RankerOutput(logits, aux_logits, self.aux_loss_weight)

    def _context(self, request_times: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        """Return the context tokens from the hour and the weekday of the requests."""
        hours = request_times.div(HOUR_MS, rounding_mode="floor")
        days = hours.div(HOURS_PER_DAY, rounding_mode="floor")
        hour: Tensor = self.hour(hours.remainder(HOURS_PER_DAY))
        day: Tensor = self.day(days.remainder(DAYS_PER_WEEK))
        return hour + day

    def _stca_or_raise(self) -> STCA:
        """Return the STCA that encodes histories apart from targets.

        Raises:
            ConfigError: the model reads its history in another way.
        """
        if not isinstance(self.stca, STCA):
            raise ConfigError(
                "this model does not encode a history apart from its targets",
                found=self.config.kind,
                expected="model.kind stca",
                fix="Score whole batches instead.",
            )
        return self.stca


def _segments(batch: RequestBatch) -> Segments:
    return Segments.from_offsets(
        batch.event_offsets,
        batch.target_offsets,
        batch.host_counts,
    )


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
