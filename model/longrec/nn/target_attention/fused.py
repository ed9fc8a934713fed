"""Target-to-history attention on a CUDA device: ragged, and split over the events.

Both orders are here, each with its kernel (longrec.nn.kernels). The history is read once forward
and once backward. Nothing of size targets x events is ever written. A program is a thread block of
Triton.

    KeysValues    plain       keys and values of every event; a program takes one head of one
                              request and one split of its events
    EventTokens   reordered   the events themselves; a program takes the (target, head) rows of
                              one request and one split of its events

The encoding may come without the scale and shift of its norm (longrec.nn.fused.ffn). The scale is
then in the weights. The shift is added to the output, since softmax weights sum to 1. The reference
implementations are target_attention.reference and target_attention.reordered.

Shape letters: R requests, T packed events, N packed targets, D width, H heads, K head width, G gap
buckets, M layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.nn.fused.paths import apply_function, available
from longrec.nn.rounding import ceil_div
from longrec.nn.target_attention.inputs import AttentionInputs, Segments, keys_values_weight
from longrec.nn.target_attention.reordered import lift_queries, project_values

PROGRAMS_TO_FILL = 2048
"""Programs that fill the device several times over; a history is split until there are as many."""
MIN_EVENTS_PER_SPLIT = 256
"""Fewest events that are worth a split of their own."""
HEAD_WIDTHS = (16, 32, 64, 128)
"""Head widths that the kernels take."""
REORDERED_WIDTHS = (64, 128, 256)
"""Widths D that the reordered kernel takes."""
MAX_REORDERED_ROWS = 64
"""Most (target, head) rows of a request for which the reordered kernel is the faster one.

Beyond it keys and values are faster (measured, docs/benchmarks/training.md).
"""
REORDERED_PROGRAMS_PER_BLOCK = 4
"""A program of the reordered kernel counts as four in `num_splits`, so histories are split less."""


def usable(rows: Tensor, num_heads: int) -> bool:
    """Return whether the kernels take rows [*, D] like these, on their device.

    They compute in float32 inside, so float64 is left to the reference.
    """
    head_width = rows.shape[-1] // num_heads
    is_supported = rows.dtype != torch.float64 and head_width in HEAD_WIDTHS
    return rows.is_cuda and is_supported and available()


def runs_reordered(
    order: str,
    segments: Segments,
    width: int,
    num_heads: int,
) -> bool:
    """Return whether the reordered kernel runs.

    It runs if it takes the width, and `order` asks for it or is `auto` and it is the faster one.
    """
    if order == "plain" or width not in REORDERED_WIDTHS:
        return False
    rows = max(segments.num_targets) * num_heads
    return order == "reordered" or rows <= MAX_REORDERED_ROWS


def attention_source(inputs: AttentionInputs, order: str) -> KeysValues | EventTokens:
    """Return the tensors that the queries of one layer attend to."""
    tokens = inputs.tokens
    segments = inputs.segments
    heads = inputs.num_heads
    bias = None if inputs.bias is None else inputs.bias.t().float().contiguous()
    is_16_bit = tokens.element_size() == 2
    if is_16_bit and runs_reordered(order, segments, tokens.shape[1], heads):
        return EventTokens(
            tokens,
            inputs.w_k,
            inputs.w_v,
            heads,
            segments,
            bias,
        )
    kv = tokens @ keys_values_weight(inputs.w_k, inputs.w_v, heads)
    return KeysValues(
        kv,
        heads,
        segments,
        bias,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of every event, an attention source.

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
        """Return softmax(q K^T + bias) V, heads side by side; zeros for an empty history.

        Args:
            queries: [N, D], q W_Q / sqrt(d_h).
        """
        output: Tensor = apply_function(
            _PlainAttention,
            queries.to(self.kv.dtype),
            self.kv,
            self.bias,
            self.num_heads,
            self.segments,
        )
        return _add_shift(output, self.shift, self.segments)


@dataclasses.dataclass(frozen=True, slots=True)
class EventTokens:
    """Encoded events, an attention source without keys and values.

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
        """Return the output of KeysValues.attend."""
        dtype = self.tokens.dtype
        queries_NHK = queries.to(dtype).unflatten(1, (self.num_heads, -1))
        lifted_NHD = lift_queries(queries_NHK, self.w_k.to(dtype)).contiguous()
        mixed_NHD: Tensor = apply_function(
            _ReorderedAttention,
            lifted_NHD,
            self.tokens,
            self.bias,
            self.segments,
        )
        output = project_values(mixed_NHD, self.w_v.to(dtype))
        return _add_shift(output, self.shift, self.segments)


