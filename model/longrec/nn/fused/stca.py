"""The part of STCA that reads only the history, for all layers at once.

It makes the attention sources, and the keys and values for a cache. The parameters stay in the
layers (longrec.nn.stca_layer). Here they are stacked, so all layers share one product. The scale of
each norm is multiplied into the weights that read its rows (longrec.nn.fused.ffn).

Shape letters: T events, D width, M layers, H hidden width of the FFN (not heads).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from longrec.nn.fused import ffn as fused_ffn
from longrec.nn.layers import SwiGLUFFN
from longrec.nn.stca_layer import STCALayer
from longrec.nn.target_attention import Segments, fused, keys_values_weight

Encode: TypeAlias = Callable[[Tensor | None], tuple[Tensor, ...]]
"""Function of the weights W_i that read the encoding; it returns X_i W_i, or X_i for None."""


def usable(layers: Sequence[STCALayer], events: Float[Tensor, "T D"]) -> bool:
    """Return whether the kernels take these events and layers.

    If not, the layers compute the same sums one after another.
    """
    ffn = layers[0].ffn
    if not isinstance(ffn, SwiGLUFFN):
        return False
    hidden, width = ffn.w_u.weight.shape
    return _kernels_usable(events, width, hidden, layers[0].num_heads)


def attention_sources(
    layers: Sequence[STCALayer],
    events: Float[Tensor, "T D"],
    segments: Segments,
    gaps: Int[Tensor, " T"] | None,
    *,
    recompute: bool,
) -> Sequence[fused.KeysValues | fused.EventTokens]:
    """Return the attention source of each layer.

    It holds keys and values, or encoded events where the reordered kernel is faster.

    Args:
        layers: of the stack.
        events: X, raw event tokens.
        segments: rows of each request.
        gaps: bucket of the time gap of each event, for `recency: bias`.
        recompute: whether the backward pass computes the hidden rows of the FFN again.
    """
    first = layers[0]
    w_uv, w_o = _ffn_weights(layers)
    encode = functools.partial(
        fused_ffn.encode,
        events,
        w_uv,
        w_o,
        recompute=recompute,
        eps=first.norm.eps,
    )
    biases = _gap_biases(layers, gaps)
    if fused.runs_reordered(first.order, segments, events.shape[1], first.num_heads):
        return _event_tokens(layers, encode, segments, biases)
    return _keys_values_sources(layers, encode, segments, biases)


def _event_tokens(
    layers: Sequence[STCALayer],
    encode: Encode,
    segments: Segments,
    biases: Sequence[Tensor | None],
) -> list[fused.EventTokens]:
    """Return the encoded events of each layer, with the weights that read them."""
    w_k, w_v, scales, shifts = _attention_weights(layers)
    fields_by_layer = zip(
        encode(None),
        (scales * w_k).unbind(),
        (scales * w_v).unbind(),
        biases,
        shifts.unbind(),
        strict=True,
    )
    heads = layers[0].num_heads
    return [
        fused.EventTokens(
            tokens,
            scaled_w_k,
            scaled_w_v,
            heads,
            segments,
            bias,
            shift,
        )
        for tokens, scaled_w_k, scaled_w_v, bias, shift in fields_by_layer
    ]


def _keys_values_sources(
    layers: Sequence[STCALayer],
    encode: Encode,
    segments: Segments,
    biases: Sequence[Tensor | None],
) -> list[fused.KeysValues]:
    """Return the keys and values of each layer."""
    w_k, w_v, scales, shifts = _attention_weights(layers)
    heads = layers[0].num_heads
    kvs = encode(scales * keys_values_weight(w_k, w_v, heads))
    return [
        fused.KeysValues(kv, heads, segments, bias, shift)
        for kv, bias, shift in zip(kvs, biases, shifts.unbind(), strict=True)
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class StackedWeights:
    """Weights that make keys and values of events, stacked over the layers.

    Encoding one new event takes longer to launch than to compute, so all layers share the calls.

    Args:
        w_uv: [M, 2, H, D], W_u and W_v of each layer's FFN.
        w_o: [M, D, H].
        w_kv: [M, D, 2 D], scale of the norm included.
        shift: [M, 1, 2 D], shift of the norm times the weights of keys and values.
        eps: of the norms.
    """

    w_uv: Float[Tensor, "M 2 H D"]
    w_o: Float[Tensor, "M D H"]
    w_kv: Float[Tensor, "M D D2"]
    shift: Float[Tensor, "M 1 D2"]
    eps: float

    @classmethod
    def from_layers(cls, layers: Sequence[STCALayer]) -> StackedWeights | None:
        """Return copies of the layers' current weights, or None if their FFN is not SwiGLU."""
        if not isinstance(layers[0].ffn, SwiGLUFFN):
            return None
        w_uv, w_o = _ffn_weights(layers)
        w_kv = torch.stack(
            [keys_values_weight(layer.w_k, layer.w_v, layer.num_heads) for layer in layers]
        )
        scales, shifts = _norm_weights(layers)
        return cls(
            w_uv,
            w_o,
            scales[:, :, None] * w_kv,
            shifts[:, None] @ w_kv,
            layers[0].norm.eps,
        )

    def keys_values(
        self,
        events: Float[Tensor, "T D"],
        num_heads: int,
    ) -> list[Tensor]:
        """Return keys and values of each layer, M of [T, 2 D], shift of the norm included.

        These rows and rows that the layers themselves made can be attended to together.
        """
        _, _, hidden, width = self.w_uv.shape
        if _kernels_usable(events, width, hidden, num_heads):
            without_shift = fused_ffn.encode(events, self.w_uv, self.w_o, self.w_kv, eps=self.eps)
            # In place: the rows are new results of a product, which nothing else reads.
            return [
                rows.add_(shift[0].to(rows.dtype))
                for rows, shift in zip(without_shift, self.shift, strict=True)
            ]
        return self.reference(events)

    def reference(self, events: Float[Tensor, "T D"]) -> list[Tensor]:
        """Return the rows of `keys_values` on any device, with batched products."""
        layers, _, hidden, width = self.w_uv.shape
        uv = functional.linear(events, self.w_uv.flatten(0, 2))
        u_TMH, v_TMH = uv.unflatten(1, (layers, 2, hidden)).unbind(2)
        h_MTH = (functional.silu(v_TMH) * u_TMH).transpose(0, 1)
        rows_MTD = torch.bmm(h_MTH, self.w_o.transpose(1, 2))
        normed_MTD = functional.layer_norm(rows_MTD, (width,), eps=self.eps)
        return list(torch.baddbmm(self.shift, normed_MTD, self.w_kv).unbind())


