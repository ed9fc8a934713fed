"""Random batches and whole training steps for the benchmarks: equal requests, events in the order
of time, popular items first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.flops import stca_flops
from longrec.nn.fused_tokens import ALIGNMENT
from longrec.nn.ranker import Ranker
from longrec.schema import synthetic_schema
from longrec.training import losses
from longrec.training import optimizers as optim

NUM_ITEMS = 1_000_000
SIZES = {"item": (NUM_ITEMS + 1, 64), "user": (9,), "event": (8,)}
NOW_MS, SPAN_MS = 1_700_000_000_000, 90 * 86_400_000


def batch(
    num_requests: int, num_events: int, num_targets: int, device: torch.device
) -> RequestBatch:
    """Returns a batch of equal requests in the schema of the synthetic dataset; one item in a hundred
    is drawn every fifth time.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    events, targets = num_requests * num_events, num_requests * num_targets

    def indices(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, device=device)

    ages = indices(SPAN_MS, num_requests, num_events).sort(1, descending=True).values.flatten()
    popularity = torch.rand(events, generator=generator, device=device).pow(3).mul(NUM_ITEMS).long()
    return RequestBatch(
        event_items=popularity.int(),
        event_features=indices(8, events, 1).int(),
        event_timestamps=NOW_MS - ages,
        event_offsets=torch.arange(num_requests + 1, device=device) * num_events,
        target_items=indices(NUM_ITEMS + 1, targets).int(),
        target_offsets=torch.arange(num_requests + 1, device=device) * num_targets,
        user_features=indices(9, num_requests, 1).int(),
        request_timestamps=torch.full((num_requests,), NOW_MS, device=device),
        labels=indices(2, targets, 1).float(),
        host_counts=([num_events] * num_requests, [num_targets] * num_requests),
    )


def ranker(config: ModelConfig, device: torch.device, *, seed: int = 0) -> Ranker:
    """Returns a ranker with a table of a million items."""
    torch.manual_seed(seed)
    items = torch.arange(NUM_ITEMS + 1)
    return Ranker(config, synthetic_schema(), SIZES, torch.stack([items, items % 64], dim=1)).to(
        device
    )


def step(model: Ranker, requests: RequestBatch, *, mixed: bool = True) -> Callable[[], None]:
    """Returns a function that does one training step: lookup, forward, backward, clipping, both
    optimizers; `mixed`: in bfloat16.
    """
    train = TrainConfig()
    optimizers = optim.build(model, train)
    device = requests.event_items.device
    for group in optimizers.dense.param_groups:
        group["capturable"] = (
            device.type == "cuda"
        )  # the same update, with its step count on the device

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            output = model(requests)
        loss = losses.total(output, requests, train)
        optimizers.zero_grad()
        loss.backward()
        optimizers.step(1.0)

    return work


def written_flops(
    config: ModelConfig, num_requests: int, num_events: int, num_targets: int, *, order: str
) -> float:
    """Returns the FLOPs of a training step as the model is written: three forward passes, attention
    in the given order, and the
    fusion of item and action part, 10 r d^2 an event. Embeddings, projections of them, the head and
    the optimizer count nothing."""
    plain = 4 * config.width**2 + 4 * config.width * num_targets
    attention = plain if order == "plain" else 4 * config.width * config.num_heads * num_targets
    per_event = config.num_layers * (6 * config.ffn_ratio * config.width**2 + attention)
    per_event += 10 * config.ffn_ratio * config.width**2 if config.fusion else 0
    query = stca_flops(config, 0, num_targets).query
    return 3.0 * num_requests * (num_events * per_event + query)


def least_flops(
    config: ModelConfig,
    num_requests: int,
    num_events: int,
    num_targets: int,
) -> float:
    """Returns the same with everything at its cheapest exact order: the cheaper attention, and the
    fusion's first products taken of
    the embeddings themselves (longrec.nn.fused_tokens)."""
    written = min(
        written_flops(config, num_requests, num_events, num_targets, order=order)
        for order in ("plain", "reordered")
    )
    if not config.fusion:
        return written
    embedded = -(-(config.id_dim + 2 * config.feature_dim + 1) // ALIGNMENT) * ALIGNMENT
    saved = 8 * config.ffn_ratio * config.width**2 - 4 * config.ffn_ratio * config.width * embedded
    return written - 3.0 * num_requests * num_events * max(0, saved)


def least_bytes(config: ModelConfig, num_requests: int, num_events: int) -> float:
    """Returns the bytes that the kernels of a training step move for the events, each tensor of 16
    bits read and written once a kernel.

    Per layer, in rows of width d (hidden rows are r d): u, v written and read; normalized rows
    written, read, read; keys and values
    written, read, read again backward, their gradients written, read, read; gradient before the
    norm written, read; u, v read and their
    gradients written, read, read.
    """
    hidden = config.ffn_ratio * config.width
    layer = 12 * hidden + 17 * config.width
    fusion = 10 * hidden + 6 * config.width + 4 * ALIGNMENT if config.fusion else 2 * config.width
    return 2.0 * num_requests * num_events * (config.num_layers * layer + fusion)
