"""Losses: both objectives by hand, their equality with the per-sample mean, the auxiliary loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import TrainConfig
from longrec.data.batch import RequestBatch
from longrec.errors import DataError
from longrec.nn.ranker import RankerOutput
from longrec.training import losses


def batch(labels: torch.Tensor | None, counts: list[int]) -> RequestBatch:
    size, offsets = sum(counts), torch.tensor([0, *counts]).cumsum(0)
    none = torch.zeros(0, dtype=torch.int64)
    return RequestBatch(
        none,
        none[:, None],
        none,
        torch.zeros_like(offsets),
        torch.zeros(size, dtype=torch.int64),
        offsets,
        torch.zeros(len(counts), 0, dtype=torch.int64),
        torch.zeros(len(counts), dtype=torch.int64),
        labels,
    )


def entropy(logit: float, label: float) -> float:
    return -math.log(1 / (1 + math.exp(-logit if label else logit)))


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-8, 8), st.booleans()), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_objectives_by_hand(requests: list[list[tuple[float, bool]]]) -> None:
    each = [[entropy(logit, label) for logit, label in request] for request in requests]
    flat = [target for request in requests for target in request]
    logits, labels = (
        torch.tensor([[float(target[i])] for target in flat], dtype=torch.float64) for i in range(2)
    )
    offsets = torch.tensor([0, *(len(request) for request in requests)]).cumsum(0)
    by_request = sum(sum(request) / len(request) for request in each) / len(each)
    by_target = sum(map(sum, each)) / len(flat)
    assert float(losses.binary_cross_entropy(logits, labels, offsets, "request")) == pytest.approx(
        by_request, abs=1e-12
    )
    assert float(losses.binary_cross_entropy(logits, labels, offsets, "target")) == pytest.approx(
        by_target, abs=1e-12
    )


def test_tasks_weigh_the_same() -> None:
    torch.manual_seed(0)
    logits, labels, offsets = (
        torch.randn(5, 3),
        torch.randint(0, 2, (5, 3)).float(),
        torch.tensor([0, 2, 5]),
    )
    each = [
        losses.binary_cross_entropy(logits[:, k : k + 1], labels[:, k : k + 1], offsets)
        for k in range(3)
    ]
    torch.testing.assert_close(
        losses.binary_cross_entropy(logits, labels, offsets), torch.stack(each).mean()
    )


@pytest.mark.parametrize("objective", ["request", "target"])
def test_the_auxiliary_loss_is_added_with_its_weight(objective: Any) -> None:
    torch.manual_seed(0)
    logits, auxiliary, labels = (
        torch.randn(4, 2),
        torch.randn(4, 2),
        torch.randint(0, 2, (4, 2)).float(),
    )
    whole, config = batch(labels, [3, 1]), TrainConfig(loss=objective)
    main, extra = (
        losses.binary_cross_entropy(values, labels, whole.target_offsets, objective)
        for values in (logits, auxiliary)
    )
    torch.testing.assert_close(losses.total(RankerOutput(logits), whole, config), main)
    torch.testing.assert_close(
        losses.total(RankerOutput(logits, auxiliary, 0.1), whole, config), main + 0.1 * extra
    )


def test_large_logits_are_finite() -> None:
    logits, labels = torch.tensor([[1e4], [-1e4]]), torch.tensor([[0.0], [1.0]])
    assert float(
        losses.binary_cross_entropy(logits, labels, torch.tensor([0, 1, 2]))
    ) == pytest.approx(1e4)


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="no labels"):
        losses.total(RankerOutput(torch.zeros(2, 1)), batch(None, [2]), TrainConfig())
