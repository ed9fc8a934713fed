"""Event tokens of a batch on a CUDA device: features in, x of every event out.

    g = [embeddings of item | of action | of gap | 1 | 0 ...]    gathered, cast to 16 bits
    B = [item part ; action part ; bias]                         joint projection
    [e ; a] = g B
    x = e + SwiGLUFFN([e ; a])                                   or e + a

The reference is TokenLayers.reference_event_tokens.

Shape letters: T events, D width, H hidden width, W width of g (a multiple of 64), K width of one
embedding, F index columns, n of them read from one table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.nn.fused import ffn as fused_ffn
from longrec.nn.fused import swiglu as fused_swiglu
from longrec.nn.fused.paths import apply_function, available
from longrec.nn.rounding import round_up

ALIGNMENT = 64
"""Columns of g are padded to a multiple of it, so the kernels read aligned tiles."""


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingLookup:
    """Rows to gather from one embedding table.

    Args:
        table: the parameter, [rows, K].
        is_sparse: whether its gradient is sparse.
        indices: int [*, F], index of each feature, counted from its `starts`.
        columns: int64 [n], columns of `indices` that this table serves.
        starts: int64 [n], first table row of each column.
        index_rows: [T]; event t reads the row index_rows[t] of `indices`. None for row t.
    """

    table: Float[Tensor, "rows K"]
    is_sparse: bool
    indices: Int[Tensor, "_ F"]
    columns: Int[Tensor, " n"]
    starts: Int[Tensor, " n"]
    index_rows: Int[Tensor, " T"] | None = None

    @property
    def width(self) -> int:
        """Number of columns that it fills, n K."""
        return self.columns.numel() * self.table.shape[1]


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of products with this weight: that of autocast, or the weight's own."""
    if weight.is_cuda and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def usable(item_part: nn.Linear, events: Int[Tensor, " T"]) -> bool:
    """Return whether the fused path takes these events.

    It takes many events on a CUDA device with products in 16 bits.
    """
    is_16_bit = product_dtype(item_part.weight).itemsize == 2
    is_long = events.shape[0] >= fused_ffn.MIN_ROWS
    is_aligned = item_part.out_features % ALIGNMENT == 0
    return events.is_cuda and is_16_bit and is_long and is_aligned and available()


def gather_embeddings(
    lookups: Sequence[EmbeddingLookup],
    num_events: int,
    dtype: torch.dtype,
) -> Float[Tensor, "T W"]:
    """Return g: all embeddings side by side, a 1, then zeros up to a multiple of 64 columns."""
    gathered: Tensor = apply_function(
        _GatherEmbeddings,
        tuple(lookups),
        num_events,
        dtype,
        *(lookup.table for lookup in lookups),
    )
    return gathered


def joint_projection(
    item_part: nn.Linear,
    action_part: nn.Linear,
    num_rows: int,
) -> Float[Tensor, "W D2"]:
    """Return B, [num_rows, 2 D]: g B is the item part and the action part side by side.

    The 1 in g multiplies the bias; rows for its zeros are zeros.
    """
    width = item_part.out_features
    blocks = [
        functional.pad(item_part.weight.t(), (0, width)),
        functional.pad(action_part.weight.t(), (width, 0)),
        functional.pad(action_part.bias[None], (width, 0)),
    ]
    used = torch.cat(blocks)
    num_zero_rows = num_rows - used.shape[0]
    return functional.pad(used, (0, 0, 0, num_zero_rows))


def fuse(
    gathered: Float[Tensor, "T W"],
    projection: Float[Tensor, "W D2"],
    w_u: Float[Tensor, "H D2"],
    w_v: Float[Tensor, "H D2"],
    w_o: Float[Tensor, "D H"],
) -> Float[Tensor, "T D"]:
    """Return e + SwiGLUFFN([e ; a]) with [e ; a] = g B.

    The FFN can read g directly with weights B W_u and B W_v, since (g B) W_u = g (B W_u). For FFN
    ratio r these two products take 4 r d W FLOPs an event instead of 8 r d^2, less if g is narrower
    than [e ; a], and [e ; a] is never formed. A wider g is projected first.

    Args:
        gathered: g (gather_embeddings).
        projection: B (joint_projection).
        w_u, w_v, w_o: weights of the FFN as nn.Linear holds them.

    Source: arXiv 2609.08443, appendix D.
    """
    width = w_o.shape[0]
    both_widths = projection.shape[1]
    if gathered.shape[1] > both_widths:
        # From here on g is [e ; a] itself, so B becomes the identity.
        gathered = gathered @ projection.to(gathered.dtype)
        projection = torch.eye(both_widths, dtype=projection.dtype, device=projection.device)
    with torch.autocast("cuda", enabled=False):  # small products, in the weights' own precision
        w_uv = torch.cat([w_u, w_v]) @ projection.t()
    tokens: Tensor = apply_function(
        _Fuse,
        gathered,
        projection[:, :width],
        w_uv.view(1, 2, -1, projection.shape[0]),
        w_o[None],
    )
    return tokens


