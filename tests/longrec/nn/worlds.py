"""Small rankers and random request batches for the tests of the model."""

from __future__ import annotations

import torch

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.ranker import Ranker
from longrec.schema import Feature, Schema, Task

SCHEMA = Schema(
    "test",
    item=(Feature("item_id", "id"), Feature("topic", "category"), Feature("author", "id")),
    user=(Feature("region", "category"),),
    event=(Feature("action", "category"), Feature("played", "number")),
    tasks=(Task("click"), Task("like")),
)
SIZES = {"item": (50, 7, 9), "user": (5,), "event": (4, 6)}
NUM_ITEMS = 40
NOW = 1_700_000_000_000


def ranker(*, seed: int = 0, **config: object) -> Ranker:
    """Returns a float64 ranker with random gap biases, so that no term of the model is zero by its
    initial value.
    """
    torch.manual_seed(seed)
    options = {
        "width": 16,
        "num_layers": 3,
        "num_heads": 4,
        "id_dim": 6,
        "feature_dim": 4,
        **config,
    }
    table = torch.stack([torch.randint(0, size, (NUM_ITEMS + 1,)) for size in SIZES["item"]], dim=1)
    model = Ranker(ModelConfig(**options), SCHEMA, SIZES, table).double()  # type: ignore[arg-type]
    for layer in getattr(model.stca, "layers", ()):
        if layer.gap_bias is not None:
            torch.nn.init.normal_(layer.gap_bias)
    return model.eval()


def offsets(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def batch(lengths: list[int], num_targets: list[int], *, seed: int = 0) -> RequestBatch:
    """Returns a random valid batch with the given history lengths and numbers of targets."""
    torch.manual_seed(seed)
    events, targets, requests = sum(lengths), sum(num_targets), len(lengths)
    request_times = NOW + torch.randint(0, 10**9, (requests,))
    times = [
        torch.sort(request_time - torch.randint(1, 10**10, (length,))).values
        for request_time, length in zip(request_times, lengths, strict=True)
    ]
    return RequestBatch(
        event_items=torch.randint(0, NUM_ITEMS + 1, (events,)),
        event_features=torch.stack(
            [torch.randint(0, size, (events,)) for size in SIZES["event"]], dim=1
        ),
        event_timestamps=torch.cat(times) if events else torch.zeros(0, dtype=torch.int64),
        event_offsets=offsets(lengths),
        target_items=torch.randint(0, NUM_ITEMS + 1, (targets,)),
        target_offsets=offsets(num_targets),
        user_features=torch.randint(0, SIZES["user"][0], (requests, 1)),
        request_timestamps=request_times,
        labels=torch.randint(0, 2, (targets, 2)).double(),
    ).validate(num_items=NUM_ITEMS + 1)


def pick(
    whole: RequestBatch, requests: list[int], targets: dict[int, list[int]] | None = None
) -> RequestBatch:
    """Returns the batch of some requests, in that order, each with all its targets or those named
    by `targets` (by place in `requests`).
    """
    events, rows, num_events, num_targets = [], [], [], []
    for place, request in enumerate(requests):
        start, end = int(whole.event_offsets[request]), int(whole.event_offsets[request + 1])
        first, last = int(whole.target_offsets[request]), int(whole.target_offsets[request + 1])
        chosen = (
            list(range(first, last)) if targets is None else [first + k for k in targets[place]]
        )
        events += range(start, end)
        rows += chosen
        num_events.append(end - start)
        num_targets.append(len(chosen))
    e, t, r = (torch.tensor(index, dtype=torch.int64) for index in (events, rows, requests))
    return RequestBatch(
        whole.event_items[e],
        whole.event_features[e],
        whole.event_timestamps[e],
        offsets(num_events),
        whole.target_items[t],
        offsets(num_targets),
        whole.user_features[r],
        whole.request_timestamps[r],
        None if whole.labels is None else whole.labels[t],
    )


def expanded(whole: RequestBatch) -> RequestBatch:
    """Returns the per-sample expansion: one request, with its own copy of the history, for each
    target.
    """
    counts = whole.target_offsets.diff().tolist()
    requests = [r for r, count in enumerate(counts) for _ in range(count)]
    places = [k for count in counts for k in range(count)]
    return pick(whole, requests, {i: [k] for i, k in enumerate(places)})
