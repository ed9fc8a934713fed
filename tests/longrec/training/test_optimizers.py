"""Optimizers: row-wise Adagrad against a dense transcription, the grouping of parameters, the
schedule.
"""

from __future__ import annotations

import copy as copy_module
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.training import optimizers as optim


def reference(
    table: torch.Tensor, gradients: list[torch.Tensor], lr: float, eps: float
) -> torch.Tensor:
    """Returns the table after a loop over rows, straight from the equations."""
    table, sums = table.clone(), [0.0] * len(table)
    for gradient in gradients:
        for row in range(len(table)):
            sums[row] += float((gradient[row] ** 2).sum()) / table.shape[1]
            table[row] -= lr * gradient[row] / (math.sqrt(sums[row]) + eps)
    return table


def embedded_sum(table: torch.Tensor, ids: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    return (
        nn.functional.embedding(ids, table, sparse=sparse)
        * torch.linspace(-1, 2, ids.numel() * table.shape[1], dtype=table.dtype).reshape(
            ids.numel(), -1
        )
    ).sum()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_row_wise_adagrad_equals_the_equations(steps, seed) -> None:
    torch.manual_seed(seed)
    start = torch.randn(7, 3, dtype=torch.float64)
    results = []
    gradients = []
    for sparse in (True, False):
        table = nn.Parameter(start.clone())
        optimizer = optim.RowWiseAdagrad([table], lr=0.1, eps=1e-6)
        for ids in steps:
            optimizer.zero_grad()
            embedded_sum(table, torch.tensor(ids), sparse=sparse).backward()
            assert table.grad is not None and table.grad.is_sparse == sparse
            if not sparse:
                gradients.append(table.grad.clone())
            optimizer.step()
        results.append(table.detach())
    expected = reference(start, gradients, 0.1, 1e-6)
    for result in results:
        torch.testing.assert_close(
            result, expected, rtol=0, atol=1e-7
        )  # the accumulator is float32


def test_rows_without_gradient_are_untouched_bit_for_bit() -> None:
    table = nn.Parameter(torch.randn(10, 4))
    before = table.detach().clone()
    optimizer = optim.RowWiseAdagrad([table], lr=1.0)
    embedded_sum(table, torch.tensor([2, 2, 5]), sparse=True).backward()
    optimizer.step()
    untouched = [0, 1, 3, 4, 6, 7, 8, 9]
    assert torch.equal(table[untouched], before[untouched])
    assert not torch.equal(table[[2, 5]], before[[2, 5]])
    assert (optimizer.state[table]["row_sums"] > 0).nonzero().flatten().tolist() == [2, 5]


def test_state_survives_a_save_and_load() -> None:
    def run(table: nn.Parameter, optimizer: optim.RowWiseAdagrad) -> None:
        optimizer.zero_grad()
        embedded_sum(table, torch.tensor([1, 2, 2]), sparse=True).backward()
        optimizer.step()

    table = nn.Parameter(torch.ones(4, 2))
    optimizer = optim.RowWiseAdagrad([table])
    run(table, optimizer)
    copy = nn.Parameter(table.detach().clone())
    restored = optim.RowWiseAdagrad([copy])
    restored.load_state_dict(copy_module.deepcopy(optimizer.state_dict()))
    run(table, optimizer)
    run(copy, restored)
    assert torch.equal(table, copy)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr > 0"):
        optim.RowWiseAdagrad([nn.Parameter(torch.ones(2, 2))], lr=0.0)
    with pytest.raises(ConfigError, match="tables"):
        optim.RowWiseAdagrad([nn.Parameter(torch.ones(2))])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(10, 4, sparse=True)
        self.topic = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.b_in, self.gap_bias = nn.Parameter(torch.ones(2, 1, 3)), nn.Parameter(torch.ones(4, 2))


def test_parameters_go_where_they_belong() -> None:
    model = Small()
    optimizers = optim.build(model, TrainConfig(weight_decay=0.5))
    assert optimizers.tables is not None
    decayed, others = optimizers.dense.param_groups
    assert [id(p) for p in optimizers.tables.param_groups[0]["params"]] == [id(model.ids.weight)]
    assert [id(p) for p in decayed["params"]] == [id(model.linear.weight)] and decayed[
        "weight_decay"
    ] == 0.5
    expected = [
        model.b_in,
        model.gap_bias,
        model.topic.weight,
        model.linear.bias,
        model.norm.weight,
        model.norm.bias,
    ]
    assert [id(p) for p in others["params"]] == [id(p) for p in expected] and others[
        "weight_decay"
    ] == 0


def test_dense_gradients_are_clipped_together() -> None:
    model = Small()
    optimizers = optim.build(model, TrainConfig(clip_norm=0.25))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.ids.weight.grad = torch.ones(10, 4).to_sparse(1)
    norm = optimizers.step(1.0)
    dense = [p for name, p in model.named_parameters() if name != "ids.weight"]
    assert float(norm) == pytest.approx(math.sqrt(sum(p.numel() for p in dense)))
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in dense if p.grad is not None))
    assert total == pytest.approx(0.25, rel=1e-4)


def test_scale_zero_changes_nothing_and_rates_follow_the_scale() -> None:
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = optim.build(model, TrainConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.ids.weight.grad = torch.ones(10, 4).to_sparse(1)
    optimizers.step(0.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizers.step(1.0)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_schedule_rises_and_falls_to_a_tenth() -> None:
    scales = [optim.schedule(step, num_steps=100, warmup_fraction=0.1) for step in range(100)]
    assert scales[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(a >= b for a, b in itertools.pairwise(scales[9:]))
    assert scales[-1] == pytest.approx(optim.FINAL_SCALE)
    assert optim.schedule(0, num_steps=1, warmup_fraction=0.0) == 1.0
