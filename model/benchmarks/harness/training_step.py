"""Random batches and whole training steps, with their FLOPs and bytes.

Requests of a batch have equal sizes, events are in the order of time, and popular items come first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.flops import stca_flops
from longrec.nn.fused.tokens import ALIGNMENT
from longrec.nn.ranker import Ranker
from longrec.schema import synthetic_schema
from longrec.training import losses, optimizers

NUM_ITEMS = 1_000_000
NUM_TOPICS = 64
NUM_ACTIONS = 8
NUM_REGIONS = 9
NOW_MS = 1_700_000_000_000
SPAN_MS = 90 * 86_400_000
PASSES_PER_STEP = 3.0
"""A training step takes three times the FLOPs of a forward pass."""
BYTES_PER_NUMBER = 2.0


def random_batch(
    num_requests: int,
    num_events: int,
    num_targets: int,
    device: torch.device,
    *,
    num_items: int = NUM_ITEMS,
) -> RequestBatch:
    """Return a batch of equal requests in the schema of the synthetic dataset.

    One item in a hundred is drawn every fifth time.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    events = num_requests * num_events
    targets = num_requests * num_targets

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, device=device)

    ages = integers(SPAN_MS, num_requests, num_events).sort(1, descending=True).values.flatten()
    uniform = torch.rand(events, generator=generator, device=device)
    return RequestBatch(
        event_items=uniform.pow(3).mul(num_items).long().int(),
        event_features=integers(NUM_ACTIONS, events, 1).int(),
        event_timestamps=NOW_MS - ages,
        event_offsets=torch.arange(num_requests + 1, device=device) * num_events,
        target_items=integers(num_items + 1, targets).int(),
        target_offsets=torch.arange(num_requests + 1, device=device) * num_targets,
        user_features=integers(NUM_REGIONS, num_requests, 1).int(),
        request_timestamps=torch.full((num_requests,), NOW_MS, device=device),
        labels=integers(2, targets, 1).float(),
        host_counts=([num_events] * num_requests, [num_targets] * num_requests),
    )


def make_ranker(
    config: ModelConfig, device: torch.device, *, seed: int = 0, num_items: int = NUM_ITEMS
) -> Ranker:
    """Return a ranker with random weights and a table of `num_items` items."""
    torch.manual_seed(seed)
    items = torch.arange(num_items + 1)
    item_table = torch.stack([items, items % NUM_TOPICS], dim=1)
    sizes = {"item": (num_items + 1, NUM_TOPICS), "user": (NUM_REGIONS,), "event": (NUM_ACTIONS,)}
    return Ranker(config, synthetic_schema(), sizes, item_table).to(device)


def make_step(model: Ranker, requests: RequestBatch, *, mixed: bool = True) -> Callable[[], None]:
    """Return a function that does one whole training step.

    Args:
        model: is trained in place.
        requests: the batch of every step.
        mixed: whether products run in bfloat16.
    """
    config = TrainConfig()
    both = optimizers.build(model, config)
    device = requests.event_items.device
    for group in both.dense.param_groups:
        # The same update, with its step count on the device.
        group["capturable"] = device.type == "cuda"

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            output = model(requests)
        loss = losses.total(output, requests, config)
        both.zero_grad()
        loss.backward()
        both.step(1.0)

    return work


def written_flops(
    config: ModelConfig, num_requests: int, num_events: int, num_targets: int, *, order: str
) -> float:
    """Return the FLOPs of a training step as the model is written.

    They count STCA with attention in the given order, and the fusion of item and action part (10 r
    d^2 an event). Embeddings, their projections, the head and the optimizer count nothing.
    """
    width = config.width
    if order == "plain":
        attention = 4 * width**2 + 4 * width * num_targets
    else:
        attention = 4 * width * config.num_heads * num_targets
    per_event = config.num_layers * (6 * config.ffn_ratio * width**2 + attention)
    if config.fusion:
        per_event += 10 * config.ffn_ratio * width**2
    query = stca_flops(config, 0, num_targets).query
    return PASSES_PER_STEP * num_requests * (num_events * per_event + query)


def least_flops(config: ModelConfig, num_requests: int, num_events: int, num_targets: int) -> float:
    """Return the FLOPs of the cheapest exact order of every part.

    That is the cheaper order of attention, with the first products of the fusion taken of the
    embeddings (longrec.nn.fused.tokens).
    """
    sizes = (config, num_requests, num_events, num_targets)
    written = min(written_flops(*sizes, order=order) for order in ("plain", "reordered"))
    if not config.fusion:
        return written
    width = config.width
    embedding_width = config.id_dim + 2 * config.feature_dim + 1
    aligned_width = -(-embedding_width // ALIGNMENT) * ALIGNMENT
    saved = 8 * config.ffn_ratio * width**2 - 4 * config.ffn_ratio * width * aligned_width
    return written - PASSES_PER_STEP * num_requests * num_events * max(0, saved)


def least_bytes(config: ModelConfig, num_requests: int, num_events: int) -> float:
    """Return the bytes that the kernels of a training step move for the events.

    Each kernel reads and writes a tensor of 16 bits once. Per layer, in rows of width d (hidden
    rows have r d numbers):

    - u and v, and their gradients: written once, read twice;
    - normalized rows, keys and values, and their gradients: written once, read twice;
    - the gradient before the norm: written and read once.
    """
    hidden = config.ffn_ratio * config.width
    layer = 12 * hidden + 17 * config.width
    fusion = 2 * config.width
    if config.fusion:
        fusion = 10 * hidden + 6 * config.width + 4 * ALIGNMENT
    return BYTES_PER_NUMBER * num_requests * num_events * (config.num_layers * layer + fusion)
