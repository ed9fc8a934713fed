"""Optimizers: row-wise Adagrad by its equations, grouping of parameters, clipping."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longrec.config import TrainConfig
from longrec.errors import ConfigError
from longrec.nn.layers import FeatureEmbedding
from longrec.schema import Feature
from longrec.training import optimizers as optim
from tests.longrec.nn import builders

NUM_ROWS = 7
STEP_IDS = st.lists(
    st.integers(0, NUM_ROWS - 1),
    min_size=1,
    max_size=12,
)
"""Ids that one step reads."""


LR = 0.1
EPS = 1e-6


def reference(
    table: torch.Tensor,
    gradients: list[torch.Tensor],
    weight_decay: float,
) -> torch.Tensor:
    """Return the table after a loop over rows, straight from the equations."""
    table = table.clone()
    sums = [0.0] * len(table)
    for gradient in gradients:
        for row in range(len(table)):
            if not gradient[row].any():
                continue
            gradient[row] += weight_decay * table[row]
            squares = float((gradient[row] ** 2).sum())
            sums[row] += squares / table.shape[1]
            denominator = math.sqrt(sums[row]) + EPS
            table[row] -= LR * gradient[row] / denominator
    return table


def embedded_sum(table: torch.Tensor, ids: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    """Return a weighted sum of rows, each with another weight."""
    rows = nn.functional.embedding(ids, table, sparse=sparse)
    weights = torch.linspace(
        -1,
        2,
        rows.numel(),
        dtype=table.dtype,
    )
    return (rows * weights.reshape(rows.shape)).sum()


def take_step(table: nn.Parameter, optimizer: optim.RowWiseAdagrad) -> None:
    optimizer.zero_grad()
    ids = torch.tensor([1, 2, 2])
    embedded_sum(table, ids, sparse=True).backward()
    optimizer.step()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(STEP_IDS, min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.3]),
)
def test_row_wise_adagrad_equals_the_equations(
    steps: list[list[int]], seed: int, weight_decay: float
) -> None:
    torch.manual_seed(seed)
    start = torch.randn(NUM_ROWS, 3, dtype=torch.float64)
    results = []
    gradients = []
    for sparse in (True, False):
        table = nn.Parameter(start.clone())
        optimizer = optim.RowWiseAdagrad(
            [table],
            lr=LR,
            eps=EPS,
            weight_decay=weight_decay,
        )
        for ids in steps:
            optimizer.zero_grad()
            embedded_sum(table, torch.tensor(ids), sparse=sparse).backward()
            assert table.grad is not None
            assert table.grad.is_sparse == sparse
            if not sparse:
                gradients.append(table.grad.clone())
            optimizer.step()
        results.append(table.detach())
    expected = reference(start, gradients, weight_decay)
    for result in results:
        # the accumulator is float32
        torch.testing.assert_close(
            result,
            expected,
            rtol=0,
            atol=1e-7,
        )


def test_rows_without_gradient_are_untouched_bit_for_bit() -> None:
    table = nn.Parameter(torch.randn(10, 4))
    before = table.detach().clone()
    optimizer = optim.RowWiseAdagrad([table], lr=1.0, weight_decay=0.5)
    embedded_sum(table, torch.tensor([2, 2, 5]), sparse=True).backward()
    optimizer.step()
    untouched = [0, 1, 3, 4, 6, 7, 8, 9]
    assert torch.equal(table[untouched], before[untouched])
    assert not torch.equal(table[[2, 5]], before[[2, 5]])
    touched = optimizer.state[table]["row_sums"] > 0
    assert touched.nonzero().flatten().tolist() == [2, 5]


def test_state_survives_a_save_and_load() -> None:
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = optim.RowWiseAdagrad([table])
    take_step(table, optimizer)
    restored_table = nn.Parameter(table.detach().clone())
    restored = optim.RowWiseAdagrad([restored_table])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_step(table, optimizer)
    take_step(restored_table, restored)
    assert torch.equal(table, restored_table)


def test_wrong_arguments_are_refused() -> None:
    table = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match="lr > 0"):
        optim.RowWiseAdagrad([table], lr=0.0)
    with pytest.raises(ConfigError, match="weight_decay -1"):
        optim.RowWiseAdagrad([table], weight_decay=-1)
    vector = nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match="tables"):
        optim.RowWiseAdagrad([vector])


class Small(nn.Module):
    """A module with one parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(10, 4, sparse=True)
        self.topic = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.b_in = nn.Parameter(torch.ones(2, 1, 3))
        self.gap_bias = nn.Parameter(torch.ones(4, 2))

    def fill_gradients(self) -> None:
        """Set every gradient to ones."""
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.ids.weight.grad = torch.ones(10, 4).to_sparse(1)