class _GatherEmbeddings(torch.autograd.Function):
    """g from all tables, by the kernels of longrec.nn.kernels.rows."""

    @staticmethod
    def forward(
        ctx: Any,
        lookups: tuple[EmbeddingLookup, ...],
        num_events: int,
        dtype: torch.dtype,
        *tables: Tensor,
    ) -> Tensor:
        from longrec.nn.kernels import rows as kernels

        used = sum(lookup.width for lookup in lookups)
        width = round_up(used + 1, ALIGNMENT)
        device = tables[0].device
        gathered = torch.empty((num_events, width), dtype=dtype, device=device)
        table_rows = []
        first_column = 0
        for lookup, table in zip(lookups, tables, strict=True):
            rows = kernels.gather(
                lookup.index_rows,
                lookup.indices,
                lookup.columns,
                lookup.starts,
                table,
                gathered,
                first_column,
            )
            table_rows.append(rows)
            first_column += lookup.width
        # The first column behind the embeddings is 1, the others are 0; in one operation.
        gathered[:, used:] = torch.arange(width - used, device=device) == 0
        ctx.save_for_backward(*table_rows)
        ctx.tables = [(table.shape, table.dtype) for table in tables]
        ctx.is_sparse = [lookup.is_sparse for lookup in lookups]
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import rows as kernels

        gradient = gradients[0].contiguous()
        first_column = 0
        table_gradients = []
        lookups = zip(ctx.saved_tensors, ctx.tables, ctx.is_sparse, strict=True)
        for table_rows, (shape, dtype), is_sparse in lookups:
            end_column = first_column + table_rows.shape[1] * shape[1]
            if is_sparse:
                values = gradient[:, first_column:end_column].to(dtype)
                table_gradient = _sparse_gradient(values, table_rows, shape)
            else:
                dense = kernels.scatter(gradient, table_rows, first_column, *shape)
                table_gradient = dense.to(dtype)
            table_gradients.append(table_gradient)
            first_column = end_column
        return None, None, None, *table_gradients


def _sparse_gradient(
    values: Tensor,
    table_rows: Tensor,
    shape: torch.Size,
) -> Tensor:
    """Return the sparse gradient of a table; rows may repeat."""
    return torch.sparse_coo_tensor(
        table_rows.view(1, -1),
        values.reshape(-1, shape[1]),
        shape,
        check_invariants=False,
    )


class _Fuse(torch.autograd.Function):
    """g W_e + gate(g W_uv) W_o; W_e holds the columns of B that make e."""

    @staticmethod
    def forward(
        ctx: Any,
        gathered: Tensor,
        w_e: Tensor,
        w_uv: Tensor,
        w_o: Tensor,
    ) -> Tensor:
        w_e = w_e.to(gathered.dtype)
        w_uv = w_uv.to(gathered.dtype)
        w_o = w_o.to(gathered.dtype)
        needs_grad = any(ctx.needs_input_grad)
        if fused_swiglu.is_narrow(gathered, w_o.shape[1]):
            tokens, uv = fused_swiglu.narrow_gate_project(
                gathered,
                w_uv[0],
                w_o[0],
                w_e,
                save_hidden=needs_grad,
            )
        else:
            uv = fused_swiglu.hidden_rows(gathered, w_uv)
            tokens = fused_swiglu.gate_project(uv, w_o, gathered @ w_e)
        if needs_grad:
            ctx.save_for_backward(gathered, w_e, uv, w_uv, w_o)
        return tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        gathered, w_e, uv, w_uv, w_o = ctx.saved_tensors
        dx = gradients[0].contiguous()
        dgathered, dw_uv, dw_o = fused_swiglu.swiglu_backward(
            dx.unsqueeze(1),
            gathered,
            uv,
            w_uv,
            w_o,
        )
        dw_e = gathered.t() @ dx
        return dgathered.addmm_(dx, w_e.t()), dw_e, dw_uv, dw_o
