"""Dropout of tokens and of item ids: drawn by the number of the step, and by nothing else."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from torch import Tensor

from longrec.nn.dropout import StepDropout
from longrec.nn.ranker import Ranker
from longrec.nn.target_attention import AttentionInputs, padded, reference, reordered
from tests.longrec.nn import builders

BATCH = builders.batch([9, 0, 30], [4, 2, 5])
CPU = torch.device("cpu")


def make(
    token: float = 0.0,
    head: float = 0.0,
    item_id: float = 0.0,
    attention: float = 0.0,
    rank: int = 0,
) -> StepDropout:
    return StepDropout(token, head, item_id, attention, seed=1, rank=rank, device=CPU)


def logits(ranker: Ranker, dropout: StepDropout | None, step: int) -> Tensor:
    """Return the logits of a training step."""
    ranker.train()
    ranker.step_dropout = dropout
    if dropout is not None:
        dropout.start_step(step)
        ranker.allow_hidden_ids()
    return ranker(BATCH).logits


@pytest.mark.parametrize("name", ["token", "head", "item_id"])
def test_a_step_draws_the_same_whenever_it_is_run(name: str) -> None:
    ranker = builders.ranker()
    dropout = make(**{name: 0.5})
    first = logits(ranker, dropout, step=7)
    other = logits(ranker, dropout, step=8)
    again = logits(ranker, make(**{name: 0.5}), step=7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_shares_nothing_changes() -> None:
    ranker = builders.ranker()
    assert torch.equal(logits(ranker, make(), step=1), logits(ranker, None, step=1))


def test_a_scored_batch_is_whole() -> None:
    ranker = builders.ranker()
    expected = ranker(BATCH).logits
    logits(ranker, make(token=0.5, head=0.5, item_id=0.5), step=1)
    assert torch.equal(ranker.eval()(BATCH).logits, expected)


def test_dropout_keeps_the_mean() -> None:
    dropout = make(token=0.4)
    dropout.start_step(1)
    dropped = dropout.drop_token(torch.ones(1_000, 50))
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert (dropped == 0).float().mean() == pytest.approx(0.4, abs=0.02)


def test_an_id_is_hidden_in_targets_and_histories_alike() -> None:
    dropout = make(item_id=0.5)
    dropout.start_step(3)
    num_items = builders.NUM_ITEMS + 1
    hidden = dropout.hide_ids(BATCH, num_items)
    in_targets = {int(item) % num_items for item in hidden.target_items if item >= num_items}
    in_events = {int(item) % num_items for item in hidden.event_items if item >= num_items}
    shown = {int(item) for item in torch.cat([hidden.target_items, hidden.event_items])}
    assert in_targets
    assert in_events
    assert not (in_targets | in_events) & shown
    assert torch.equal(hidden.event_items % num_items, BATCH.event_items)


def test_an_item_of_a_hidden_id_is_an_unknown_id_with_its_other_features() -> None:
    ranker = builders.ranker()
    ranker.allow_hidden_ids()
    table = ranker.table_with_hidden_ids
    assert table is not None
    num_items = len(ranker.item_table)
    assert torch.equal(table[num_items:, 1:], ranker.item_table[:, 1:])
    assert not table[num_items:, 0].any()


def test_ranks_hide_the_same_ids_and_drop_other_values() -> None:
    first = make(token=0.5, item_id=0.5)
    second = make(token=0.5, item_id=0.5, rank=1)
    for dropout in (first, second):
        dropout.start_step(4)
    hidden = [dropout.hide_ids(BATCH, builders.NUM_ITEMS + 1) for dropout in (first, second)]
    assert torch.equal(hidden[0].event_items, hidden[1].event_items)
    ones = torch.ones(20, 8)
    assert not torch.equal(first.drop_token(ones), second.drop_token(ones))


@pytest.mark.parametrize("order", [reference, reordered, padded])
def test_each_order_of_attention_drops_its_weights(order: ModuleType) -> None:
    torch.manual_seed(0)
    projections = [torch.randn(8, 8) for _ in range(3)]
    inputs = AttentionInputs(
        torch.randn(5, 8),
        torch.randn(21, 8),
        *projections,
        num_heads=2,
        segments=builders.segments([9, 12], [2, 3]),
    )

    def halve(weights: Tensor) -> Tensor:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        return weights / 2

    halved = order.attend(dataclasses.replace(inputs, dropout=halve))
    torch.testing.assert_close(halved, reference.attend(inputs) / 2)


@pytest.mark.parametrize("kind", ["stca", "target_attention", "sim"])
def test_attention_is_dropped_in_training_alone(kind: str) -> None:
    ranker = builders.ranker(kind=kind)
    expected = ranker(BATCH).logits
    dropout = make(attention=0.5)
    for module in ranker.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout.drop_attention
    first = logits(ranker, dropout, step=7)
    assert not torch.allclose(first, expected)
    assert torch.equal(logits(ranker, dropout, step=7), first)
    assert not torch.equal(logits(ranker, dropout, step=8), first)
    assert torch.equal(ranker.eval()(BATCH).logits, expected)


def test_dropped_weights_keep_their_mean() -> None:
    dropout = make(attention=0.3)
    dropout.start_step(1)
    weights = dropout.drop_attention(torch.full((50, 400), 1 / 400))
    assert weights.sum(1).mean() == pytest.approx(1, abs=0.02)
    assert (weights == 0).float().mean() == pytest.approx(0.3, abs=0.02)
