"""Exponential moving average of a ranker's weights over the steps of a training.

    average of the first step   <- weights
    average of a later step     <- decay average + (1 - decay) weights

Validations and the bundle use the average; the training goes on from the weights themselves. A step
reads and writes every weight once, those of id tables too.

Source: torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """The averages of all parameters of a module, on its device.

    AveragedModel would copy the whole module, with its item table.

    Args:
        module: its parameters are averaged; their names and shapes must not change.
        decay: share of the average before that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        named = dict(module.named_parameters())
        self._names = list(named)
        self._parameters = list(named.values())
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._average = get_ema_multi_avg_fn(decay)

    def update(self, step: int) -> None:
        """Add the weights after a step to the averages.

        Args:
            step: number of the step, from 1.
        """
        weights = [parameter.detach() for parameter in self._parameters]
        if step == 1:
            torch._foreach_copy_(self._averages, weights)
        else:
            self._average(self._averages, weights, step)

    def restart(self, parameters: list[Tensor]) -> None:
        """Set the averages of some parameters to their values."""
        ids = set(map(id, parameters))
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            if id(parameter) in ids:
                average.copy_(parameter.detach())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the module have the averages as its weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def apply(self) -> None:
        """Give the module the averages as its weights, for good."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            parameter.detach().copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the name of the parameter, as views."""
        return dict(zip(self._names, self._averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the averages that `tensors` returned.

        Raises:
            KeyError: one is missing.
            RuntimeError: one has another shape.
        """
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(tensors[name])

    def _swap(self) -> None:
        """Exchange the storage of averages and weights: nothing is copied."""
        for index, parameter in enumerate(self._parameters):
            average = self._averages[index]
            self._averages[index] = parameter.data
            parameter.data = average
