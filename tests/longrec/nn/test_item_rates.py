"""Item rates in the head: from the batch in training, from the model's table elsewhere."""

from __future__ import annotations

import dataclasses

import torch

from longrec.nn.item_rates import item_values
from longrec.nn.ranker import Ranker
from tests.longrec.nn import builders

LENGTHS = [40, 0, 1]
TARGETS = [6, 2, 20]


def ranker() -> Ranker:
    """Return a ranker with random rates and random weights of the logits."""
    model = builders.ranker(item_rates=True)
    assert model.item_rates is not None
    torch.nn.init.normal_(model.item_rates.of_values)
    torch.nn.init.normal_(model.item_rates.logits.weight)
    return model


def test_values_are_the_item_and_its_features_without_the_id() -> None:
    model = builders.ranker()
    items = torch.tensor([3, 0, 7], dtype=torch.int32)
    values = item_values(items, model.item_table)
    assert values[:, 0].tolist() == [3, 0, 7]
    assert torch.equal(values[:, 1:], model.item_table[items.long(), 1:].long())


def test_rates_of_the_batch_replace_those_of_the_table() -> None:
    model = ranker()
    assert model.item_rates is not None
    batch = builders.batch(LENGTHS, TARGETS)
    values = item_values(batch.target_items, model.item_table)
    rates = model.item_rates.of_values[values + model.item_rates.starts]
    with torch.no_grad():
        from_table = model(batch).logits
        from_batch = model(dataclasses.replace(batch, target_rates=rates)).logits
        others = model(dataclasses.replace(batch, target_rates=rates + 1)).logits
    torch.testing.assert_close(from_batch, from_table, rtol=0, atol=0)
    assert not torch.allclose(others, from_table)


def test_scores_follow_the_encoded_history_and_depend_on_no_other_candidate() -> None:
    model = ranker()
    batch = builders.batch(LENGTHS, TARGETS)
    with torch.no_grad():
        whole = model(batch).logits
        encoded = model.score(batch, model.encode(batch)).logits
        alone = model(builders.pick(batch, [2], {0: [4, 7]})).logits
    torch.testing.assert_close(encoded, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone, whole[[12, 15]], rtol=0, atol=1e-12)


def test_every_parameter_learns() -> None:
    model = ranker()
    assert model.item_rates is not None
    model(builders.batch(LENGTHS, TARGETS)).logits.sum().backward()
    for parameter in model.item_rates.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_the_table_is_part_of_the_saved_model() -> None:
    state = ranker().state_dict()
    assert "item_rates.of_values" in state
    assert "item_rates.starts" not in state