def ids_of(parameters: list[torch.Tensor]) -> list[int]:
    return [id(parameter) for parameter in parameters]


def test_parameters_go_where_they_belong() -> None:
    model = Small()
    optimizers = optim.build(model, TrainConfig(weight_decay=0.5))
    assert optimizers.tables is not None
    [tables] = optimizers.tables.param_groups
    decayed, others = optimizers.dense.param_groups
    assert ids_of(tables["params"]) == ids_of([model.ids.weight])
    assert ids_of(decayed["params"]) == ids_of([model.linear.weight])
    assert decayed["weight_decay"] == 0.5
    expected = [
        model.b_in,
        model.gap_bias,
        model.topic.weight,
        model.linear.bias,
        model.norm.weight,
        model.norm.bias,
    ]
    assert ids_of(others["params"]) == ids_of(expected)
    assert others["weight_decay"] == 0


def test_dense_gradients_are_clipped_together() -> None:
    model = Small()
    optimizers = optim.build(model, TrainConfig(clip_norm=0.25))
    model.fill_gradients()
    norm = optimizers.step(1.0)
    dense = []
    for name, parameter in model.named_parameters():
        if name != "ids.weight":
            dense.append(parameter)
    num_values = sum(parameter.numel() for parameter in dense)
    assert float(norm) == pytest.approx(math.sqrt(num_values))
    squares = 0.0
    for parameter in dense:
        assert parameter.grad is not None
        squares += float((parameter.grad**2).sum())
    assert math.sqrt(squares) == pytest.approx(0.25, rel=1e-4)


def test_scale_zero_changes_nothing_and_rates_follow_the_scale() -> None:
    model = Small()
    before = {}
    for name, parameter in model.named_parameters():
        before[name] = parameter.detach().clone()
    optimizers = optim.build(model, TrainConfig())
    model.fill_gradients()
    optimizers.step(0.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    optimizers.step(1.0)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name])


def test_each_kind_of_table_has_its_own_rate() -> None:
    ranker = builders.ranker()
    user_id = Feature("user_id", "id")
    ranker.users = FeatureEmbedding([user_id], [5], id_dim=6, feature_dim=4)
    config = TrainConfig(
        learning_rate=1.0,
        embedding_learning_rate=2.0,
        user_embedding_learning_rate=3.0,
        feature_learning_rate=4.0,
        id_weight_decay=0.25,
    )
    optimizers = optim.build(ranker, config)
    assert optimizers.tables is not None
    optimizers.step(0.5)
    peaks = {
        "items.ids.weight": 2.0,
        "users.ids.weight": 3.0,
        "items.others.weight": 4.0,
        "hour.weight": 4.0,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    names = {id(parameter): name for name, parameter in ranker.named_parameters()}
    rates = {}
    groups = [*optimizers.dense.param_groups, *optimizers.tables.param_groups]
    for group in groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
    assert rates.keys() == set(names.values())
    assert {name: rates[name] for name in peaks} == {name: peak / 2 for name, peak in peaks.items()}
    assert {group["weight_decay"] for group in optimizers.tables.param_groups} == {0.25}


def test_without_rates_of_their_own_tables_share_those_of_before() -> None:
    optimizers = optim.build(
        builders.ranker(), TrainConfig(learning_rate=1.0, embedding_learning_rate=2.0)
    )
    assert optimizers.tables is not None
    assert {group["peak_lr"] for group in optimizers.tables.param_groups} == {2.0}
    assert [group["peak_lr"] for group in optimizers.dense.param_groups] == [1.0, 1.0]


class Recorder:
    """Stands in for sharded tables, and records the row sums that it loads."""

    def __init__(self, num_tables: int) -> None:
        self.sums = [torch.tensor([float(number)]) for number in range(num_tables)]

    def set_scale(self, scale: float) -> None:
        pass

    def row_sums(self) -> list[torch.Tensor]:
        return self.sums

    def load_row_sums(self, sums: Sequence[torch.Tensor]) -> None:
        self.sums = list(sums)


def test_row_sums_of_more_than_ten_sharded_tables_return_to_their_tables() -> None:
    recorder = Recorder(12)
    optimizers = optim.build(nn.Linear(2, 2), TrainConfig(), recorder)
    tensors = optimizers.tensors()
    recorder.sums = []
    optimizers.load(tensors)
    assert [int(sums) for sums in recorder.sums] == list(range(12))
