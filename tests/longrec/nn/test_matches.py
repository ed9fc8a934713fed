"""Matches: counts and gaps against loops over every pair; what they may and may not depend on; the
plain FFN beside SwiGLU.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from longrec.nn.layers import NUM_GAP_BUCKETS, PlainFFN, SwiGLUFFN
from longrec.nn.matches import NUM_COUNT_BUCKETS, find
from tests.longrec.nn import worlds

LENGTHS, TARGETS = [40, 0, 1, 300], [6, 2, 1, 20]


def test_counts_and_gaps_equal_a_loop_over_all_pairs() -> None:
    batch, table = worlds.batch(LENGTHS, TARGETS), worlds.ranker().item_table
    counts, gaps = find(batch, table)
    for r in range(batch.num_requests):
        span = range(int(batch.event_offsets[r]), int(batch.event_offsets[r + 1]))
        for n in range(int(batch.target_offsets[r]), int(batch.target_offsets[r + 1])):
            item = int(batch.target_items[n])
            for column in range(table.shape[1]):
                wanted = item if column == 0 else int(table[item, column])
                rows = {t: int(batch.event_items[t]) for t in span}
                same = [
                    t
                    for t, row in rows.items()
                    if wanted and wanted == (row if column == 0 else int(table[row, column]))
                ]
                count = (
                    0
                    if not same
                    else min(NUM_COUNT_BUCKETS - 1, 1 + math.floor(math.log2(len(same))))
                )
                seconds = (
                    (int(batch.request_timestamps[r]) - int(batch.event_timestamps[same[-1]]))
                    / 1000
                    if same
                    else 0
                )
                gap = (
                    NUM_GAP_BUCKETS
                    if not same
                    else 0
                    if seconds < 1
                    else min(NUM_GAP_BUCKETS - 1, 1 + math.floor(math.log2(seconds)))
                )
                assert (int(counts[n, column]), int(gaps[n, column])) == (count, gap)
    assert counts.max() > 4 and (gaps == NUM_GAP_BUCKETS).any()


def test_a_batch_without_any_event_has_no_match() -> None:
    counts, gaps = find(worlds.batch([0, 0], [2, 3]), worlds.ranker().item_table)
    assert (counts == 0).all() and (gaps == NUM_GAP_BUCKETS).all()


def test_with_matches_scores_depend_on_no_other_candidate_and_follow_the_encoded_history() -> None:
    model, batch = worlds.ranker(matches=True), worlds.batch(LENGTHS, TARGETS)
    with torch.no_grad():
        whole = model(batch).logits
        alone = model(worlds.pick(batch, [3], {0: [4, 7]})).logits
        torch.testing.assert_close(alone, whole[[9 + 4, 9 + 7]], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            model.score(batch, model.encode(batch)).logits, whole, rtol=0, atol=1e-12
        )
        items = batch.event_items.clone()
        items[341 - 1] = batch.target_items[
            9
        ]  # the last event of the longest history becomes the first of its targets
        changed = model(dataclasses.replace(batch, event_items=items)).logits
    assert not torch.allclose(changed[9], whole[9])


def test_every_parameter_of_the_matches_learns() -> None:
    model, batch = worlds.ranker(matches=True, recency="token"), worlds.batch(LENGTHS, TARGETS)
    model(batch).logits.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in model.matches.parameters()
    )


@pytest.mark.parametrize("width", [16, 64])
def test_the_plain_ffn_has_as_many_parameters_as_swiglu(width: int) -> None:
    plain, gated = (
        sum(parameter.numel() for parameter in ffn.parameters())
        for ffn in (PlainFFN(width, 2), SwiGLUFFN(width, 2))
    )
    assert plain == gated
    x = torch.randn(3, width)
    module = PlainFFN(width, 2)
    expected = torch.nn.functional.gelu(x @ module.w_1.weight.T) @ module.w_2.weight.T
    torch.testing.assert_close(module(x), expected)
    assert type(worlds.ranker(ffn="plain").stca.layers[0].ffn) is PlainFFN


def test_the_residual_ffn_keeps_its_input() -> None:
    model = worlds.ranker(ffn="residual")
    layer, x = model.stca.layers[0], torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(layer.encode(x), layer.norm(x + layer.ffn.inner(x)))
    torch.nn.init.zeros_(layer.ffn.inner.w_o.weight)
    torch.testing.assert_close(layer.encode(x), layer.norm(x))


def test_id_std_sets_the_spread_of_new_ids() -> None:
    assert float(worlds.ranker(id_std=1.0).items.ids.weight.detach().std()) == pytest.approx(
        1.0, abs=0.2
    )
    assert float(worlds.ranker().items.ids.weight.detach().std()) == pytest.approx(0.05, abs=0.02)