def _kernels_usable(
    events: Tensor,
    width: int,
    hidden: int,
    num_heads: int,
) -> bool:
    """Return whether the kernels of FFN and attention both take these events."""
    return fused_ffn.usable(events, width, hidden) and fused.usable(events, num_heads)


def _gap_biases(layers: Sequence[STCALayer], gaps: Tensor | None) -> Sequence[Tensor | None]:
    """Return the bias of every event in each layer, M of float32 [heads, T], or None for each."""
    tables: list[Tensor] = [layer.gap_bias for layer in layers if layer.gap_bias is not None]
    if gaps is None or not tables:
        return [None] * len(layers)
    return fused.gap_biases(torch.stack(tables), gaps)


def _attention_weights(layers: Sequence[STCALayer]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of attention and norm, stacked over the layers.

    Returns:
        W_K [M, D, D], W_V [M, D, D], scales of the norms [M, D, 1], shifts of the attention outputs
        [M, D].
    """
    w_k = torch.stack([layer.w_k for layer in layers])
    w_v = torch.stack([layer.w_v for layer in layers])
    scales, norm_shifts = _norm_weights(layers)
    shifts = norm_shifts[:, None] @ w_v
    return w_k, w_v, scales[:, :, None], shifts[:, 0]


def _norm_weights(layers: Sequence[STCALayer]) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """Return the scales and the shifts of the norms."""
    scales = torch.stack([layer.norm.weight for layer in layers])
    shifts = torch.stack([layer.norm.bias for layer in layers])
    return scales, shifts


def _ffn_weights(
    layers: Sequence[STCALayer],
) -> tuple[Float[Tensor, "M 2 H D"], Float[Tensor, "M D H"]]:
    """Return W_u with W_v, and W_o, as nn.Linear holds them, of layers with SwiGLU FFNs."""
    ffns = [cast("SwiGLUFFN", layer.ffn) for layer in layers]
    weights = []
    for ffn in ffns:
        weights += [ffn.w_u.weight, ffn.w_v.weight]
    w_uv = torch.stack(weights).unflatten(0, (-1, 2))
    w_o = torch.stack([ffn.w_o.weight for ffn in ffns])
    return w_uv, w_o
