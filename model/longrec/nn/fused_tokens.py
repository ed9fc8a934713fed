"""Event tokens of a batch on a CUDA device: features in, x of every event out.

    z = [embeddings of item | of action | of gap | 1 | 0 ...]    gathered straight into 16 bits
    [e ; a] = z B                                                B holds both projections and the
                                                                 bias
    x = e + SwiGLUFFN([e ; a])                                   or e + a

The reference is TokenLayers.reference_event_tokens.

Shape letters: T events, D width, H hidden width, W width of z (a multiple of 64), K width of one
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

from longrec.nn import fused_ffn, fused_swiglu
from longrec.nn.fused_paths import apply_function, available

ALIGNMENT = 64
"""z is as wide as a multiple of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingLookup:
    """Rows to gather from one embedding table.

    Args:
        table: the parameter, [rows, K].
        is_sparse: whether its gradient is sparse.
        index: int [*, F], row of each feature within its part of the table.
        columns: int64 [n], columns of `index` that this table serves.
        starts: int64 [n], first table row of each column's part.
        items: [T], rows of `index` to read, or None for all in order.
    """

    table: Float[Tensor, "rows K"]
    is_sparse: bool
    index: Int[Tensor, "_ F"]
    columns: Int[Tensor, " n"]
    starts: Int[Tensor, " n"]
    items: Int[Tensor, " T"] | None = None

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
    """Return z: all embeddings side by side, a 1, then zeros up to a multiple of 64 columns."""
    z: Tensor = apply_function(
        _GatherEmbeddings,
        tuple(lookups),
        num_events,
        dtype,
        *(lookup.table for lookup in lookups),
    )
    return z


def projection(
    item_part: nn.Linear,
    action_part: nn.Linear,
    num_rows: int,
) -> Float[Tensor, "W D2"]:
    """Return B, [num_rows, 2 D]: z B is [item part ; action part] side by side."""
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
    z: Float[Tensor, "T W"],
    b: Float[Tensor, "W D2"],
    w_u: Float[Tensor, "H D2"],
    w_v: Float[Tensor, "H D2"],
    w_o: Float[Tensor, "D H"],
) -> Float[Tensor, "T D"]:
    """Return e + SwiGLUFFN([e ; a]) with [e ; a] = z B.

    z is usually narrower than [e ; a], and nothing but a product lies between them. Then
    (z B) W_u = z (B W_u) saves 8 r d^2 - 4 r d W FLOPs an event, and [e ; a] is never formed. A
    wider z is projected first.

    Args:
        z: embeddings (gather_embeddings).
        b: B (projection).
        w_u, w_v, w_o: weights of the FFN as nn.Linear holds them.

    Source: arXiv 2609.08443, appendix D.
    """
    width = w_o.shape[0]
    if z.shape[1] > b.shape[1]:
        z = z @ b.to(z.dtype)
        b = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    with torch.autocast("cuda", enabled=False):  # small products, in the weights' own precision
        w_uv = torch.cat([w_u, w_v]) @ b.t()
    tokens: Tensor = apply_function(
        _Fuse,
        z,
        b[:, :width],
        w_uv.view(1, 2, -1, b.shape[0]),
        w_o[None],
    )
    return tokens


class _GatherEmbeddings(torch.autograd.Function):
    """z from all tables, by the kernels of longrec.nn.kernels.rows."""

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
        width = -(-(used + 1) // ALIGNMENT) * ALIGNMENT
        device = tables[0].device
        z = torch.empty((num_events, width), dtype=dtype, device=device)
        table_rows = []
        offset = 0
        for lookup, table in zip(lookups, tables, strict=True):
            rows = kernels.gather(
                lookup.items,
                lookup.index,
                lookup.columns,
                lookup.starts,
                table,
                z,
                offset,
            )
            table_rows.append(rows)
            offset += lookup.width
        z[:, used:] = torch.arange(width - used, device=device) == 0
        ctx.save_for_backward(*table_rows)
        ctx.tables = [(table.shape, table.dtype) for table in tables]
        ctx.is_sparse = [lookup.is_sparse for lookup in lookups]
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import rows as kernels

        gradient = gradients[0].contiguous()
        start = 0
        of_tables = []
        lookups = zip(ctx.saved_tensors, ctx.tables, ctx.is_sparse, strict=True)
        for table_rows, (shape, dtype), is_sparse in lookups:
            end = start + table_rows.shape[1] * shape[1]
            if is_sparse:
                values = gradient[:, start:end].to(dtype)
                of_table = _sparse_gradient(values, table_rows, shape)
            else:
                of_table = kernels.scatter(gradient, table_rows, start, *shape).to(dtype)
            of_tables.append(of_table)
            start = end
        return None, None, None, *of_tables


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
    """z B_e + gate(z W_uv) W_o."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        b_e: Tensor,
        w_uv: Tensor,
        w_o: Tensor,
    ) -> Tensor:
        b_e = b_e.to(z.dtype)
        w_uv = w_uv.to(z.dtype)
        w_o = w_o.to(z.dtype)
        needs_grad = any(ctx.needs_input_grad)
        if fused_swiglu.is_narrow(z, w_o.shape[1]):
            tokens, uv = fused_swiglu.narrow_gate_project(
                z,
                w_uv[0],
                w_o[0],
                b_e,
                save_hidden=needs_grad,
            )
        else:
            uv = fused_swiglu.hidden_rows(z, w_uv)
            tokens = fused_swiglu.gate_project(uv, w_o, z @ b_e)
        if needs_grad:
            ctx.save_for_backward(z, b_e, uv, w_uv, w_o)
        return tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        z, b_e, uv, w_uv, w_o = ctx.saved_tensors
        dx = gradients[0].contiguous()
        dz, dw_uv, dw_o = fused_swiglu.swiglu_backward(
            dx.unsqueeze(1),
            z,
            uv,
            w_uv,
            w_o,
        )
        db_e = z.t() @ dx
        return dz.addmm_(dx, b_e.t()), db_e, dw_uv, dw_o
