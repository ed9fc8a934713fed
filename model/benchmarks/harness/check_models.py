"""Rankers and batches that compare fused paths with the reference implementation."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from longrec.config import ModelConfig, TrainConfig
from longrec.data.batch import RequestBatch
from longrec.nn.ranker import Ranker
from longrec.nn.stca import STCA
from longrec.schema import Feature, Schema, Task
from longrec.training import losses

DEVICE = torch.device("cuda")
SCHEMA = Schema(
    "check",
    item=(Feature("item_id", "id"), Feature("topic", "category"), Feature("author", "id")),
    user=(Feature("region", "category"),),
    event=(Feature("action", "category"), Feature("played", "number")),
    tasks=(Task("click"), Task("like")),
)
SIZES = {"item": (5000, 300, 700), "user": (40,), "event": (6, 40)}
NUM_ITEMS = 4000
NOW_MS = 1_700_000_000_000
MAX_AGE_MS = 10**10


def offsets_of(counts: list[int]) -> Tensor:
    """Return the offsets of packed rows, int64 [len(counts) + 1], on the device."""
    return torch.tensor([0, *counts], device=DEVICE).cumsum(0)


def random_batch(lengths: list[int], num_targets: list[int]) -> RequestBatch:
    """Return a validated random batch on the device.

    Args:
        lengths: events of each request.
        num_targets: targets of each request.
    """
    events = sum(lengths)
    targets = sum(num_targets)
    requests = len(lengths)
    ages = [
        torch.randint(1, MAX_AGE_MS, (length,)).sort(descending=True).values for length in lengths
    ]
    event_items = torch.randint(0, NUM_ITEMS + 1, (events,))
    features = [torch.randint(0, size, (events,)) for size in SIZES["event"]]
    batch = RequestBatch(
        event_items=event_items,
        event_timestamps=NOW_MS - torch.cat(ages),
        event_offsets=offsets_of(lengths).cpu(),
        event_features=torch.stack(features, dim=1),
        target_items=torch.randint(0, NUM_ITEMS + 1, (targets,)),
        target_offsets=offsets_of(num_targets).cpu(),
        user_features=torch.randint(0, SIZES["user"][0], (requests, 1)),
        request_timestamps=torch.full((requests,), NOW_MS),
        labels=torch.randint(0, 2, (targets, 2)).float(),
    )
    return batch.validate(num_items=NUM_ITEMS + 1).to(DEVICE)


def random_ranker(**options: object) -> Ranker:
    """Return a ranker in which no term is zero at the start."""
    columns = [torch.randint(0, size, (NUM_ITEMS + 1,)) for size in SIZES["item"]]
    config = ModelConfig(**options)  # type: ignore[arg-type]
    model = Ranker(config, SCHEMA, SIZES, torch.stack(columns, dim=1)).to(DEVICE)
    for layer in cast("STCA", model.stca).layers:
        gap_bias = cast("nn.Parameter | None", layer.gap_bias)
        norm = cast("nn.LayerNorm", layer.norm)
        if gap_bias is not None:
            nn.init.normal_(gap_bias)
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, 0, 0.2)
    return model


def loss_and_gradients(model: Ranker, requests: RequestBatch, *, mixed: bool) -> dict[str, Tensor]:
    """Return logits, loss and all gradients by name.

    Args:
        model: its gradients are replaced.
        requests: a batch with labels.
        mixed: whether products run in bfloat16.
    """
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        output = model(requests)
    assert requests.labels is not None
    labels = requests.labels.to(output.logits.dtype)
    labelled = dataclasses.replace(requests, labels=labels)
    loss = losses.total(output, labelled, TrainConfig())
    loss.backward()
    return {
        "logits": output.logits.detach(),
        "loss": loss.detach()[None],
        **gradients_of(model),
    }


def gradients_of(model: Ranker) -> dict[str, Tensor]:
    """Return a dense copy of every gradient, by parameter name."""
    return {
        name: parameter.grad.to_dense().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def one_request_per_target(requests: RequestBatch) -> RequestBatch:
    """Return the batch in which every target is a request with its own copy of the history."""
    num_targets = requests.target_offsets.diff().tolist()
    starts = requests.event_offsets.tolist()
    rows = [row for row, count in enumerate(num_targets) for _ in range(count)]
    spans = [slice(starts[row], starts[row + 1]) for row in rows]
    row_index = torch.tensor(rows, device=DEVICE)
    return RequestBatch(
        event_items=torch.cat([requests.event_items[span] for span in spans]),
        event_features=torch.cat([requests.event_features[span] for span in spans]),
        event_timestamps=torch.cat([requests.event_timestamps[span] for span in spans]),
        event_offsets=offsets_of([span.stop - span.start for span in spans]),
        target_items=requests.target_items,
        target_offsets=offsets_of([1] * len(spans)),
        user_features=requests.user_features[row_index],
        request_timestamps=requests.request_timestamps[row_index],
        labels=requests.labels,
    )
