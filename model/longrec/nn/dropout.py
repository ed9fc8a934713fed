"""Dropout of tokens, item ids and attention, drawn anew for each step from the number of the step.

A resumed training draws the same values as an undisturbed one. The global random state does not
change.

Shape letters: N packed targets, T packed events, D width, I items.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch


class StepDropout:
    """The random choices of the training steps.

    Args:
        token: dropout of the item tokens of targets and events.
        head: dropout of the tokens that enter the head.
        item_id: share of the items whose id is hidden in a step, in targets and histories alike.
        attention: dropout of the weights of events, after the softmax.
        seed: of the training.
        rank: of the process. Hidden ids are the same on all ranks; other choices differ.
        device: of the ranker.
    """

    def __init__(
        self,
        token: float,
        head: float,
        item_id: float,
        attention: float = 0.0,
        *,
        seed: int,
        rank: int,
        device: torch.device,
    ) -> None:
        self.token = token
        self.head = head
        self.item_id = item_id
        self.attention = attention
        self._seed = seed
        self._rank = rank
        self._own = torch.Generator(device)
        self._shared = torch.Generator(device)
        self._shift: Tensor | None = None

    def start_step(self, step: int) -> None:
        """Draw the choices of a step from here on."""
        self._shared.manual_seed(mixed_seed(self._seed, step))
        self._own.manual_seed(mixed_seed(self._seed, step, self._rank + 1))
        self._shift = None

    def drop_token(self, tokens: Tensor) -> Tensor:
        """Return item tokens [., D], with a share of their values zeroed and the rest scaled up."""
        return _drop(tokens, self.token, self._own)

    def drop_head(self, tokens: Tensor) -> Tensor:
        """Return head tokens [N, ., D], with a share of their values zeroed, the rest scaled up."""
        return _drop(tokens, self.head, self._own)

    def drop_attention(self, weights: Tensor) -> Tensor:
        """Return softmax weights [..., L], with a share of them zeroed and the rest scaled up."""
        return _drop(weights, self.attention, self._own)

    def hide_ids(self, batch: RequestBatch, num_items: int) -> RequestBatch:
        """Return the batch with the items of hidden ids moved to the second half of the table.

        All batches of a step hide the same ids.

        Args:
            batch: indices of items below I.
            num_items: I; row I + i of the table is item i without its id.
        """
        if not self.item_id:
            return batch
        if self._shift is None:
            device = batch.target_items.device
            draws = torch.rand(num_items, generator=self._shared, device=device)
            self._shift = (draws < self.item_id).int() * num_items
        shift = self._shift
        return dataclasses.replace(
            batch,
            target_items=batch.target_items + shift[batch.target_items.long()],
            event_items=batch.event_items + shift[batch.event_items.long()],
        )


def mixed_seed(*numbers: int) -> int:
    """Return one seed of several numbers; generators read its lowest 32 bits only.

    Zeros at the end do not change it.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _drop(tokens: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return tokens with a share of their values zeroed and the others scaled up."""
    if not share:
        return tokens
    kept = torch.empty_like(tokens).bernoulli_(1 - share, generator=generator)
    return tokens * kept.div_(1 - share)
