"""Layers shared by the stack and the head: SwiGLU FFN, embeddings of encoded features, time-gap
buckets.

Shape letters: T rows, D width, F features of a group, W width of their embeddings side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.errors import DataError
from longrec.nn import fused_ffn
from longrec.nn.fused_tokens import Lookup
from longrec.schema import Feature

NUM_GAP_BUCKETS = 32
ID_STD, FEATURE_STD = 0.05, 1.0
"""Initial deviations of id and of other embeddings: a new model tells items apart by their content,
ids grow as data shows them.
"""


def linear(in_width: int, width: int, *, bias: bool = False) -> nn.Linear:
    """Returns a linear layer that keeps unit variance: weights of deviation in_width^-1/2, bias 0.
    `in_width` 0 leaves the bias alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # that a layer without inputs has nothing to draw
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, in_width, width, bias=bias)
    nn.init.normal_(layer.weight, std=max(in_width, 1) ** -0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class SwiGLUFFN(nn.Module):
    """SwiGLUFFN(x) = (swish(x W_v) * (x W_u)) W_o, without biases.

    Args:
        width: D of the output.
        ratio: hidden width over D.
        in_width: width of the input; None for D.

    Source: arXiv 2511.06077 (STCA's FFN); the gate is that of arXiv 2002.05202.
    """

    def __init__(
        self,
        width: int,
        ratio: int,
        *,
        in_width: int | None = None,
    ) -> None:
        super().__init__()
        self.w_u, self.w_v = (linear(in_width or width, ratio * width) for _ in range(2))
        self.w_o = linear(ratio * width, width)

    def forward(self, x: Float[Tensor, "T In"]) -> Float[Tensor, "T D"]:
        """Returns one row per row of `x`; each depends on its own row only."""
        if fused_ffn.usable(x, *self.w_o.weight.shape):
            return fused_ffn.gated(x, self.w_u.weight, self.w_v.weight, self.w_o.weight)
        gated: Tensor = self.w_o(functional.silu(self.w_v(x)) * self.w_u(x))
        return gated


class PlainFFN(nn.Module):
    """PlainFFN(x) = gelu(x W_1) W_2 with hidden width 3/2 r D: as many parameters and FLOPs as
    SwiGLUFFN, to compare with.

    Source: arXiv 1706.03762, equation 2, with GELU for ReLU.
    """

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = (
            linear(width, 3 * ratio * width // 2),
            linear(3 * ratio * width // 2, width),
        )

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Returns one row per row of `x`."""
        row: Tensor = self.w_2(functional.gelu(self.w_1(x)))
        return row


class ResidualFFN(nn.Module):
    """ResidualFFN(x) = x + SwiGLUFFN(x): what an event is stays in its encoding, whatever the FFN
    has learned yet. Ours.
    """

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.inner = SwiGLUFFN(width, ratio)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Returns one row per row of `x`."""
        row: Tensor = x + self.inner(x)
        return row


class FeatureEmbedding(nn.Module):
    """Concatenated embeddings of the encoded features of one group (items, users or actions): ids
    first, then the others.

    All `id` features of the group share one table with sparse gradients, all others one dense
    table; each feature owns the rows
    from the sizes of the features before it on:

        indices of the features   (item_id 7, author_id 2, topic 5), sizes (100, 30, 9)
        ids                       rows 7 and 100 + 2 of one table of 130 rows
        others                    row 5 of one table of 9 rows

    Args:
        features: of the group, in the order of the index columns.
        sizes: rows of each feature's own table.
        id_dim, feature_dim: widths of one embedding of the two tables.
        id_std: initial deviation of ids.
    """

    id_columns: Tensor
    id_starts: Tensor
    other_columns: Tensor
    other_starts: Tensor
    nothing: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        sizes: Sequence[int],
        *,
        id_dim: int,
        feature_dim: int,
        id_std: float = ID_STD,
    ) -> None:
        super().__init__()
        if len(features) != len(sizes):
            raise DataError(
                "sizes do not fit the features",
                found=f"{len(sizes)} sizes",
                expected=f"{len(features)}, one per feature",
            )
        self.names, self.sizes = [feature.name for feature in features], list(sizes)
        ids = [i for i, feature in enumerate(features) if feature.kind == "id"]
        others = [i for i, feature in enumerate(features) if feature.kind != "id"]
        self.out_width = id_dim * len(ids) + feature_dim * len(others)
        self.ids = _table([sizes[i] for i in ids], id_dim, std=id_std, sparse=True)
        self.others = _table([sizes[i] for i in others], feature_dim, std=FEATURE_STD, sparse=False)
        for name, columns in (("id", ids), ("other", others)):
            self.register_buffer(
                f"{name}_columns", torch.tensor(columns, dtype=torch.int64), persistent=False
            )
            self.register_buffer(
                f"{name}_starts", _starts([sizes[i] for i in columns]), persistent=False
            )
        self.register_buffer("nothing", torch.zeros(1, 0), persistent=False)

    @property
    def is_sharded(self) -> bool:
        """Whether the ids' table lies on several ranks (longrec.training.sharded_tables): a step
        reads it once, for reads update it.
        """
        return self.ids is not None and not isinstance(self.ids, nn.Embedding)

    def forward(self, indices: Int[Tensor, "T F"]) -> Float[Tensor, "T W"]:
        """Returns the embeddings side by side; [T, 0] for a group without features."""
        parts = []
        for table, columns, starts in (
            (self.ids, self.id_columns, self.id_starts),
            (self.others, self.other_columns, self.other_starts),
        ):
            if table is not None:
                parts.append(
                    table(indices.index_select(1, columns) + starts).flatten(1)
                )  # int64, as the starts are
        return torch.cat(parts, dim=1) if parts else self.nothing.expand(indices.shape[0], 0)

    def lookups(
        self, indices: Int[Tensor, "_ F"], items: Int[Tensor, " T"] | None = None
    ) -> list[Lookup]:
        """Returns what `forward` reads of `indices` (or of its rows `items`), for
        longrec.nn.fused_tokens.
        """
        parts = (
            (self.ids, self.id_columns, self.id_starts),
            (self.others, self.other_columns, self.other_starts),
        )
        return [
            Lookup(table.weight, table.sparse, indices, columns, starts, items)
            for table, columns, starts in parts
            if table is not None
        ]

    def check(self, indices: Int[Tensor, "T F"], where: str) -> None:
        """Passes when every index is within the table of its own feature; an index outside it would
        read a neighbour's rows.

        Raises:
            DataError: naming the feature and `where` the indices come from.
        """
        if indices.shape[1] != len(self.sizes):
            expected = f"{len(self.sizes)}: {self.names}"
            raise DataError(
                f"{where} do not fit the schema",
                found=f"{indices.shape[1]} columns",
                expected=expected,
            )
        for column, name, size in zip(indices.unbind(1), self.names, self.sizes, strict=True):
            if column.numel() and (int(column.min()) < 0 or int(column.max()) >= size):
                raise DataError(
                    f"{where}: an index of '{name}' is outside its table",
                    found=f"{int(column.min())}..{int(column.max())}",
                    expected=f"0..{size - 1}",
                    fix="Encode with the encoder that the model was built with.",
                )


def gap_buckets(
    request_times: Int[Tensor, " T"], timestamps: Int[Tensor, " T"]
) -> Int[Tensor, " T"]:
    """Returns the bucket of each time gap, int64 [T]: 0 below one second, k from 2^(k-1) s to below
    2^k s, the last for all above.

    Args:
        moments: int64 [T], time of the request of each event, ms.
        timestamps: int64 [T], time of each event, ms; one after the moment counts as no gap.

    Source: time gap of arXiv 2511.06077, log-bucketed.
    """
    edges = 1_000 << torch.arange(NUM_GAP_BUCKETS - 1, device=request_times.device)
    return torch.bucketize(request_times - timestamps, edges, right=True)


def _table(
    sizes: Sequence[int],
    dim: int,
    *,
    std: float,
    sparse: bool,
) -> nn.Embedding | None:
    if not sizes:
        return None
    table = nn.Embedding(sum(sizes), dim, sparse=sparse)
    nn.init.normal_(table.weight, std=std)
    return table


def _starts(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)[:-1]
