"""Draw the id tables anew between epochs, so that no epoch learns by heart what another has seen.

All other weights go on. The tables of the last epoch are those of the trained ranker.

Source: MEDA, embeddings re-initialized in every epoch (arXiv 2305.19531).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from longrec.nn.dropout import mixed_seed
from longrec.nn.layers import ID_STD, FeatureEmbedding
from longrec.nn.ranker import Ranker
from longrec.training.optimizers import Optimizers
from longrec.training.sharded_tables import ShardedTable

SEED_TAG = (0, 1)
"""Ends the numbers of a seed: the draws of dropout end with other ones."""


def redraw_ids(ranker: Ranker, optimizers: Optimizers, seed: int, step: int) -> None:
    """Replace the values of all id tables, and forget the accumulators of their updates.

    The draws depend on the numbers alone, neither on the device nor on the number of processes.

    Args:
        ranker: its tables change in place.
        optimizers: of the ranker.
        seed: of the training.
        step: number of steps done.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, *SEED_TAG))
    groups = {
        ranker.items: ranker.config.id_std,
        ranker.actions: ID_STD,
        ranker.users: ID_STD,
    }
    for group, deviation in groups.items():
        if group.ids is None:
            continue
        shape = (group.ids.num_embeddings, group.ids.embedding_dim)
        values = torch.empty(shape).normal_(std=deviation, generator=generator)
        _write(group, values)
    optimizers.forget_tables()


def _write(group: FeatureEmbedding, values: Tensor) -> None:
    if group.is_sharded:
        cast("ShardedTable", group.ids).load_weight(values)
        return
    assert group.ids is not None
    group.ids.weight.detach().copy_(values)
