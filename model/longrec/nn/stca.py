"""STCA: stacked target-to-history cross attention. Targets are the only queries; cost is linear in
the history.

    X (events) --LN(SwiGLUFFN_i)--> X_i          target-free, each row from its own event: `encode`
    x_t --> q_1 --attend X_1--> o_1 --+
    [o_1 | x_t] --> q_2 --attend X_2--> o_2 --+  per target, linear in the events: `score`
    [o_1 | o_2 | x_t] --> z

Shape letters: R requests, T packed events, N packed targets, D width, H heads, M layers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from longrec.config import ModelConfig
from longrec.nn import fused_stca
from longrec.nn.layers import NUM_GAP_BUCKETS, PlainFFN, ResidualFFN, SwiGLUFFN, linear
from longrec.nn.target_attention import AttentionInputs, Segments, attend, fused, keys_values_weight
from longrec.nn.target_attention.cached import KeptKeysValues, Repeats

log = logging.getLogger(__name__)

QK_GAIN = 2.0
FFNS = {"swiglu": SwiGLUFFN, "plain": PlainFFN, "residual": ResidualFFN}
Memory: TypeAlias = Tensor | fused.KeysValues | fused.Tokens | KeptKeysValues
"""What a layer's queries attend to: X_i of the events, what longrec.nn.fused_stca made of them, or
what a cache kept.
"""


class Layer(nn.Module):
    """One layer: the encoding X_i = LN(SwiGLUFFN_i(X)), the query q_i and the attention output o_i.

    With `share_ffn` the query passes the FFN and norm of the history (the literal reading), else
    copies of them.

    Initial values, ours: W_K = W_Q = QK_GAIN times an orthogonal matrix, so that a query looks,
    before any training, for events
    that are encoded like its own target, and few of them outweigh a long history. It shortens the
    plateau at the base rate where
    learning rates are high or histories long, and changes nothing where training is gentle
    (docs/log.md).

    Source: arXiv 2511.06077, STCA.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.ffn = FFNS[config.ffn](width, config.ffn_ratio)
        self.norm = nn.LayerNorm(width)
        self.query_ffn = None if config.share_ffn else copy.deepcopy(self.ffn)
        self.query_norm = None if config.share_ffn else nn.LayerNorm(width)
        self.w_q, self.w_v, self.w_o = (_orthogonal(width, gain) for gain in (QK_GAIN, 1.0, 1.0))
        self.w_k = nn.Parameter(self.w_q.detach().clone())
        self.gap_bias = (
            nn.Parameter(torch.zeros(NUM_GAP_BUCKETS, config.num_heads))
            if config.recency == "bias"
            else None
        )
        self.num_heads, self.order = config.num_heads, config.attention

    def encode(self, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Returns X_i of the raw event tokens X; each row depends on its own event only."""
        encoded: Tensor = self.norm(self.ffn(events))
        return encoded

    def query(self, mixed: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns q_i of x_t or of the fused former outputs."""
        if self.query_ffn is None or self.query_norm is None:
            return self.encode(mixed)
        separate: Tensor = self.query_norm(self.query_ffn(mixed))
        return separate

    def keys_values(self, events: Float[Tensor, "T D"]) -> Float[Tensor, "T D2"]:
        """Returns keys and values of the raw event tokens X, for
        longrec.nn.target_attention.cached.
        """
        return self.encode(events) @ keys_values_weight(self.w_k, self.w_v, self.num_heads)

    def attend(
        self,
        queries: Float[Tensor, "N D"],
        encoded: Memory,
        segments: Segments,
        gaps: Int[Tensor, " T"] | None,
    ) -> Float[Tensor, "N D"]:
        """Returns o_i; zeros for an empty history. `encoded` is X_i, or what else holds the
        events.
        """
        if not isinstance(encoded, Tensor):
            output: Tensor = (
                encoded.attend(queries @ self.w_q * (queries.shape[1] // self.num_heads) ** -0.5)
                @ self.w_o
            )
            return output
        bias = (
            None
            if self.gap_bias is None or gaps is None
            else functional.embedding(gaps, self.gap_bias)
        )
        inputs = AttentionInputs(
            queries, encoded, self.w_q, self.w_k, self.w_v, self.num_heads, segments, bias
        )
        return attend(inputs, self.order) @ self.w_o


class STCA(nn.Module):
    """z of every target: M layers that all read the raw event tokens, queries fused from all former
    outputs.

    q_1 = LN(SwiGLUFFN_1(x_t)); q_{i+1} = LN(SwiGLUFFN_{i+1}([o_1 | ... | o_i | x_t] W_C)); z =
    SwiGLUFFN([o_1 | ... | o_M | x_t] W_Z).
    Bias-free, no residual, no dropout.

    Attributes (they change speed and memory, never values, and are not part of a model):
        chunk: events encoded at a time; 0 for all at once.
        recompute: whether the backward pass encodes anew instead of keeping the FFN's hidden rows.

    Source: arXiv 2511.06077, STCA.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, depth = config.width, config.num_layers
        if not config.query_fusion and depth < 3:
            log.warning(
                "model.query_fusion=false changes nothing in %d layers: there are several outputs to fuse from the third on",
                depth,
            )
        self.layers = nn.ModuleList(Layer(config) for _ in range(depth))
        seen = [number if config.query_fusion else 1 for number in range(1, depth)]
        self.fuse = nn.ModuleList(linear((number + 1) * width, width) for number in seen)
        self.join = linear((depth + 1) * width, width)
        self.out = SwiGLUFFN(width, config.ffn_ratio)
        self.out_norm = nn.LayerNorm(width) if config.output_norm else None
        self.query_fusion, self.chunk, self.recompute = config.query_fusion, 0, False

    def forward(
        self,
        targets: Float[Tensor, "N D"],
        events: Float[Tensor, "T D"],
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        gaps: Int[Tensor, " T"] | None = None,
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Returns z of every target; `score` of `encode`, one layer's encoding at a time.

        Args:
            targets: x_t.
            events: X, raw event tokens, the requests one after another.
            event_offsets, target_offsets: int64 [R+1].
            gaps: bucket of the time gap of each event, for `recency: bias`.
            counts: events and targets of each request, where the host knows them.
        """
        segments, layers = Segments.of(event_offsets, target_offsets, counts), self._layers()
        if fused_stca.usable(layers, events):
            memories = fused_stca.memories(layers, events, segments, gaps, recompute=self.recompute)
            return self._score(targets, memories, segments, gaps)
        return self._score(targets, self._encodings(events), segments, gaps)

    def encode(self, events: Float[Tensor, "T D"]) -> list[Tensor]:
        """Returns X_1 ... X_M, each [T, D]: the target-free half, which a cache can keep per
        event.
        """
        return list(self._encodings(events))

    def side_by_side(self) -> fused_stca.SideBySide | None:
        """Returns what `keys_values` reads of the layers as they are now, None where it reads them
        one after another.
        """
        return fused_stca.SideBySide.of(self._layers())

    def keys_values(
        self, events: Float[Tensor, "T D"], weights: fused_stca.SideBySide | None = None
    ) -> list[Tensor]:
        """Returns keys and values of each layer, each [T, 2 D]: what a cache keeps per event where
        many targets are to be scored.

        Args:
            events: X, raw event tokens.
            weights: `side_by_side`, of a caller who comes again with the same parameters.
        """
        layers, weights = self._layers(), weights or self.side_by_side()
        if weights is None:
            return [layer.keys_values(events) for layer in layers]
        return weights.keys_values(events, layers[0].num_heads)

    def score(
        self,
        targets: Float[Tensor, "N D"],
        encoded: Iterable[Memory],
        event_offsets: Int[Tensor, " R1"],
        target_offsets: Int[Tensor, " R1"],
        gaps: Int[Tensor, " T"] | None = None,
        counts: tuple[list[int], list[int]] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Returns z of every target; arguments as in `forward`, `encoded` as `encode` returns it or
        kept keys and values by layer.
        """
        return self._score(
            targets, encoded, Segments.of(event_offsets, target_offsets, counts), gaps
        )

    def kept(
        self,
        parts: Sequence[Sequence[Tensor]],
        gaps: Sequence[Tensor] | None,
        num_targets: Sequence[int],
        segments: Segments | None = None,
        repeats: Sequence[Repeats | None] | None = None,
    ) -> list[KeptKeysValues]:
        """Returns what each layer attends to of R requests.

        Args:
            parts: [R][M] of [L, 2 D], rows that `keys_values` made.
            gaps: R of [L], bucket of the time gap of each event, for `recency: bias`.
            num_targets: of each request.
            segments: of the parts side by side, where they are on their device already.
            repeats: R, equal events of each request, to be attended to once; None for a request to
                attend to all.
        """
        layers, equal = self._layers(), repeats or [None] * len(parts)
        table = self._gap_biases() if gaps is not None else None
        by_request = [
            self._biases(table, None if gaps is None else gaps[request], equal[request])
            for request in range(len(parts))
        ]
        lengths = [
            request[0].shape[0] if same is None else same.first.shape[0]
            for request, same in zip(parts, equal, strict=True)
        ]
        device, rows = parts[0][0].device, [None if same is None else same.first for same in equal]
        if segments is None and device.type == "cuda":
            segments = Segments.counted(lengths, num_targets, device)
        return [
            KeptKeysValues(
                [request[index] for request in parts],
                [None if biases is None else biases[index] for biases in by_request],
                layer.num_heads,
                num_targets,
                segments,
                rows,
            )
            for index, layer in enumerate(layers)
        ]

    def _gap_biases(self) -> Tensor | None:
        """Returns the bias of every layer and head by time gap, float32 [M H, G]; None for a model
        without.
        """
        tables: list[Tensor] = [
            layer.gap_bias for layer in self._layers() if layer.gap_bias is not None
        ]
        return torch.stack(tables).float().transpose(1, 2).flatten(0, 1) if tables else None

    def _biases(
        self, table: Tensor | None, gaps: Tensor | None, equal: Repeats | None
    ) -> Tensor | None:
        """Returns the bias of the events, or kinds of events, of one request in every layer,
        float32 [M, H, L or U]; None for none.
        """
        num_layers, num_heads = len(self.layers), self._layers()[0].num_heads
        if equal is not None:
            without = self.join.weight.new_zeros((num_layers * num_heads, 1))
            biases = (
                equal.bias(without, None)
                if table is None or gaps is None
                else equal.bias(table, gaps)
            )
        elif table is None or gaps is None:
            return None
        else:
            biases = table.index_select(1, gaps)
        by_layer: Tensor = biases.unflatten(0, (num_layers, num_heads))
        return by_layer

    def _score(
        self, targets: Tensor, encoded: Iterable[Memory], segments: Segments, gaps: Tensor | None
    ) -> Tensor:
        outputs: list[Tensor] = []
        for index, (layer, events) in enumerate(zip(self._layers(), encoded, strict=True)):
            query = layer.query(self._fused(index, outputs, targets))
            outputs.append(layer.attend(query, events, segments, gaps))
        z: Tensor = self.out(self.join(torch.cat([*outputs, targets], dim=1)))
        normed: Tensor = z if self.out_norm is None else self.out_norm(z)
        return normed

    def _fused(
        self,
        index: int,
        outputs: list[Tensor],
        targets: Tensor,
    ) -> Tensor:
        if index == 0:
            return targets
        seen = outputs if self.query_fusion else outputs[-1:]
        fused: Tensor = self.fuse[index - 1](torch.cat([*seen, targets], dim=1))
        return fused

    def _encodings(self, events: Tensor) -> Iterator[Tensor]:
        """Yields X_i layer by layer, so that scoring without gradients holds one of them at a
        time.
        """
        parts = events.split(self.chunk) if self.chunk else (events,)
        for layer in self._layers():
            encoded = [self._encode(layer, part) for part in parts]
            yield encoded[0] if len(encoded) == 1 else torch.cat(encoded)

    def _layers(self) -> list[Layer]:
        return [cast("Layer", layer) for layer in self.layers]

    def _encode(self, layer: Layer, events: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer.encode, events, use_reentrant=False)
            return recomputed
        return layer.encode(events)


def _orthogonal(width: int, gain: float) -> nn.Parameter:
    return nn.Parameter(nn.init.orthogonal_(torch.empty(width, width), gain=gain))
