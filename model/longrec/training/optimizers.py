"""Optimizers: AdamW for dense parameters, row-wise Adagrad for id tables, one schedule for both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from longrec.config import TrainConfig
from longrec.errors import ConfigError, DataError
from longrec.nn import fused_ffn

FINAL_SCALE = 0.1
"""Share of the peak learning rate at the last step."""


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row of a table: rows without gradient are neither read nor
    written.

    With G the gradient of a row of width d:  s <- s + mean(G^2),  row <- row - lr G / (sqrt(s) +
    eps). Takes sparse and dense
    gradients, which give the same result. Memory: rows * 4 bytes, 1/d of Adagrad's.

    Source: the row-wise sparse Adagrad of DLRM (arXiv 1906.00091) and FBGEMM
    (EXACT_ROWWISE_ADAGRAD), without weight decay.

    Args:
        params: two-dimensional tables.
        lr: learning rate.
        eps: added to the square root.

    Raises:
        ConfigError: lr or eps is not positive, or a parameter is not a table.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.05,
        eps: float = 1e-8,
    ) -> None:
        if not (lr > 0 and eps > 0):
            raise ConfigError(
                "row-wise Adagrad needs lr > 0 and eps > 0", found=f"lr {lr}, eps {eps}"
            )
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for table in group["params"]:
                if table.dim() != 2:
                    raise ConfigError(
                        "row-wise Adagrad takes tables",
                        found=f"a parameter of shape {tuple(table.shape)}",
                    )
                self.state[table]["row_sums"] = torch.zeros(
                    table.shape[0], dtype=torch.float32, device=table.device
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every table that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                sums = self.state[table]["row_sums"]
                if table.grad.is_sparse and table.is_cuda and fused_ffn.available():
                    _update_rows_fused(table, sums, table.grad, group)
                elif table.grad.is_sparse:
                    _update_rows(table, sums, table.grad.coalesce(), group)
                else:
                    sums += table.grad.float().square().mean(1)
                    table -= (group["lr"] * table.grad / (sums.sqrt() + group["eps"])[:, None]).to(
                        table.dtype
                    )
        return loss


def _update_rows(
    table: Tensor,
    sums: Tensor,
    gradient: Tensor,
    group: dict[str, Any],
) -> None:
    rows, values = gradient.indices()[0], gradient.values()
    new_sums = sums[rows] + values.float().square().mean(1)
    sums[rows] = new_sums
    table.index_add_(
        0, rows, (-group["lr"] * values / (new_sums.sqrt() + group["eps"])[:, None]).to(table.dtype)
    )


def _update_rows_fused(
    table: Tensor, sums: Tensor, gradient: Tensor, group: dict[str, Any]
) -> None:
    """The same on a CUDA device: repeated rows are added up there, and their number is never waited
    for.
    """
    from longrec.nn.kernels import rows

    rows.adagrad(table, sums, gradient._indices()[0], gradient._values(), group["lr"], group["eps"])


def schedule(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """Returns the share of the peak learning rate at `step` (0-based): linear rise, then cosine
    decay to FINAL_SCALE.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - 1 - num_warmup))
    return FINAL_SCALE + (1 - FINAL_SCALE) * 0.5 * (1 + math.cos(math.pi * progress))


