"""Layers: embeddings of feature groups, time-gap buckets, initial scales; and the proof that shapes
are checked in tests.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longrec.nn import fused_swiglu
from longrec.nn.layers import NUM_GAP_BUCKETS, FeatureEmbedding, SwiGLUFFN, gap_buckets, linear
from longrec.nn.target_attention import AttentionInputs, Segments
from longrec.schema import Feature

FEATURES = (
    Feature("a", "category"),
    Feature("b", "id"),
    Feature("c", "number"),
    Feature("d", "id"),
)
SIZES = (3, 5, 4, 2)


def test_every_feature_owns_its_rows_and_ids_come_first() -> None:
    group = FeatureEmbedding(FEATURES, SIZES, id_dim=6, feature_dim=2)
    assert (group.out_width, group.ids.weight.shape, group.others.weight.shape) == (
        16,
        (7, 6),
        (7, 2),
    )
    indices = torch.tensor([[2, 4, 3, 1], [0, 0, 0, 0]])
    expected = [
        torch.cat(
            [
                group.ids.weight[b],
                group.ids.weight[5 + d],
                group.others.weight[a],
                group.others.weight[3 + c],
            ]
        )
        for a, b, c, d in indices.tolist()
    ]
    assert torch.equal(group(indices), torch.stack(expected))
    group(indices).sum().backward()
    assert group.ids.weight.grad.is_sparse
    assert sorted(group.ids.weight.grad.coalesce().indices()[0].tolist()) == [0, 4, 5, 6]
    assert not group.others.weight.grad.is_sparse


def test_the_state_holds_tables_only() -> None:
    assert set(FeatureEmbedding(FEATURES, SIZES, id_dim=6, feature_dim=2).state_dict()) == {
        "ids.weight",
        "others.weight",
    }
    empty = FeatureEmbedding((), (), id_dim=6, feature_dim=2).double()
    assert (
        empty(torch.zeros(3, 0, dtype=torch.int32)).shape,
        empty(torch.zeros(3, 0, dtype=torch.int32)).dtype,
    ) == ((3, 0), torch.float64)


@given(st.integers(-(2**40), 2**62))
def test_2_gap_buckets_are_powers_of_two_of_seconds(gap_ms: int) -> None:
    bucket = int(gap_buckets(torch.tensor([gap_ms]), torch.tensor([0]))[0])
    assert bucket == (
        0 if gap_ms < 1000 else min(NUM_GAP_BUCKETS - 1, (gap_ms // 1000).bit_length())
    )


@pytest.mark.parametrize("in_width", [4, 64, 400])
def test_linear_keeps_the_variance(in_width: int) -> None:
    torch.manual_seed(0)
    assert float(linear(in_width, 256)(torch.randn(512, in_width)).detach().std()) == pytest.approx(
        1, rel=0.2
    )
    assert linear(in_width, 8).bias is None
    assert linear(in_width, 8, bias=True).bias.tolist() == [0.0] * 8


def test_swiglu_by_hand() -> None:
    ffn = SwiGLUFFN(1, 1, in_width=2)
    for layer, weight in ((ffn.w_u, [[1.0, 2.0]]), (ffn.w_v, [[3.0, -1.0]]), (ffn.w_o, [[0.5]])):
        layer.weight = nn.Parameter(torch.tensor(weight))
    gate = 3 * 0.2 - 0.7
    assert float(ffn(torch.tensor([[0.2, 0.7]])).detach()) == pytest.approx(
        0.5 * gate / (1 + math.exp(-gate)) * (0.2 + 1.4)
    )


def test_shapes_are_checked_in_tests() -> None:
    """Fails when tests/conftest.py no longer installs the import hook before longrec.nn is
    imported.
    """
    inputs = {
        "queries": torch.zeros(2, 4),
        "tokens": torch.zeros(3, 4),
        "w_q": torch.zeros(4, 4),
        "w_k": torch.zeros(4, 4),
        "w_v": torch.zeros(4, 4),
        "num_heads": 2,
        "segments": Segments.from_offsets(torch.tensor([0, 3]), torch.tensor([0, 2])),
    }
    AttentionInputs(**inputs)
    with pytest.raises(Exception, match="Type-check"):
        AttentionInputs(**{**inputs, "tokens": torch.zeros(3, 5)})
    with pytest.raises(Exception, match="Type-check"):
        SwiGLUFFN(4, 2)(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("num_rows", [0, 1, 127, 128, 1_024, 1_025, 2_560, 5_000])
def test_chunks_hold_every_row_once_and_no_chunk_too_many(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_swiglu, "MAX_CHUNK_ROWS", 1_024)
    chunks = [range(num_rows)[rows] for rows in fused_swiglu.row_chunks(num_rows)]
    assert [row for chunk in chunks for row in chunk] == list(range(num_rows))
    assert len(chunks) == max(1, -(-num_rows // 1_024)) and max(map(len, chunks)) <= 1_024