def gap_biases(tables: Float[Tensor, "M G H"], gaps: Int[Tensor, " T"]) -> tuple[Tensor, ...]:
    """Return the bias of every event in each layer, M of float32 [H, T].

    The backward pass sums by bucket without sorting.
    """
    return tuple(apply_function(_GapBiases, tables, gaps))


def num_splits(segments: Segments, programs_per_request: int) -> int:
    """Return in how many parts every history is split."""
    num_programs = programs_per_request * len(segments.num_events)
    to_fill_device = ceil_div(PROGRAMS_TO_FILL, num_programs)
    worthwhile = ceil_div(max(segments.num_events), MIN_EVENTS_PER_SPLIT)
    return max(1, min(to_fill_device, worthwhile))


def _add_shift(
    output: Tensor,
    shift: Tensor | None,
    segments: Segments,
) -> Tensor:
    """Return the output with the shift added for every target that has a history."""
    if shift is None:
        return output
    shift = shift.to(output.dtype)
    if min(segments.num_events) > 0:  # the usual case, known on the host: no mask is needed
        return output + shift
    has_events = segments.event_offsets.diff() > 0
    has_history = has_events.repeat_interleave(
        segments.target_offsets.diff(),
        output_size=output.shape[0],
    )
    return output + has_history[:, None] * shift


class _PlainAttention(torch.autograd.Function):
    """softmax(q K^T + bias) V by the kernels of longrec.nn.kernels.attention."""

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

        queries = queries.contiguous()
        kv = kv.contiguous()
        event_offsets = segments.event_offsets
        target_offsets = segments.target_offsets
        ctx.num_heads = num_heads
        ctx.block = kernels.targets_per_block(segments.num_targets)
        ctx.splits = num_splits(segments, num_heads)
        ctx.single_pass = max(segments.num_targets) <= ctx.block
        out, lse = kernels.forward(
            queries,
            kv,
            bias,
            event_offsets,
            target_offsets,
            num_heads,
            ctx.block,
            ctx.splits,
        )
        ctx.save_for_backward(queries, kv, bias, event_offsets, target_offsets, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import attention as kernels

        queries, kv, bias, event_offsets, target_offsets, out, lse = ctx.saved_tensors
        input_gradients = kernels.backward(
            queries,
            kv,
            bias,
            event_offsets,
            target_offsets,
            ctx.num_heads,
            ctx.block,
            ctx.splits,
            out,
            lse,
            gradients[0].contiguous(),
            single_pass=ctx.single_pass,
        )
        return *input_gradients, None, None


class _ReorderedAttention(torch.autograd.Function):
    """softmax(u X^T + bias) X by the kernels of longrec.nn.kernels.reordered."""

    @staticmethod
    def forward(
        ctx: Any,
        lifted: Tensor,
        tokens: Tensor,
        bias: Tensor | None,
        segments: Segments,
    ) -> Tensor:
        from longrec.nn.kernels import reordered as kernels

        event_offsets = segments.event_offsets
        target_offsets = segments.target_offsets
        ctx.max_targets = max(segments.num_targets)
        blocks = kernels.num_blocks(ctx.max_targets, lifted.shape[1])
        ctx.splits = num_splits(segments, REORDERED_PROGRAMS_PER_BLOCK * blocks)
        out, lse = kernels.forward(
            lifted,
            tokens,
            bias,
            event_offsets,
            target_offsets,
            ctx.max_targets,
            ctx.splits,
        )
        ctx.save_for_backward(lifted, tokens, bias, event_offsets, target_offsets, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import reordered as kernels

        lifted, tokens, bias, event_offsets, target_offsets, out, lse = ctx.saved_tensors
        input_gradients = kernels.backward(
            lifted,
            tokens,
            bias,
            event_offsets,
            target_offsets,
            ctx.max_targets,
            ctx.splits,
            out,
            lse,
            gradients[0].contiguous(),
        )
        return *input_gradients, None


class _GapBiases(torch.autograd.Function):
    """Lookup of the gap bias in all layers; its gradient is summed by bucket."""

    @staticmethod
    def forward(
        ctx: Any,
        tables: Tensor,
        gaps: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gaps)
        ctx.num_buckets = tables.shape[1]
        ctx.dtype = tables.dtype
        by_head = tables.float().transpose(1, 2).flatten(0, 1)
        num_heads = tables.shape[2]
        return tuple(by_head.index_select(1, gaps).split(num_heads))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from longrec.nn.kernels.gap_bias_gradient import sum_by_bucket

        gaps = ctx.saved_tensors[0].to(torch.int32)
        sums = [
            sum_by_bucket(gradient.contiguous(), gaps, ctx.num_buckets) for gradient in gradients
        ]
        return torch.stack(sums).to(ctx.dtype), None
