"""Layers shared by the stack and the head: SwiGLU FFN, embeddings of encoded features, time-gap buckets.

Shape letters: T rows, D width, F features of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.schema import Feature

NUM_GAP_BUCKETS = 32


class SwiGLUFFN(nn.Module):
    """SwiGLUFFN(x) = (swish(x W_v) * (x W_u)) W_o, without biases.

    Args:
        width: D of the output.
        ratio: hidden width over D.
        in_width: width of the input; None for D.

    Source: arXiv 2511.06077, STCA; gating of arXiv 2002.05202.
    """

    def __init__(self, width: int, ratio: int, *, in_width: int | None = None) -> None:
        super().__init__()
        hidden = ratio * width
        self.w_u = nn.Linear(in_width or width, hidden, bias=False)
        self.w_v = nn.Linear(in_width or width, hidden, bias=False)
        self.w_o = nn.Linear(hidden, width, bias=False)
        for layer in (self.w_u, self.w_v, self.w_o):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x: Float[Tensor, "T In"]) -> Float[Tensor, "T D"]:
        gated: Tensor = self.w_o(functional.silu(self.w_v(x)) * self.w_u(x))
        return gated


class FeatureEmbedding(nn.Module):
    """Concatenated embeddings of the encoded features of one group.

    All `id` features share one table with sparse gradients, all others one dense table; an index of a feature is moved by
    the rows of the features before it in its table. The output holds the ids first, then the others, in schema order.

    Args:
        features: of the group, in the order of the index columns.
        sizes: rows of each feature's own table.
        id_dim, feature_dim: widths of one embedding of the two tables.
    """

    id_starts: Tensor
    other_starts: Tensor

    def __init__(self, features: Sequence[Feature], sizes: Sequence[int], *, id_dim: int, feature_dim: int) -> None:
        super().__init__()
        is_id = [feature.kind == "id" for feature in features]
        self.id_columns = [i for i, yes in enumerate(is_id) if yes]
        self.other_columns = [i for i, yes in enumerate(is_id) if not yes]
        self.out_width = id_dim * len(self.id_columns) + feature_dim * len(self.other_columns)
        self.ids = _table([sizes[i] for i in self.id_columns], id_dim, sparse=True)
        self.others = _table([sizes[i] for i in self.other_columns], feature_dim, sparse=False)
        self.register_buffer("id_starts", _starts([sizes[i] for i in self.id_columns]), persistent=False)
        self.register_buffer("other_starts", _starts([sizes[i] for i in self.other_columns]), persistent=False)

    def forward(self, indices: Int[Tensor, "T F"]) -> Float[Tensor, "T W"]:
        parts = []
        for columns, starts, table in ((self.id_columns, self.id_starts, self.ids), (self.other_columns, self.other_starts, self.others)):
            if table is not None:
                parts.append(table(indices[:, columns].long() + starts).flatten(1))
        return torch.cat(parts, dim=1) if parts else indices.new_zeros((indices.shape[0], 0), dtype=torch.get_default_dtype())


def gap_buckets(moments: Int[Tensor, " T"], timestamps: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
    """Returns log2 buckets of the time gap in seconds, int64 [T] in 0..NUM_GAP_BUCKETS-1; the last holds all longer gaps.

    Args:
        moments: time of the request of each event, ms.
        timestamps: time of each event, ms; later ones than the moment count as gap 0.

    Source: time gap of arXiv 2511.06077, log-bucketed.
    """
    seconds = (moments - timestamps).clamp(min=0).double() / 1000.0
    return torch.log2(1.0 + seconds).floor().long().clamp(max=NUM_GAP_BUCKETS - 1)


def _table(sizes: Sequence[int], dim: int, *, sparse: bool) -> nn.Embedding | None:
    if not sizes:
        return None
    table = nn.Embedding(sum(sizes), dim, sparse=sparse)
    nn.init.normal_(table.weight, std=0.05 if sparse else 1.0)  # content speaks first; ids as data shows them
    return table


def _starts(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes[:-1]] if sizes else [], dtype=torch.int64).cumsum(0)
