"""Optimizers: AdamW for dense parameters, row-wise Adagrad for id tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, overload

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.errors import ConfigError, DataError
from longrec.nn.fused import paths as fused_paths

ADAGRAD_EPS = 1e-8
"""Number that row-wise Adagrad adds to the square root of a row's accumulator."""
USERS_NAME = "users."
"""Start of the names of the ranker's tables of user features."""
ParameterGroup: TypeAlias = dict[str, Any]


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row of a table.

    With G the gradient of a row of width d and s its accumulator:

        G <- G + weight_decay row
        s <- s + mean(G^2)
        row <- row - lr G / (sqrt(s) + eps)

    Rows without gradient are neither read nor written: weight decay acts on touched rows only.
    Sparse and dense gradients give the same result. Memory: rows * 4 bytes, 1/d of Adagrad's.

    Source: the row-wise sparse Adagrad of DLRM (arXiv 1906.00091) and FBGEMM
    (EXACT_ROWWISE_ADAGRAD, WeightDecayMode.L2).

    Args:
        params: two-dimensional tables, or groups of them with their own options.
        lr: learning rate.
        eps: added to the square root.
        weight_decay: L2 penalty; 0 for none.

    Raises:
        ConfigError: lr or eps is not positive, weight_decay is negative, or a parameter is not a
            table.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[ParameterGroup],
        lr: float = 0.05,
        eps: float = ADAGRAD_EPS,
        weight_decay: float = 0.0,
    ) -> None:
        if not (lr > 0 and eps > 0 and weight_decay >= 0):
            raise ConfigError(
                "row-wise Adagrad needs lr > 0, eps > 0 and weight_decay >= 0",
                found=f"lr {lr}, eps {eps}, weight_decay {weight_decay}",
            )
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        for table in _parameters(self):
            if table.dim() != 2:
                raise ConfigError(
                    "row-wise Adagrad takes tables",
                    found=f"a parameter of shape {tuple(table.shape)}",
                )
            self.state[table]["row_sums"] = torch.zeros(
                table.shape[0],
                dtype=torch.float32,
                device=table.device,
            )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every table that has a gradient; return the result of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    row_sums = self.state[table]["row_sums"]
                    _update_table(table, row_sums, group)
        return loss


def _update_table(
    table: Tensor,
    row_sums: Tensor,
    group: ParameterGroup,
) -> None:
    """Update a table by its gradient, which may be dense, sparse or on a CUDA device."""
    gradient = table.grad
    assert gradient is not None
    if not gradient.is_sparse:
        _update_all_rows(table, row_sums, gradient, group)
    elif table.is_cuda and fused_paths.available():
        _update_rows_fused(table, row_sums, gradient, group)
    else:
        _update_rows(table, row_sums, gradient.coalesce(), group)


def _update_all_rows(
    table: Tensor,
    row_sums: Tensor,
    gradient: Tensor,
    group: ParameterGroup,
) -> None:
    if group["weight_decay"]:
        is_touched = gradient.any(1, keepdim=True)
        gradient = gradient + group["weight_decay"] * table * is_touched
    row_sums += gradient.float().square().mean(1)
    denominators = row_sums.sqrt() + group["eps"]
    steps = group["lr"] * gradient / denominators[:, None]
    table -= steps.to(table.dtype)


def _update_rows(
    table: Tensor,
    row_sums: Tensor,
    gradient: Tensor,
    group: ParameterGroup,
) -> None:
    """Update the rows of a coalesced sparse gradient."""
    rows = gradient.indices()[0]
    values = gradient.values()
    if group["weight_decay"]:
        values = values + group["weight_decay"] * table[rows]
    new_sums = row_sums[rows] + values.float().square().mean(1)
    row_sums[rows] = new_sums
    denominators = new_sums.sqrt() + group["eps"]
    steps = -group["lr"] * values / denominators[:, None]
    table.index_add_(0, rows, steps.to(table.dtype))


def _update_rows_fused(
    table: Tensor,
    row_sums: Tensor,
    gradient: Tensor,
    group: ParameterGroup,
) -> None:
    """Update rows on a CUDA device.

    The kernel sums repeated rows itself. `coalesce` would wait for the number of different rows.
    """
    from longrec.nn.kernels import rows as row_kernels

    row_kernels.adagrad(
        table,
        row_sums,
        gradient._indices()[0],
        gradient._values(),
        group["lr"],
        group["eps"],
        group["weight_decay"],
    )


