"""Match features against loops over every pair, and their dependencies; the other FFNs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from longrec.data.batch import RequestBatch
from longrec.nn.layers import PlainFFN, SwiGLUFFN
from longrec.nn.match_features import NUM_COUNT_BUCKETS, match_buckets
from longrec.nn.time_gaps import NUM_GAP_BUCKETS
from tests.longrec.nn import builders

LENGTHS = [40, 0, 1, 300]
TARGETS = [6, 2, 1, 20]


def count_bucket(num_matches: int) -> int:
    if num_matches == 0:
        return 0
    return min(NUM_COUNT_BUCKETS - 1, 1 + math.floor(math.log2(num_matches)))


def gap_bucket(batch: RequestBatch, request: int, matches: list[int]) -> int:
    if not matches:
        return NUM_GAP_BUCKETS
    last_time = int(batch.event_timestamps[matches[-1]])
    seconds = (int(batch.request_timestamps[request]) - last_time) / 1000
    if seconds < 1:
        return 0
    return min(NUM_GAP_BUCKETS - 1, 1 + math.floor(math.log2(seconds)))


def test_counts_and_gaps_equal_a_loop_over_all_pairs() -> None:
    batch = builders.batch(LENGTHS, TARGETS)
    table = builders.ranker().item_table
    counts, gaps = match_buckets(batch, table)

    def value(item: int, column: int) -> int:
        return item if column == 0 else int(table[item, column])

    event_items = batch.event_items.tolist()
    target_items = batch.target_items.tolist()
    for r in range(batch.num_requests):
        events = range(*batch.event_offsets[r : r + 2].tolist())
        for n in range(*batch.target_offsets[r : r + 2].tolist()):
            for column in range(table.shape[1]):
                target_value = value(target_items[n], column)
                matches = []
                for t in events:
                    if target_value and target_value == value(event_items[t], column):
                        matches.append(t)
                expected = (count_bucket(len(matches)), gap_bucket(batch, r, matches))
                assert (int(counts[n, column]), int(gaps[n, column])) == expected
    assert counts.max() > 4
    assert (gaps == NUM_GAP_BUCKETS).any()


def test_a_batch_without_any_event_has_no_match() -> None:
    batch = builders.batch([0, 0], [2, 3])
    counts, gaps = match_buckets(batch, builders.ranker().item_table)
    assert (counts == 0).all()
    assert (gaps == NUM_GAP_BUCKETS).all()


def test_with_matches_scores_depend_on_no_other_candidate_and_follow_the_encoded_history() -> None:
    model = builders.ranker(matches=True)
    batch = builders.batch(LENGTHS, TARGETS)
    first_target = 9  # of the longest history
    last_event = 340
    items = batch.event_items.clone()
    items[last_event] = batch.target_items[first_target]
    with torch.no_grad():
        whole = model(batch).logits
        alone = model(builders.pick(batch, [3], {0: [4, 7]})).logits
        encoded = model.score(batch, model.encode(batch)).logits
        changed = model(dataclasses.replace(batch, event_items=items)).logits
    rows = [first_target + 4, first_target + 7]
    torch.testing.assert_close(alone, whole[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(encoded, whole, rtol=0, atol=1e-12)
    assert not torch.allclose(changed[first_target], whole[first_target])


def test_every_parameter_of_the_match_features_learns() -> None:
    model = builders.ranker(matches=True, recency="token")
    batch = builders.batch(LENGTHS, TARGETS)
    model(batch).logits.sum().backward()
    for parameter in model.matches.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("width", [16, 64])
def test_the_plain_ffn_has_as_many_parameters_as_swiglu(width: int) -> None:
    ffn = PlainFFN(width, 2)
    num_plain = sum(parameter.numel() for parameter in ffn.parameters())
    num_swiglu = sum(parameter.numel() for parameter in SwiGLUFFN(width, 2).parameters())
    assert num_plain == num_swiglu
    x = torch.randn(3, width)
    hidden = torch.nn.functional.gelu(x @ ffn.w_1.weight.T)
    torch.testing.assert_close(ffn(x), hidden @ ffn.w_2.weight.T)
    assert type(builders.ranker(ffn="plain").stca.layers[0].ffn) is PlainFFN


def test_the_residual_ffn_keeps_its_input() -> None:
    layer = builders.ranker(ffn="residual").stca.layers[0]
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(layer.encode(x), layer.norm(x + layer.ffn.inner(x)))
    torch.nn.init.zeros_(layer.ffn.inner.w_o.weight)
    torch.testing.assert_close(layer.encode(x), layer.norm(x))


def test_id_std_sets_the_spread_of_new_ids() -> None:
    wide = builders.ranker(id_std=1.0).items.ids.weight.detach()
    default = builders.ranker().items.ids.weight.detach()
    assert float(wide.std()) == pytest.approx(1.0, abs=0.2)
    assert float(default.std()) == pytest.approx(0.05, abs=0.02)
