"""Layers that the stack and the head share: SwiGLU FFN, feature embeddings.

Shape letters: T rows, D width, In input width, F features of a group, W their `out_width`: the
embeddings side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from longrec.errors import DataError
from longrec.nn.fused import ffn as fused_ffn
from longrec.nn.fused.tokens import EmbeddingLookup
from longrec.schema import Feature

ID_STD = 0.05
"""Initial deviation of id embeddings: small, so a rare id changes scores little."""
FEATURE_STD = 1.0
"""Initial deviation of other embeddings: a new model tells items apart by their content."""


def linear(
    in_width: int,
    width: int,
    *,
    bias: bool = False,
) -> nn.Linear:
    """Return a linear layer with weights of deviation in_width^-1/2 and bias 0.

    Inputs of unit variance then give outputs of unit variance. A group without features has
    `in_width` 0, and only the bias remains.
    """
    with warnings.catch_warnings():
        # torch warns that a layer without inputs has nothing to draw.
        warnings.simplefilter("ignore", UserWarning)
        # nn.Linear itself would draw initial values, which the lines below replace.
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

    Source: arXiv 2511.06077 (FFN of STCA); the gate is that of arXiv 2002.05202.
    """

    def __init__(
        self,
        width: int,
        ratio: int,
        *,
        in_width: int | None = None,
    ) -> None:
        super().__init__()
        hidden = ratio * width
        self.w_u = linear(in_width or width, hidden)
        self.w_v = linear(in_width or width, hidden)
        self.w_o = linear(hidden, width)

    def forward(self, x: Float[Tensor, "T In"]) -> Float[Tensor, "T D"]:
        """Return one row per row of `x`; each depends on its own row only."""
        width, hidden = self.w_o.weight.shape
        if fused_ffn.usable(x, width, hidden):
            return fused_ffn.swiglu_ffn(x, self.w_u.weight, self.w_v.weight, self.w_o.weight)
        return self.reference(x)

    def reference(self, x: Float[Tensor, "T In"]) -> Float[Tensor, "T D"]:
        """Return the rows of `forward` on any device: the reference of longrec.nn.fused.ffn."""
        gate = functional.silu(self.w_v(x))
        output: Tensor = self.w_o(gate * self.w_u(x))
        return output


class PlainFFN(nn.Module):
    """PlainFFN(x) = gelu(x W_1) W_2 with hidden width 3/2 r D, for comparison.

    It has as many parameters and FLOPs as SwiGLUFFN.

    Args:
        width: D.
        ratio: r, as in SwiGLUFFN.

    Source: arXiv 1706.03762, equation 2, with GELU for ReLU.
    """

    def __init__(
        self,
        width: int,
        ratio: int,
    ) -> None:
        super().__init__()
        hidden = 3 * ratio * width // 2
        self.w_1 = linear(width, hidden)
        self.w_2 = linear(hidden, width)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return one row per row of `x`."""
        output: Tensor = self.w_2(functional.gelu(self.w_1(x)))
        return output


class ResidualFFN(nn.Module):
    """ResidualFFN(x) = x + SwiGLUFFN(x); ours.

    An encoding then contains its event, so queries can find it before the FFN has learned anything.

    Args:
        width: D.
        ratio: hidden width over D.
    """

    def __init__(
        self,
        width: int,
        ratio: int,
    ) -> None:
        super().__init__()
        self.inner = SwiGLUFFN(width, ratio)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return one row per row of `x`."""
        output: Tensor = x + self.inner(x)
        return output