class FusedTables(Protocol):
    """Tables that row-wise Adagrad updates within their backward pass.

    See longrec.training.sharded_tables.
    """

    def set_scale(self, scale: float) -> None: ...

    def row_sums(self) -> list[Tensor]: ...

    def load_row_sums(self, sums: Sequence[Tensor]) -> None: ...

    def forget(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Optimizers:
    """The optimizers of a ranker, stepped together.

    Args:
        dense: AdamW.
        tables: row-wise Adagrad of the tables with sparse gradients; None if there are none.
        clip_norm: bound of the norm of all dense gradients together; 0 for none.
        fused: tables that are updated in their backward pass, instead of `tables`; or None.
    """

    dense: torch.optim.AdamW
    tables: RowWiseAdagrad | None
    clip_norm: float
    fused: FusedTables | None = None

    @property
    def table_weights(self) -> list[Tensor]:
        """The tables with sparse gradients, in a fixed order."""
        return [] if self.tables is None else _parameters(self.tables)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._by_name().values():
            optimizer.zero_grad(set_to_none=True)

    def start(self, scale: float) -> None:
        """Drop all gradients before a forward pass.

        Args:
            scale: share of the peak rate, for tables that are updated in the backward pass.
        """
        self.zero_grad()
        if self.fused is not None:
            self.fused.set_scale(scale)

    def step(self, scale: float) -> Tensor:
        """Clip the dense gradients and update everything; return their norm before clipping.

        Args:
            scale: share of the peak learning rates.
        """
        max_norm = self.clip_norm if self.clip_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(_parameters(self.dense), max_norm)
        for optimizer in self._by_name().values():
            _set_learning_rates(optimizer, scale)
            optimizer.step()
        return norm

    def forget_tables(self) -> None:
        """Set the accumulators of all tables with sparse gradients to zero."""
        for table in self.table_weights:
            assert self.tables is not None
            self.tables.state[table]["row_sums"].zero_()
        if self.fused is not None:
            self.fused.forget()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of both optimizers by name, as views.

        Names are `dense.<parameter>.<value>` and `tables.<parameter>.<value>`. Learning rates are
        left out: every step sets them.
        """
        tensors = {}
        for name, optimizer in self._by_name().items():
            state = optimizer.state_dict()["state"]
            for number, values in state.items():
                for key, value in values.items():
                    tensors[f"{name}.{number}.{key}"] = value
        if self.fused is not None:
            for number, row_sums in enumerate(self.fused.row_sums()):
                tensors[f"tables.{number}.row_sums"] = row_sums
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` of equal optimizers returned; ignore other names.

        Raises:
            DataError: a tensor does not have the shape of its parameter.
        """
        if self.fused is not None:
            keys = [key for key in tensors if key.startswith("tables.")]
            keys.sort(key=_parameter_number)
            self.fused.load_row_sums([tensors[key] for key in keys])
        for name, optimizer in self._by_name().items():
            state = _optimizer_state(name, optimizer, tensors)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _by_name(self) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = {"dense": self.dense}
        if self.tables is not None:
            optimizers["tables"] = self.tables
        return optimizers


def build(
    model: nn.Module,
    config: TrainConfig,
    fused: FusedTables | None = None,
) -> Optimizers:
    """Return the optimizers of a model.

    Tables with sparse gradients (`nn.Embedding(sparse=True)`) go to row-wise Adagrad. Weight decay
    of AdamW acts on matrices of layers only, not on embeddings, biases or norms.
    """
    dense = torch.optim.AdamW(
        _dense_groups(model, config),
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
    tables = None
    groups = _table_groups(model, config)
    if groups:
        tables = RowWiseAdagrad(groups, weight_decay=config.id_weight_decay)
    return Optimizers(
        dense,
        tables,
        config.clip_norm,
        fused,
    )


def id_learning_rate(name: str, config: TrainConfig) -> float:
    """Return the peak learning rate of a table of ids, by the name of its module."""
    is_of_users = name.startswith(USERS_NAME)
    own = config.user_embedding_learning_rate if is_of_users else 0.0
    return own or config.embedding_learning_rate


def sparse_tables(model: nn.Module) -> list[Tensor]:
    """Return the weights of embeddings with sparse gradients, each once."""
    return [table for _, table in _named_sparse_tables(model)]


def _named_sparse_tables(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the names of embeddings with sparse gradients and their weights, each once."""
    tables: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.sparse:
            tables.setdefault(id(module.weight), (name, module.weight))
    return list(tables.values())


def _table_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Return a parameter group for each table with sparse gradients."""
    groups = []
    for name, table in _named_sparse_tables(model):
        rate = id_learning_rate(name, config)
        groups.append({"params": [table], "lr": rate, "peak_lr": rate})
    return groups


def _dense_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Return parameter groups with and without weight decay; leave out empty ones."""
    sparse_ids = set(map(id, sparse_tables(model)))
    embedding_ids = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            embedding_ids.add(id(module.weight))
    decayed = []
    undecayed = []
    embeddings = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in sparse_ids:
            continue
        if id(parameter) in embedding_ids and config.feature_learning_rate:
            embeddings.append(parameter)
        elif parameter.dim() <= 1 or id(parameter) in embedding_ids or _is_bias(name):
            undecayed.append(parameter)
        else:
            decayed.append(parameter)
    rate = config.learning_rate
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak_lr": rate},
        {"params": undecayed, "weight_decay": 0.0, "peak_lr": rate},
        {"params": embeddings, "weight_decay": 0.0, "peak_lr": config.feature_learning_rate},
    ]
    return [group for group in groups if group["params"]]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer, in a fixed order."""
    parameters: list[Tensor] = []
    for group in optimizer.param_groups:
        parameters.extend(group["params"])
    return parameters


def _set_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def _optimizer_state(
    name: str,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> dict[int, dict[str, Tensor]]:
    """Return the state of one optimizer by parameter number, from `<name>.<parameter>.<value>`.

    Raises:
        DataError: a tensor does not have the shape of its parameter.
    """
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(f"{name}."):
            continue
        number = _parameter_number(key)
        value_name = key.rpartition(".")[2]
        is_known = number < len(parameters)
        if not is_known or not _fits(tensor, parameters[number]):
            raise DataError(
                f"{key} does not fit its parameter",
                found=f"shape {tuple(tensor.shape)}",
            )
        state.setdefault(number, {})[value_name] = tensor
    return state


def _parameter_number(key: str) -> int:
    """Return the number in a name `<optimizer>.<parameter>.<value>`."""
    return int(key.split(".")[1])


def _fits(tensor: Tensor, parameter: Tensor) -> bool:
    """Return whether an optimizer's value is a scalar or has the parameter's number of rows."""
    return tensor.dim() == 0 or tensor.shape[:1] == parameter.shape[:1]


def _is_bias(name: str) -> bool:
    """Return whether a parameter is a bias: `linear.bias`, `gap_bias`, `b_in`."""
    last = name.rpartition(".")[2]
    return last.startswith("b_") or "bias" in last
