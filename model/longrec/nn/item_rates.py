"""Item rates of a target: the mean labels of its item and of its item features, as dense features.

The values are statistics of the training targets (longrec.data.loading.item_rates). An embedding
would have to learn them from the same labels, and learns the noise of rare items with them.

Shape letters: N packed targets, D width, I items, C columns of the item table (column 0 is the item
itself, the others are its features without the id), V values of all columns, K tasks, S = K + 1
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.data.batch import RequestBatch
from longrec.nn.layers import linear

LOGIT_GAIN = 8.0
"""Factor of the logits: Adam moves them by as many times the learning rate a step."""


class ItemRates(nn.Module):
    """One row per target from the rates of its item and item features, and its logits.

    Args:
        num_values: C numbers of values; of the item itself first.
        width: D.
        num_tasks: K.

    Source: wide and deep (arXiv 1606.07792), of ordered target statistics.
    """

    of_values: Tensor
    starts: Tensor

    def __init__(self, num_values: Sequence[int], width: int, num_tasks: int) -> None:
        super().__init__()
        self.num_values = tuple(num_values)
        num_statistics = num_tasks + 1
        table = torch.zeros(sum(num_values), num_statistics)
        self.register_buffer("of_values", table)
        ends = torch.tensor(num_values).cumsum(0)
        self.register_buffer("starts", ends - torch.tensor(num_values), persistent=False)
        num_inputs = len(num_values) * num_statistics
        self.part = linear(num_inputs, width)
        self.logits = linear(num_inputs, num_tasks)
        nn.init.zeros_(self.logits.weight)

    def forward(
        self,
        batch: RequestBatch,
        item_table: Int[Tensor, "I C"],
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N K"]]:
        """Return the rows to add to the tokens of the targets, and what to add to their logits."""
        rates = batch.target_rates
        if rates is None:
            rates = self.of_values[item_values(batch.target_items, item_table) + self.starts]
        inputs = rates.flatten(1)
        row: Tensor = self.part(inputs)
        # Without autocast: a logit above 2 would be rounded to 16 bits.
        with torch.autocast(inputs.device.type, enabled=False):
            logits = LOGIT_GAIN * self.logits(inputs)
        return row, logits


def item_values(items: Int[Tensor, " N"], item_table: Int[Tensor, "I C"]) -> Int[Tensor, "N C"]:
    """Return the value of each column, int64: the item itself, then its features without the id."""
    rows = items.long()
    return torch.cat([rows[:, None], item_table[rows, 1:].long()], dim=1)
