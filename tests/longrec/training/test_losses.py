"""Losses: both objectives by hand, equal weights of tasks, the auxiliary loss."""

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

TARGET = st.tuples(st.floats(-8, 8), st.booleans())
"""(logit, label) of a target."""
REQUEST = st.lists(
    TARGET,
    min_size=1,
    max_size=5,
)
REQUESTS = st.lists(
    REQUEST,
    min_size=1,
    max_size=5,
)


def batch_of(labels: torch.Tensor | None, counts: list[int]) -> RequestBatch:
    """Return a batch without events and features, `counts` targets per request."""
    num_requests = len(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    nothing = torch.zeros(0, dtype=torch.int64)
    return RequestBatch(
        event_items=nothing,
        event_features=nothing[:, None],
        event_timestamps=nothing,
        event_offsets=torch.zeros_like(offsets),
        target_items=torch.zeros(sum(counts), dtype=torch.int64),
        target_offsets=offsets,
        user_features=torch.zeros(num_requests, 0, dtype=torch.int64),
        request_timestamps=torch.zeros(num_requests, dtype=torch.int64),
        labels=labels,
    )


def entropy(logit: float, label: float) -> float:
    """Return the cross entropy of one target."""
    own = logit if label else -logit
    return math.log(1 + math.exp(-own))


def random_labels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape).float()


@given(REQUESTS)
def test_objectives_by_hand(requests: list[list[tuple[float, bool]]]) -> None:
    entropies = []
    logits = []
    labels = []
    for request in requests:
        entropies.append([entropy(logit, label) for logit, label in request])
        for logit, label in request:
            logits.append([logit])
            labels.append([float(label)])
    offsets = torch.tensor([0, *map(len, requests)]).cumsum(0)
    request_means = [sum(values) / len(values) for values in entropies]
    expected = {
        "request": sum(request_means) / len(request_means),
        "target": sum(map(sum, entropies)) / len(logits),
    }
    for objective, value in expected.items():
        loss = losses.binary_cross_entropy(
            torch.tensor(logits, dtype=torch.float64),
            torch.tensor(labels, dtype=torch.float64),
            offsets,
            objective,
        )
        assert float(loss) == pytest.approx(value, abs=1e-12)


def test_tasks_have_equal_weights() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3)
    labels = random_labels(5, 3)
    offsets = torch.tensor([0, 2, 5])
    task_losses = []
    for task in range(3):
        columns = slice(task, task + 1)
        loss = losses.binary_cross_entropy(
            logits[:, columns],
            labels[:, columns],
            offsets,
        )
        task_losses.append(loss)
    together = losses.binary_cross_entropy(logits, labels, offsets)
    torch.testing.assert_close(together, torch.stack(task_losses).mean())


@pytest.mark.parametrize("objective", ["request", "target"])
def test_the_auxiliary_loss_is_added_with_its_weight(objective: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 2)
    auxiliary = torch.randn(4, 2)
    labels = random_labels(4, 2)
    batch = batch_of(labels, [3, 1])
    config = TrainConfig(loss=objective)

    def cross_entropy(values: torch.Tensor) -> torch.Tensor:
        return losses.binary_cross_entropy(
            values,
            labels,
            batch.target_offsets,
            objective,
        )

    main = cross_entropy(logits)
    extra = cross_entropy(auxiliary)
    without = losses.total(RankerOutput(logits), batch, config)
    torch.testing.assert_close(without, main)
    output = RankerOutput(logits, auxiliary, 0.1)
    torch.testing.assert_close(losses.total(output, batch, config), main + 0.1 * extra)


def test_large_logits_are_finite() -> None:
    loss = losses.binary_cross_entropy(
        torch.tensor([[1e4], [-1e4]]),
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([0, 1, 2]),
    )
    assert float(loss) == pytest.approx(1e4)


def test_a_batch_without_labels_is_refused() -> None:
    output = RankerOutput(torch.zeros(2, 1))
    batch = batch_of(None, [2])
    with pytest.raises(DataError, match="no labels"):
        losses.total(output, batch, TrainConfig())
