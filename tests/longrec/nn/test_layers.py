"""Layers: feature embeddings, time-gap buckets and initial scales; shapes are checked in tests."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longrec.nn.fused import swiglu as fused_swiglu
from longrec.nn.layers import FeatureEmbedding, SwiGLUFFN, linear
from longrec.nn.target_attention import AttentionInputs, Segments
from longrec.nn.time_gaps import NUM_GAP_BUCKETS, gap_buckets
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
    ids = group.ids.weight
    others = group.others.weight
    assert group.out_width == 16
    assert ids.shape == (7, 6)
    assert others.shape == (7, 2)
    indices = torch.tensor([[2, 4, 3, 1], [0, 0, 0, 0]])
    expected = []
    for a, b, c, d in indices.tolist():
        expected.append(torch.cat([ids[b], ids[5 + d], others[a], others[3 + c]]))
    assert torch.equal(group(indices), torch.stack(expected))
    group(indices).sum().backward()
    assert ids.grad.is_sparse
    assert sorted(ids.grad.coalesce().indices()[0].tolist()) == [0, 4, 5, 6]
    assert not others.grad.is_sparse


def test_the_state_holds_tables_only() -> None:
    group = FeatureEmbedding(FEATURES, SIZES, id_dim=6, feature_dim=2)
    assert set(group.state_dict()) == {"ids.weight", "others.weight"}


def test_a_group_without_features_has_empty_rows() -> None:
    empty = FeatureEmbedding((), (), id_dim=6, feature_dim=2).double()
    rows = empty(torch.zeros(3, 0, dtype=torch.int32))
    assert rows.shape == (3, 0)
    assert rows.dtype == torch.float64


@given(st.integers(-(2**40), 2**62))
def test_2_gap_buckets_are_powers_of_two_of_seconds(gap_ms: int) -> None:
    expected = 0
    if gap_ms >= 1000:
        expected = min(NUM_GAP_BUCKETS - 1, (gap_ms // 1000).bit_length())
    buckets = gap_buckets(torch.tensor([gap_ms]), torch.tensor([0]))
    assert int(buckets[0]) == expected


@pytest.mark.parametrize("in_width", [4, 64, 400])
def test_linear_keeps_the_variance(in_width: int) -> None:
    torch.manual_seed(0)
    outputs = linear(in_width, 256)(torch.randn(512, in_width)).detach()
    assert float(outputs.std()) == pytest.approx(1, rel=0.2)
    assert linear(in_width, 8).bias is None
    assert linear(in_width, 8, bias=True).bias.tolist() == [0.0] * 8


def test_swiglu_by_hand() -> None:
    ffn = SwiGLUFFN(1, 1, in_width=2)
    ffn.w_u.weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    ffn.w_v.weight = nn.Parameter(torch.tensor([[3.0, -1.0]]))
    ffn.w_o.weight = nn.Parameter(torch.tensor([[0.5]]))
    output = float(ffn(torch.tensor([[0.2, 0.7]])).detach())
    v = 3 * 0.2 - 0.7
    u = 0.2 + 1.4
    assert output == pytest.approx(0.5 * v / (1 + math.exp(-v)) * u)


def test_shapes_are_checked_in_tests() -> None:
    """Fails if tests/conftest.py does not install the import hook before longrec.nn is imported."""
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
    assert len(chunks) == max(1, math.ceil(num_rows / 1_024))
    assert max(map(len, chunks)) <= 1_024
