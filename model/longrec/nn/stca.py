"""STCA: stacked target-to-history cross attention, with cost linear in the history.

Targets are the only queries.

    X (events) --LN(SwiGLUFFN_i)--> X_i          target-free, each row from its own event: `encode`
    x_t --> q_1 --attend X_1--> o_1 --+
    [o_1 | x_t] --> q_2 --attend X_2--> o_2 --+  per target, linear in the events: `score`
    [o_1 | o_2 | x_t] --> z

Shape letters: R requests, T packed events, N packed targets, D width, H heads, M layers, L events
(U distinct ones) of one request, G gap buckets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longrec.config import ModelConfig
from longrec.nn.fused import stca as fused_stca
from longrec.nn.fused.stca import StackedWeights
from longrec.nn.layers import SwiGLUFFN, linear
from longrec.nn.stca_layer import STCALayer
from longrec.nn.target_attention import Segments
from longrec.nn.target_attention.cached import CachedKeysValues, DuplicateEvents
from longrec.nn.target_attention.sources import AttentionSource

log = logging.getLogger(__name__)

MIN_FUSION_LAYERS = 3
"""Query fusion first matters in the third layer, which has two earlier outputs to fuse."""


class STCA(nn.Module):
    """z of every target: M layers that all read the raw event tokens.

    Queries are fused from the outputs of all earlier layers. Bias-free, no residual, no dropout.

    q_1 = LN(SwiGLUFFN_1(x_t)); q_{i+1} = LN(SwiGLUFFN_{i+1}([o_1 | ... | o_i | x_t] W_C));
    z = SwiGLUFFN([o_1 | ... | o_M | x_t] W_Z), plus its input with `output_residual` (ours).

    There are three ways to z; the first and the second give equal values:

        forward                                        training
        encode -> score                                one encoding per layer, then all targets
        keys_values -> cached_sources -> score         serving: keys and values come from a cache

    Args:
        config: sizes and options.

    Attributes (they change speed and memory, never values, and are not part of a saved model):
        chunk_events: events encoded at a time; 0 for all at once.
        recompute: whether the backward pass encodes again instead of storing hidden rows.

    Source: arXiv 2511.06077, STCA.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        depth = config.num_layers
        if not config.query_fusion and depth < MIN_FUSION_LAYERS:
            log.warning(
                "model.query_fusion=false changes nothing in %d layers: the third layer is the"
                " first with several outputs to fuse",
                depth,
            )
        self.query_fusion = config.query_fusion
        self.layers = nn.ModuleList(STCALayer(config) for _ in range(depth))
        self.fuse = nn.ModuleList()  # W_C of layers 2 ... M
        for layer in range(1, depth):
            num_outputs = layer if config.query_fusion else 1
            self.fuse.append(linear((num_outputs + 1) * width, width))
        self.join = linear((depth + 1) * width, width)  # W_Z
        self.out = SwiGLUFFN(width, config.ffn_ratio)  # the FFN of z
        self.output_residual = config.output_residual
        self.out_norm = nn.LayerNorm(width) if config.output_norm else None
        self.chunk_events = 0
        self.recompute = False

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z of every target.

        It equals `score(targets, encode(events), ...)`, but holds one layer's encoding at a time.

        Args:
            targets: x_t.
            events: X, raw event tokens, the requests one after another.
            segments: rows of each request.
            gaps: bucket of the time gap of each event, for `recency: bias`.
        """
        layers = self._layers()
        if not fused_stca.usable(layers, events):
            return self.score(targets, self._encodings(events), segments, gaps)
        sources = fused_stca.attention_sources(
            layers,
            events,
            segments,
            gaps,
            recompute=self.recompute,
        )
        return self.score(targets, sources, segments, gaps)

    def encode(self, events: Float[Tensor, "T D"]) -> list[Tensor]:
        """Return X_1 ... X_M, each [T, D]: the target-free half, which a cache can store."""
        return list(self._encodings(events))

    def stack_weights(self) -> StackedWeights | None:
        """Return copies of the current weights that `keys_values` reads.

        None if it reads them layer by layer.
        """
        return StackedWeights.from_layers(self._layers())

    def keys_values(
        self,
        events: Float[Tensor, "T D"],
        weights: StackedWeights | None = None,
    ) -> list[Tensor]:
        """Return keys and values of each layer, M of [T, 2 D], to be cached per event.

        Args:
            events: X, raw event tokens.
            weights: result of `stack_weights`, to reuse while the parameters do not change; None
                stacks them now.
        """
        layers = self._layers()
        weights = weights or self.stack_weights()
        if weights is None:
            return [layer.keys_values(events) for layer in layers]
        return weights.keys_values(events, layers[0].num_heads)

    def score(
        self,
        targets: Float[Tensor, "N D"],
        sources: Iterable[AttentionSource],
        segments: Segments,
        gaps: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Return z of every target.

        Args:
            targets, segments, gaps: as in `forward`.
            sources: one for each layer, from `encode` or `cached_sources`.
        """
        outputs: list[Tensor] = []
        for index, (layer, source) in enumerate(zip(self._layers(), sources, strict=True)):
            query = layer.query(self._query_input(index, outputs, targets))
            outputs.append(layer.attend(query, source, segments, gaps))
        joined = self.join(torch.cat([*outputs, targets], dim=1))
        z: Tensor = self.out(joined)
        if self.output_residual:
            z = z + joined
        if self.out_norm is None:
            return z
        normed: Tensor = self.out_norm(z)
        return normed

    def cached_sources(
        self,
        layers_by_request: Sequence[Sequence[Tensor]],
        gaps: Sequence[Tensor] | None,
        num_targets: Sequence[int],
        *,
        segments: Segments | None = None,
        duplicates: Sequence[DuplicateEvents | None] | None = None,
    ) -> list[CachedKeysValues]:
        """Return the attention source of each layer from cached keys and values.

        Args:
            layers_by_request: R lists of M tensors [L, 2 D], rows that `keys_values` made.
            gaps: R of [L], bucket of the time gap of each event, for `recency: bias`.
            num_targets: targets of each request.
            segments: of the requests one after another, already on the device; None makes them.
            duplicates: R, duplicate events of each request, to attend to once; None for a request
                that attends to all.
        """
        num_requests = len(layers_by_request)
        no_gaps: list[Tensor | None] = [None] * num_requests
        duplicates = duplicates or [None] * num_requests
        attended_rows = [None if found is None else found.first_index for found in duplicates]
        table = None if gaps is None else self._gap_bias_table()
        biases_by_request = [
            self._cached_biases(table, own_gaps, own_duplicates)
            for own_gaps, own_duplicates in zip(gaps or no_gaps, duplicates, strict=True)
        ]
        if segments is None:
            segments = _cached_segments(layers_by_request, attended_rows, num_targets)
        sources = []
        for index, layer in enumerate(self._layers()):
            keys_values = [layers[index] for layers in layers_by_request]
            biases = [None if layers is None else layers[index] for layers in biases_by_request]
            source = CachedKeysValues(
                keys_values,
                biases,
                layer.num_heads,
                num_targets,
                segments,
                attended_rows,
            )
            sources.append(source)
        return sources

    def _gap_bias_table(self) -> Tensor | None:
        """Return the bias by layer, head and gap bucket, float32 [M H, G]; None without biases."""
        layers = self._layers()
        tables: list[Tensor] = [layer.gap_bias for layer in layers if layer.gap_bias is not None]
        if not tables:
            return None
        return torch.stack(tables).float().transpose(1, 2).flatten(0, 1)

    def _cached_biases(
        self,
        table: Tensor | None,
        gaps: Tensor | None,
        duplicates: DuplicateEvents | None,
    ) -> Tensor | None:
        """Return the bias of the events of one request in every layer, or None without any.

        It is float32 [M, H, L], or [M, H, U] with duplicates. Duplicates have a bias even without a
        table: the log of their number.
        """
        num_layers = len(self.layers)
        num_heads = self._layers()[0].num_heads
        if table is None or gaps is None:  # no gap bias
            if duplicates is None:
                return None
            zeros = self.join.weight.new_zeros((num_layers * num_heads, 1))
            biases = duplicates.bias(zeros, None)
        elif duplicates is None:
            biases = table.index_select(1, gaps)
        else:
            biases = duplicates.bias(table, gaps)
        by_layer: Tensor = biases.unflatten(0, (num_layers, num_heads))
        return by_layer

    def _query_input(
        self,
        index: int,
        outputs: list[Tensor],
        targets: Tensor,
    ) -> Tensor:
        """Return the input of the query of one layer: x_t, fused with earlier outputs."""
        if index == 0:
            return targets
        fused_outputs = outputs if self.query_fusion else outputs[-1:]
        mixed: Tensor = self.fuse[index - 1](torch.cat([*fused_outputs, targets], dim=1))
        return mixed

    def _encodings(self, events: Tensor) -> Iterator[Tensor]:
        """Yield X_i layer by layer: scoring without gradients holds one of them at a time."""
        chunks = events.split(self.chunk_events) if self.chunk_events else (events,)
        for layer in self._layers():
            encoded = [self._encode(layer, chunk) for chunk in chunks]
            yield encoded[0] if len(encoded) == 1 else torch.cat(encoded)

    def _encode(
        self,
        layer: STCALayer,
        events: Tensor,
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer.encode, events, use_reentrant=False)
            return recomputed
        return layer.encode(events)

    def _layers(self) -> list[STCALayer]:
        """Return the layers with their type, which nn.ModuleList does not state."""
        return [cast("STCALayer", layer) for layer in self.layers]


def _cached_segments(
    layers_by_request: Sequence[Sequence[Tensor]],
    attended_rows: Sequence[Tensor | None],
    num_targets: Sequence[int],
) -> Segments | None:
    """Return the segments that the kernels of a CUDA device read; None on other devices."""
    first_layers = [layers[0] for layers in layers_by_request]
    device = first_layers[0].device
    if device.type != "cuda":
        return None
    num_events = []
    for keys_values, rows in zip(first_layers, attended_rows, strict=True):
        attended = keys_values if rows is None else rows
        num_events.append(len(attended))
    return Segments.from_counts(num_events, num_targets, device)