class FusedTables(Protocol):
    """Tables that their backward pass updates, by row-wise Adagrad
    (longrec.training.sharded_tables).
    """

    def set_rate(self, rate: float) -> None: ...

    def row_sums(self) -> list[Tensor]: ...

    def load_row_sums(self, sums: Sequence[Tensor]) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Optimizers:
    """The two optimizers of a ranker, stepped together.

    Args:
        dense: AdamW.
        tables: row-wise Adagrad of the tables with sparse gradients; None when there is none.
        dense_learning_rate, table_learning_rate: the peaks.
        clip_norm: bound of the norm of all dense gradients together; 0 for none.
        fused: what updates the tables instead of `tables`; None for nothing.
    """

    dense: torch.optim.AdamW
    tables: RowWiseAdagrad | None
    dense_learning_rate: float
    table_learning_rate: float
    clip_norm: float
    fused: FusedTables | None = None

    @property
    def table_weights(self) -> list[Tensor]:
        """The tables with sparse gradients, in a fixed order."""
        return (
            []
            if self.tables is None
            else [table for group in self.tables.param_groups for table in group["params"]]
        )

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self.dense.zero_grad(set_to_none=True)
        if self.tables is not None:
            self.tables.zero_grad(set_to_none=True)

    def start(self, scale: float) -> None:
        """Drops all gradients before a forward pass; tables that its backward pass updates will be
        at `scale` of the peak rate.
        """
        self.zero_grad()
        if self.fused is not None:
            self.fused.set_rate(self.table_learning_rate * scale)

    def step(self, scale: float) -> Tensor:
        """Clips the dense gradients, updates everything at `scale` of the peak rates; returns the
        dense gradient norm before clipping.
        """
        parameters = [
            parameter for group in self.dense.param_groups for parameter in group["params"]
        ]
        norm = nn.utils.clip_grad_norm_(
            parameters, self.clip_norm if self.clip_norm > 0 else math.inf
        )
        for group in self.dense.param_groups:
            group["lr"] = self.dense_learning_rate * scale
        self.dense.step()
        if self.tables is not None:
            for group in self.tables.param_groups:
                group["lr"] = self.table_learning_rate * scale
            self.tables.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Returns the state of both optimizers by name, `dense.<parameter>.<value>` and
        `tables.<parameter>.<value>`; views, no copies.

        The rates are no part of it: every step sets them.
        """
        fused = [] if self.fused is None else self.fused.row_sums()
        return {
            **{
                f"{name}.{number}.{key}": value
                for name, optimizer in self._named()
                for number, values in optimizer.state_dict()["state"].items()
                for key, value in values.items()
            },
            **{f"tables.{number}.row_sums": value for number, value in enumerate(fused)},
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the state that `tensors` of equal optimizers gave; other names are not looked at.

        Raises:
            DataError: a tensor does not have the shape of its parameter.
        """
        if self.fused is not None:
            self.fused.load_row_sums(
                [tensors[key] for key in sorted(tensors) if key.startswith("tables.")]
            )
        for name, optimizer in self._named():
            parameters = [
                parameter for group in optimizer.param_groups for parameter in group["params"]
            ]
            state: dict[int, dict[str, Tensor]] = {}
            for key in (key for key in tensors if key.startswith(f"{name}.")):
                _, number, value = key.split(".")
                if int(number) >= len(parameters) or tensors[key].shape[:1] not in (
                    (),
                    parameters[int(number)].shape[:1],
                ):
                    raise DataError(
                        f"{key} does not fit its parameter",
                        found=f"shape {tuple(tensors[key].shape)}",
                    )
                state.setdefault(int(number), {})[value] = tensors[key]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _named(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [
            ("dense", self.dense),
            *([("tables", self.tables)] if self.tables is not None else []),
        ]


def build(model: nn.Module, config: TrainConfig, fused: FusedTables | None = None) -> Optimizers:
    """Returns the optimizers of `model`: tables with sparse gradients (`nn.Embedding(sparse=True)`)
    go to row-wise Adagrad.

    Weight decay acts on matrices of layers only, not on embeddings, biases or norms.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    sparse = {id(module.weight): module.weight for module in embeddings if module.sparse}
    spared = {id(module.weight) for module in embeddings}
    spared |= {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() <= 1 or _is_bias(name)
    }
    rest = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in sparse
    ]
    decayed = [parameter for parameter in rest if id(parameter) not in spared]
    others = [parameter for parameter in rest if id(parameter) in spared]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    dense = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
    tables = RowWiseAdagrad(sparse.values(), lr=config.embedding_learning_rate) if sparse else None
    return Optimizers(
        dense, tables, config.learning_rate, config.embedding_learning_rate, config.clip_norm, fused
    )


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("b_") or "bias" in last
