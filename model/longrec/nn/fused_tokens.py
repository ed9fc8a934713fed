"""The event tokens of a batch on a CUDA device: features in, x of every event out, as
longrec.nn.ranker forms them.

    z = [embeddings of item | of action | of gap | 1 | 0 ...]      gathered straight into 16 bits
    [e ; a] = z B                                                   both projections and the bias
    lie in B
    x = e + SwiGLUFFN([e ; a])                                      or e + a

Shape letters: T events, D width, W width of z (a multiple of 64).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.nn import fused_ffn

ALIGNMENT = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """Rows to gather from one embedding table.

    Args:
        table: the parameter, [rows, K].
        sparse: whether its gradient is sparse.
        index: int [*, F], row of each feature within its part of the table.
        columns, starts: int64 [n], columns of `index` that this table serves and first row of each
            one's part.
        items: [T], rows of `index` to read, or None for all in order.
    """

    table: Float[Tensor, "rows K"]
    sparse: bool
    index: Int[Tensor, "_ F"]
    columns: Int[Tensor, " n"]
    starts: Int[Tensor, " n"]
    items: Int[Tensor, " T"] | None = None

    @property
    def width(self) -> int:
        """Columns that it fills."""
        return self.columns.numel() * self.table.shape[1]


def precision(weight: Tensor) -> torch.dtype:
    """Returns the type that products with this weight run in: that of autocast, or the weight's
    own.
    """
    return (
        torch.get_autocast_dtype("cuda")
        if weight.is_cuda and torch.is_autocast_enabled("cuda")
        else weight.dtype
    )


def usable(item_part: nn.Linear, events: Int[Tensor, " T"]) -> bool:
    """Returns whether the fused path takes these events: on a CUDA device, products in 16 bits,
    many events.
    """
    return (
        events.is_cuda
        and precision(item_part.weight).itemsize == 2
        and events.shape[0] >= fused_ffn.FEWEST_ROWS
        and item_part.out_features % ALIGNMENT == 0
        and fused_ffn.available()
    )


def embeddings(
    lookups: Sequence[Lookup], num_events: int, kind: torch.dtype
) -> Float[Tensor, "T W"]:
    """Returns the embeddings of all lookups side by side, then a 1, then zeros up to a multiple of
    64 columns.
    """
    embedded: Tensor = fused_ffn.apply(
        _Embeddings, tuple(lookups), num_events, kind, *(lookup.table for lookup in lookups)
    )
    return embedded


def projection(item_part: nn.Linear, action_part: nn.Linear, rows: int) -> Float[Tensor, "W D2"]:
    """Returns B, so that `embeddings` B is [item part ; action part] side by side, [rows, 2 D]."""
    width = item_part.out_features
    parts = [
        functional.pad(item_part.weight.t(), (0, width)),
        functional.pad(action_part.weight.t(), (width, 0)),
        functional.pad(action_part.bias[None], (width, 0)),
    ]
    used = torch.cat(parts)
    return functional.pad(used, (0, 0, 0, rows - used.shape[0]))


def fused(
    z: Float[Tensor, "T W"],
    b: Float[Tensor, "W D2"],
    w_u: Float[Tensor, "H D2"],
    w_v: Float[Tensor, "H D2"],
    w_o: Float[Tensor, "D H"],
) -> Float[Tensor, "T D"]:
    """Returns e + SwiGLUFFN([e ; a]) with [e ; a] = z B; weights of the FFN as nn.Linear holds
    them.

    z is usually narrower than [e ; a], and nothing but a product lies between them: (z B) W_u = z
    (B W_u) saves 8 r d^2 - 4 r d W
    FLOPs an event, and [e ; a] itself is never formed. A wider z is projected first.

    Source: arXiv 2609.08443, appendix D.
    """
    width = w_o.shape[0]
    if z.shape[1] > b.shape[1]:
        z, b = z @ b.to(z.dtype), torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    with torch.autocast("cuda", enabled=False):  # small products, in the weights' own precision
        w_uv = (torch.cat([w_u, w_v]) @ b.t()).view(1, 2, -1, b.shape[0])
    tokens: Tensor = fused_ffn.apply(_Fused, z, b[:, :width], w_uv, w_o[None])
    return tokens


class _Embeddings(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lookups: tuple[Lookup, ...], num_events: int, kind: torch.dtype, *tables: Tensor
    ) -> Tensor:
        from longrec.nn.kernels import rows

        used = sum(lookup.width for lookup in lookups)
        out = torch.empty(
            (num_events, -(-(used + 1) // ALIGNMENT) * ALIGNMENT),
            dtype=kind,
            device=tables[0].device,
        )
        places, offset = [], 0
        for lookup, table in zip(lookups, tables, strict=True):
            places.append(
                rows.gather(
                    lookup.items, lookup.index, lookup.columns, lookup.starts, table, out, offset
                )
            )
            offset += lookup.width
        out[:, used:] = torch.arange(out.shape[1] - used, device=out.device) == 0
        ctx.save_for_backward(*places)
        ctx.tables = tuple(
            (tuple(lookup.table.shape), lookup.table.dtype, lookup.sparse) for lookup in lookups
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from longrec.nn.kernels import rows

        gradient, offset = gradients[0].contiguous(), 0
        of_tables: list[Tensor] = []
        for at, ((num_rows, width), kind, sparse) in zip(
            ctx.saved_tensors, ctx.tables, strict=True
        ):
            filled = at.shape[1] * width
            if sparse:
                values = gradient[:, offset : offset + filled].to(kind).reshape(-1, width)
                of_tables.append(
                    torch.sparse_coo_tensor(
                        at.view(1, -1), values, (num_rows, width), check_invariants=False
                    )
                )
            else:
                of_tables.append(rows.scatter(gradient, at, offset, num_rows, width).to(kind))
            offset += filled
        return None, None, None, *of_tables


class _Fused(torch.autograd.Function):
    """z B_e + gate(z W_uv) W_o."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        b_e: Tensor,
        w_uv: Tensor,
        w_o: Tensor,
    ) -> Tensor:
        b_e, w_uv, w_o = (weight.to(z.dtype) for weight in (b_e, w_uv, w_o))
        needs_grad = any(ctx.needs_input_grad)
        if fused_ffn.narrow(z, w_o.shape[1]):
            tokens, uv = fused_ffn.narrow_project(z, w_uv[0], w_o[0], b_e, keep=needs_grad)
        else:
            uv = fused_ffn.hidden(z, w_uv)
            tokens = fused_ffn.project(uv, w_o, z @ b_e)
        if needs_grad:
            ctx.save_for_backward(z, b_e, uv, w_uv, w_o)
        return tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        z, b_e, uv, w_uv, w_o = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        dz, dw_uv, dw_o = fused_ffn.gated_backward(gradient.unsqueeze(1), z, uv, w_uv, w_o)
        return dz.addmm_(gradient, b_e.t()), z.t() @ gradient, dw_uv, dw_o