class FeatureEmbedding(nn.Module):
    """Concatenated embeddings of the features of one group: ids first, then the others.

    All `id` features of the group share one table with sparse gradients. All other features share
    one dense table. Each feature owns a block of rows, in the order of the features:

        indices of the features   (item_id 7, author_id 2, topic 5), sizes (100, 30, 9)
        ids                       rows 7 and 100 + 2 of one table of 130 rows
        others                    row 5 of one table of 9 rows

    Args:
        features: of the group (items, users or actions), in the order of the index columns.
        sizes: rows of each feature.
        id_dim, feature_dim: widths of one embedding of the two tables.
        id_std: initial deviation of ids.

    Raises:
        DataError: not one size per feature.
    """

    id_columns: Tensor
    id_starts: Tensor
    other_columns: Tensor
    other_starts: Tensor
    empty_row: Tensor

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
        self.names = [feature.name for feature in features]
        self.sizes = list(sizes)
        id_positions = [i for i, feature in enumerate(features) if feature.kind == "id"]
        other_positions = [i for i, feature in enumerate(features) if feature.kind != "id"]
        self.out_width = id_dim * len(id_positions) + feature_dim * len(other_positions)
        id_sizes = [sizes[i] for i in id_positions]
        other_sizes = [sizes[i] for i in other_positions]
        self.ids = _table(id_sizes, id_dim, std=id_std, sparse=True)
        self.others = _table(other_sizes, feature_dim, std=FEATURE_STD, sparse=False)
        self._register_constant("id_columns", torch.tensor(id_positions, dtype=torch.int64))
        self._register_constant("id_starts", _starts(id_sizes))
        self._register_constant("other_columns", torch.tensor(other_positions, dtype=torch.int64))
        self._register_constant("other_starts", _starts(other_sizes))
        # Without features it gives `forward` a device and a dtype.
        self._register_constant("empty_row", torch.zeros(1, 0))

    def _register_constant(
        self,
        name: str,
        value: Tensor,
    ) -> None:
        """Register a tensor that follows the device, but is no part of the saved state."""
        self.register_buffer(name, value, persistent=False)

    @property
    def is_sharded(self) -> bool:
        """Whether the table of ids lies on several ranks (longrec.training.sharded_tables).

        A step must then read it exactly once: the backward pass of a read updates the table.
        """
        return self.ids is not None and not isinstance(self.ids, nn.Embedding)

    def forward(self, indices: Int[Tensor, "T F"]) -> Float[Tensor, "T W"]:
        """Return the embeddings side by side; [T, 0] for a group without features."""
        parts = []
        for table, columns, starts in self._tables():
            rows = indices.index_select(1, columns) + starts  # int64, as the starts are
            parts.append(table(rows).flatten(1))
        if not parts:
            return self.empty_row.expand(indices.shape[0], 0)
        return torch.cat(parts, dim=1)

    def lookups(
        self,
        indices: Int[Tensor, "_ F"],
        index_rows: Int[Tensor, " T"] | None = None,
    ) -> list[EmbeddingLookup]:
        """Return the table reads of `forward`, for longrec.nn.fused.tokens.

        Args:
            indices: as in `forward`.
            index_rows: rows of `indices` to read; None for all in order.
        """
        return [
            EmbeddingLookup(
                table.weight,
                table.sparse,
                indices,
                columns,
                starts,
                index_rows,
            )
            for table, columns, starts in self._tables()
        ]

    def _tables(self) -> list[tuple[nn.Embedding, Tensor, Tensor]]:
        """Return the tables that have features, with their index columns and first rows."""
        tables = []
        if self.ids is not None:
            tables.append((self.ids, self.id_columns, self.id_starts))
        if self.others is not None:
            tables.append((self.others, self.other_columns, self.other_starts))
        return tables

    def check(
        self,
        indices: Int[Tensor, "T F"],
        label: str,
    ) -> None:
        """Check that every index is within the table of its own feature.

        An index outside it would read the rows of another feature.

        Args:
            indices: of all features of the group.
            label: what the indices are, for the message.

        Raises:
            DataError: an index is outside its table; the message names the feature and `label`.
        """
        if indices.shape[1] != len(self.sizes):
            raise DataError(
                f"{label} do not fit the schema",
                found=f"{indices.shape[1]} columns",
                expected=f"{len(self.sizes)}: {self.names}",
            )
        for column, name, size in zip(indices.unbind(1), self.names, self.sizes, strict=True):
            if column.numel() == 0:
                continue
            lowest = int(column.min())
            highest = int(column.max())
            if lowest < 0 or highest >= size:
                raise DataError(
                    f"{label}: an index of '{name}' is outside its table",
                    found=f"{lowest}..{highest}",
                    expected=f"0..{size - 1}",
                    fix="Encode with the encoder that the model was built with.",
                )


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
    """Return the first row of each feature in the shared table."""
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)[:-1]
