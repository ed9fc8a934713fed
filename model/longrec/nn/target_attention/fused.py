"""Target-to-history attention on a CUDA device: ragged, split over the events, the history read
once forward and once backward.

Both orders are here, each with its kernel (longrec.nn.kernels); nothing of size targets x events is
ever written.

    KeysValues   plain       keys and values of every event; a program takes one head of one request
    and a part of its events
    Tokens       reordered   the events themselves; a program takes the (target, head) rows of one
    request

The norm of the encoding can be left half done (longrec.nn.fused_ffn): its scale is then in the
weights, and its shift, which
the softmax weights hand on unchanged, is added to the output.

Shape letters: R requests, T packed events, N packed targets, D width, H heads, K head width, B gap
buckets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.fused_ffn import apply, available
from longrec.nn.target_attention.inputs import AttentionInputs, Segments, keys_values_weight

PROGRAMS = 2048
"""Programs that fill the device several times over: a history is split in parts until heads x
requests x parts reach it.
"""
EVENTS_PER_PART = 256
"""Fewest events worth a part of their own."""
REORDERED_WIDTHS = (64, 128, 256)
REORDERED_ROWS = 64
"""Rows (targets x heads of a request) up to which the reordered kernel is faster than keys and
values; measured, docs/engine.md.
"""


def usable(tensor: Tensor, num_heads: int) -> bool:
    """Returns whether the kernels take rows [*, D] like these: on a CUDA device, heads of 16, 32,
    64 or 128 columns.
    """
    head_width = tensor.shape[-1] // num_heads
    return (
        tensor.is_cuda
        and tensor.dtype != torch.float64
        and head_width in (16, 32, 64, 128)
        and available()
    )


def takes_reordered(
    order: str,
    segments: Segments,
    width: int,
    num_heads: int,
) -> bool:
    """Returns whether the reordered kernel runs: where `order` says so and it can, or with `auto`
    where it is the faster one.
    """
    rows = max(segments.num_targets) * num_heads
    return (
        order != "plain"
        and width in REORDERED_WIDTHS
        and (order == "reordered" or rows <= REORDERED_ROWS)
    )


def memory(inputs: AttentionInputs, order: str) -> KeysValues | Tokens:
    """Returns what the queries of one layer attend to."""
    tokens, segments, heads = inputs.tokens, inputs.segments, inputs.num_heads
    bias = None if inputs.bias is None else inputs.bias.t().float().contiguous()
    if tokens.element_size() == 2 and takes_reordered(order, segments, tokens.shape[1], heads):
        return Tokens(tokens, inputs.w_k, inputs.w_v, heads, segments, bias)
    return KeysValues(
        tokens @ keys_values_weight(inputs.w_k, inputs.w_v, heads), heads, segments, bias
    )


@dataclasses.dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of every event, to be attended to.

    Args:
        kv: [T, 2 D], keys and values side by side in each head, [H, 2, K] (keys_values_weight).
        num_heads: H.
        segments: rows of each request.
        bias: float32 [H, T], added to the logits, or None.
        shift: [D], added to the outputs of targets that have a history, or None.
    """

    kv: Float[Tensor, "T D2"]
    num_heads: int
    segments: Segments
    bias: Float[Tensor, "H T"] | None = None
    shift: Float[Tensor, " D"] | None = None

    def attend(self, queries: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns softmax(q K^T + bias) V, heads side by side; zeros for an empty history. Queries
        are q W_Q / sqrt(d_h).
        """
        output: Tensor = apply(
            _Plain, queries.to(self.kv.dtype), self.kv, self.bias, self.num_heads, self.segments
        )
        return _shifted(output, self.shift, self.segments)


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Events of every request, to be attended to without keys and values.

    Args:
        tokens: [T, D].
        w_k, w_v: [D, D], applied as tokens @ w.
        num_heads, segments, bias, shift: as in KeysValues.
    """

    tokens: Float[Tensor, "T D"]
    w_k: Float[Tensor, "D D"]
    w_v: Float[Tensor, "D D"]
    num_heads: int
    segments: Segments
    bias: Float[Tensor, "H T"] | None = None
    shift: Float[Tensor, " D"] | None = None

    def attend(self, queries: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Returns what KeysValues.attend returns."""
        heads, kind = self.num_heads, self.tokens.dtype
        keys_HKD = self.w_k.to(kind).unflatten(1, (heads, -1)).permute(1, 2, 0)
        values_HDK = self.w_v.to(kind).unflatten(1, (heads, -1)).transpose(0, 1)
        lifted_NHD = (
            (queries.to(kind).unflatten(1, (heads, -1)).transpose(0, 1) @ keys_HKD)
            .transpose(0, 1)
            .contiguous()
        )
        mixed_NHD: Tensor = apply(_Reordered, lifted_NHD, self.tokens, self.bias, self.segments)
        output = (mixed_NHD.transpose(0, 1) @ values_HDK).transpose(0, 1).flatten(1)
        return _shifted(output, self.shift, self.segments)


def gap_biases(tables: Float[Tensor, "M B H"], gaps: Int[Tensor, " T"]) -> tuple[Tensor, ...]:
    """Returns the bias of every event in each layer, M of float32 [H, T]; the backward pass sums by
    bucket without sorting.
    """
    return tuple(apply(_GapBiases, tables, gaps))


def num_parts(segments: Segments, programs_per_request: int) -> int:
    """Returns in how many parts every history is split."""
    wanted = -(-PROGRAMS // (programs_per_request * len(segments.num_events)))
    return max(1, min(wanted, -(-max(segments.num_events) // EVENTS_PER_PART)))


def _shifted(output: Tensor, shift: Tensor | None, segments: Segments) -> Tensor:
    if shift is None:
        return output
    if min(segments.num_events) > 0:
        return output + shift.to(output.dtype)
    counts = segments.target_offsets.diff()
    known = (segments.event_offsets.diff() > 0).repeat_interleave(
        counts, output_size=output.shape[0]
    )
    return output + known[:, None] * shift.to(output.dtype)


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        kv: Tensor,
        bias: Tensor | None,
        num_heads: int,
        segments: Segments,
    ) -> Tensor:
        from longrec.nn.kernels import attention as kernels

        queries, kv = queries.contiguous(), kv.contiguous()
        block = kernels.block_n(segments.num_targets)
        fixed = (segments.event_offsets, segments.target_offsets)
        ctx.sizes = (num_heads, block, num_parts(segments, num_heads))
        ctx.once = max(segments.num_targets) <= block
        out, lse = kernels.forward(queries, kv, bias, *fixed, *ctx.sizes)
        ctx.save_for_backward(queries, kv, bias, *fixed, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import attention as kernels

        queries, kv, bias, event_offsets, target_offsets, out, lse = ctx.saved_tensors
        heads, block, parts = ctx.sizes
        found = kernels.backward(
            queries,
            kv,
            bias,
            event_offsets,
            target_offsets,
            heads,
            block,
            parts,
            out,
            lse,
            gradients[0].contiguous(),
            once=ctx.once,
        )
        return *found, None, None


class _Reordered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lifted: Tensor, tokens: Tensor, bias: Tensor | None, segments: Segments
    ) -> Tensor:
        from longrec.nn.kernels import reordered as kernels

        most, heads = max(segments.num_targets), lifted.shape[1]
        fixed = (segments.event_offsets, segments.target_offsets)
        ctx.sizes = (most, num_parts(segments, 4 * kernels.num_blocks(most, heads)))
        out, lse = kernels.forward(lifted, tokens, bias, *fixed, *ctx.sizes)
        ctx.save_for_backward(lifted, tokens, bias, *fixed, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import reordered as kernels

        lifted, tokens, bias, event_offsets, target_offsets, out, lse = ctx.saved_tensors
        most, parts = ctx.sizes
        found = kernels.backward(
            lifted,
            tokens,
            bias,
            event_offsets,
            target_offsets,
            most,
            parts,
            out,
            lse,
            gradients[0].contiguous(),
        )
        return *found, None


class _GapBiases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tables: Tensor, gaps: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gaps)
        ctx.num_buckets, ctx.dtype = tables.shape[1], tables.dtype
        by_head = tables.float().transpose(1, 2).flatten(0, 1)
        return tuple(by_head.index_select(1, gaps).split(tables.shape[2]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from longrec.nn.kernels import attention as kernels

        gaps = ctx.saved_tensors[0].to(torch.int32)
        sums = [
            kernels.sum_by_bucket(gradient.contiguous(), gaps, ctx.num_buckets)
            for gradient in gradients
        ]
        return torch.stack(sums).to(ctx.dtype), None
