"""Initial values: a new ranker finds one rare event on a target's topic in a few steps of AdamW."""

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

NUM_ITEMS = 2_000
NUM_TOPICS = 16
NUM_EVENTS = 256
NUM_REQUESTS = 8
NUM_TARGETS = 32
LIKE_RATE = NUM_TOPICS * math.log(2) / NUM_EVENTS
"""Share of likes at which half of the topics are liked in a history."""
LIKED_LABEL_RATE = 0.88
OTHER_LABEL_RATE = 0.12
MAX_LOSS = 0.6
"""0.69 knows nothing, 0.37 is the best possible loss."""
TOPIC = np.random.default_rng(0).permutation(np.arange(NUM_ITEMS) % NUM_TOPICS)


def synthetic_batch(rng: np.random.Generator) -> RequestBatch:
    """Return requests of the synthetic dataset.

    A label is likely if the history has a like on the topic of its target.
    """
    shape = (NUM_REQUESTS, NUM_EVENTS)
    items = rng.integers(0, NUM_ITEMS, shape)
    likes = rng.random(shape) < LIKE_RATE
    candidates = rng.integers(0, NUM_ITEMS, (NUM_REQUESTS, NUM_TARGETS))
    is_liked_topic = np.zeros((NUM_REQUESTS, NUM_TOPICS), bool)
    rows, places = np.nonzero(likes)
    is_liked_topic[rows, TOPIC[items[rows, places]]] = True
    is_liked = np.take_along_axis(is_liked_topic, TOPIC[candidates], 1)
    draws = rng.random(candidates.shape)
    labels = draws < np.where(is_liked, LIKED_LABEL_RATE, OTHER_LABEL_RATE)
    request_times = 1_700_000_000_000 + torch.from_numpy(rng.integers(0, 10**9, NUM_REQUESTS))
    ages = np.sort(rng.integers(1, 10**10, shape), axis=1)[:, ::-1]
    event_times = request_times[:, None] - torch.from_numpy(ages.copy())
    offsets = torch.arange(NUM_REQUESTS + 1)
    return RequestBatch(
        event_items=torch.from_numpy(items.ravel() + 1),
        event_features=torch.from_numpy(likes.reshape(-1, 1) + 2),
        event_timestamps=event_times.ravel(),
        event_offsets=offsets * NUM_EVENTS,
        target_items=torch.from_numpy(candidates.ravel() + 1),
        target_offsets=offsets * NUM_TARGETS,
        user_features=torch.ones(NUM_REQUESTS, 1, dtype=torch.int64),
        request_timestamps=request_times,
        labels=torch.from_numpy(labels.reshape(-1, 1).astype(np.float32)),
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rare_event_is_found_within_sixty_steps(seed: int) -> None:
    torch.manual_seed(seed)
    item_ids = np.arange(NUM_ITEMS + 1) + 1
    topics = np.concatenate([[1], TOPIC + 2])
    table = torch.from_numpy(np.stack([item_ids, topics], axis=1))
    sizes = {"item": (NUM_ITEMS + 2, NUM_TOPICS + 2), "user": (4,), "event": (5,)}
    model = Ranker(ModelConfig(width=32), synthetic_schema(), sizes, table)
    config = TrainConfig(learning_rate=3e-3)
    optimizers = optim.build(model, config)
    rng = np.random.default_rng(100 + seed)
    recent_losses: list[float] = []
    for step in range(60):
        batch = synthetic_batch(rng)
        loss = losses.total(model(batch), batch, config)
        optimizers.zero_grad()
        torch.autograd.backward(loss)
        optimizers.step(min(1.0, (step + 1) / 20))
        recent_losses = [*recent_losses[-9:], float(loss.detach())]
        if statistics.fmean(recent_losses) < MAX_LOSS:
            break
    assert statistics.fmean(recent_losses) < MAX_LOSS
