"""The history's half of STCA on a CUDA device: raw event tokens in, what each layer's attention
reads out; and keys and values to be kept.

The layers' parameters stay where they are (longrec.nn.stca); here they are laid side by side, so
that all layers share one
product, and the scale of each norm goes into the weights that read its rows. Shape letters: T
events, D width, M layers, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from longrec.nn import fused_ffn
from longrec.nn.layers import SwiGLUFFN
from longrec.nn.target_attention import Segments, fused, keys_values_weight

if TYPE_CHECKING:
    from longrec.nn.stca import Layer


def usable(layers: Sequence[Layer], events: Float[Tensor, "T D"]) -> bool:
    """Returns whether the kernels take these events and layers; if not, the layers do the same sums
    one after another.
    """
    if not isinstance(layers[0].ffn, SwiGLUFFN):
        return False
    hidden, width = layers[0].ffn.w_u.weight.shape
    return fused_ffn.usable(events, width, hidden) and fused.usable(events, layers[0].num_heads)


def memories(
    layers: Sequence[Layer],
    events: Float[Tensor, "T D"],
    segments: Segments,
    gaps: Int[Tensor, " T"] | None,
    *,
    recompute: bool,
) -> list[fused.KeysValues | fused.Tokens]:
    """Returns what each layer's queries attend to: keys and values, or encoded events where the
    reordered kernel is faster.

    Args:
        layers: of the stack.
        events: X, raw event tokens.
        segments: rows of each request.
        gaps: bucket of the time gap of each event, for `recency: bias`.
        recompute: whether the backward pass computes the FFN's hidden rows again.
    """
    w_uv, w_o = _ffn_weights(layers)
    w_k, w_v = (
        torch.stack([layer.w_k for layer in layers]),
        torch.stack([layer.w_v for layer in layers]),
    )
    scales = torch.stack([layer.norm.weight for layer in layers])[:, :, None]
    shifts = (torch.stack([layer.norm.bias for layer in layers])[:, None] @ w_v)[:, 0].unbind()
    tables: list[Tensor] = [
        layer.gap_bias for layer in layers if layer.gap_bias is not None and gaps is not None
    ]
    biases = (
        fused.gap_biases(torch.stack(tables), gaps)
        if gaps is not None and tables
        else [None] * len(layers)
    )
    heads, eps = layers[0].num_heads, layers[0].norm.eps
    if fused.takes_reordered(layers[0].order, segments, events.shape[1], heads):
        tokens = fused_ffn.encode(events, w_uv, w_o, None, recompute=recompute, eps=eps)
        return [
            fused.Tokens(*parts[:3], heads, segments, *parts[3:])
            for parts in zip(
                tokens,
                (scales * w_k).unbind(),
                (scales * w_v).unbind(),
                biases,
                shifts,
                strict=True,
            )
        ]
    kvs = fused_ffn.encode(
        events,
        w_uv,
        w_o,
        scales * keys_values_weight(w_k, w_v, heads),
        recompute=recompute,
        eps=eps,
    )
    return [
        fused.KeysValues(kv, heads, segments, bias, shift)
        for kv, bias, shift in zip(kvs, biases, shifts, strict=True)
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class SideBySide:
    """The weights that make keys and values of events, of all layers side by side: for a new event
    calls cost more than sums.

    Args:
        w_uv: [M, 2, H, D], W_u and W_v of each layer's FFN; here H is its hidden width.
        w_o: [M, D, H].
        w_kv: [M, D, 2 D], scale of the norm included.
        shift: [M, 1, 2 D], what the norm's shift adds.
        eps: of the norms.
    """

    w_uv: Float[Tensor, "M 2 H D"]
    w_o: Float[Tensor, "M D H"]
    w_kv: Float[Tensor, "M D D2"]
    shift: Float[Tensor, "M 1 D2"]
    eps: float

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> SideBySide | None:
        """Returns copies of the layers' weights as they are now, None where their FFN is not
        SwiGLU.
        """
        if not isinstance(layers[0].ffn, SwiGLUFFN):
            return None
        w_uv, w_o = _ffn_weights(layers)
        w_kv = torch.stack(
            [keys_values_weight(layer.w_k, layer.w_v, layer.num_heads) for layer in layers]
        )
        scales, shifts = (
            torch.stack(parts)
            for parts in zip(
                *((layer.norm.weight, layer.norm.bias) for layer in layers), strict=True
            )
        )
        return cls(w_uv, w_o, scales[:, :, None] * w_kv, shifts[:, None] @ w_kv, layers[0].norm.eps)

    def keys_values(self, events: Float[Tensor, "T D"], num_heads: int) -> list[Tensor]:
        """Returns keys and values of each layer, each [T, 2 D], shift of the norm included: rows
        that were made here and rows that the
        layers themselves made can be attended to together."""
        layers, _, hidden, width = self.w_uv.shape
        if fused_ffn.usable(events, width, hidden) and fused.usable(events, num_heads):
            found = fused_ffn.encode(events, self.w_uv, self.w_o, self.w_kv, eps=self.eps)
            return [
                rows.add_(shift[0].to(rows.dtype))
                for rows, shift in zip(found, self.shift, strict=True)
            ]
        u_TMH, v_TMH = (
            functional.linear(events, self.w_uv.flatten(0, 2))
            .unflatten(1, (layers, 2, hidden))
            .unbind(2)
        )
        rows = torch.bmm((functional.silu(v_TMH) * u_TMH).transpose(0, 1), self.w_o.transpose(1, 2))
        return list(
            torch.baddbmm(
                self.shift, functional.layer_norm(rows, (width,), eps=self.eps), self.w_kv
            ).unbind()
        )


def _ffn_weights(
    layers: Sequence[Layer],
) -> tuple[Float[Tensor, "M 2 H D"], Float[Tensor, "M D H"]]:
    """Returns W_u with W_v, and W_o, transposed as nn.Linear holds them, of layers whose FFN is
    SwiGLU; here H is its hidden width.
    """
    ffns = [cast("SwiGLUFFN", layer.ffn) for layer in layers]
    w_uv = torch.stack(
        [weight for ffn in ffns for weight in (ffn.w_u.weight, ffn.w_v.weight)]
    ).unflatten(0, (-1, 2))
    return w_uv, torch.stack([ffn.w_o.weight for ffn in ffns])
