"""The initial values: a new ranker finds one rare event on a target's topic among hundreds in a few
steps of AdamW.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.ranker import Ranker
from longrec.schema import synthetic_schema
from longrec.training import losses
from longrec.training import optimizers as optim

NUM_ITEMS, NUM_TOPICS, NUM_EVENTS, NUM_REQUESTS, NUM_TARGETS = 2_000, 16, 256, 8, 32
TOPIC = np.random.default_rng(0).permutation(np.arange(NUM_ITEMS) % NUM_TOPICS)


def planted_batch(rng: np.random.Generator) -> RequestBatch:
    """Returns requests of the synthetic dataset: a label is likely where the history has a like on the
    target's topic.
    """
    shape, like_rate = (NUM_REQUESTS, NUM_EVENTS), NUM_TOPICS * math.log(2) / NUM_EVENTS
    items, likes = rng.integers(0, NUM_ITEMS, shape), rng.random(shape) < like_rate
    candidates = rng.integers(0, NUM_ITEMS, (NUM_REQUESTS, NUM_TARGETS))
    liked = np.zeros((NUM_REQUESTS, NUM_TOPICS), bool)
    rows, places = np.nonzero(likes)
    liked[rows, TOPIC[items[rows, places]]] = True
    labels = rng.random(candidates.shape) < np.where(
        np.take_along_axis(liked, TOPIC[candidates], 1), 0.88, 0.12
    )
    request_times = torch.full((NUM_REQUESTS,), 1_700_000_000_000) + torch.from_numpy(
        rng.integers(0, 10**9, NUM_REQUESTS)
    )
    times = request_times[:, None] - torch.from_numpy(
        np.sort(rng.integers(1, 10**10, shape), axis=1)[:, ::-1].copy()
    )
    offsets = torch.arange(NUM_REQUESTS + 1)
    return RequestBatch(
        torch.from_numpy(items.ravel() + 1),
        torch.from_numpy(likes.reshape(-1, 1) + 2),
        times.ravel(),
        offsets * NUM_EVENTS,
        torch.from_numpy(candidates.ravel() + 1),
        offsets * NUM_TARGETS,
        torch.ones(NUM_REQUESTS, 1, dtype=torch.int64),
        request_times,
        torch.from_numpy(labels.reshape(-1, 1).astype(np.float32)),
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rare_event_is_found_within_sixty_steps(seed: int) -> None:
    torch.manual_seed(seed)
    table = np.stack([np.arange(NUM_ITEMS + 1) + 1, np.concatenate([[1], TOPIC + 2])], axis=1)
    sizes = {"item": (NUM_ITEMS + 2, NUM_TOPICS + 2), "user": (4,), "event": (5,)}
    model = Ranker(ModelConfig(width=32), synthetic_schema(), sizes, torch.from_numpy(table))
    rng, config, seen = (
        np.random.default_rng(100 + seed),
        TrainConfig(learning_rate=3e-3),
        list[float](),
    )
    optimizers = optim.build(model, config)
    for step in range(60):
        batch = planted_batch(rng)
        loss = losses.total(model(batch), batch, config)
        optimizers.zero_grad()
        torch.autograd.backward(loss)
        optimizers.step(min(1.0, (step + 1) / 20))
        seen.append(float(loss.detach()))
        if statistics.fmean(seen[-10:]) < 0.6:  # 0.69 knows nothing, 0.37 is Bayes
            break
    assert statistics.fmean(seen[-10:]) < 0.6
