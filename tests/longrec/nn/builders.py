"""Small rankers and random request batches for the tests of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.ranker import Ranker
from longrec.nn.target_attention import Segments
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
NOW_MS = 1_700_000_000_000


def ranker(*, seed: int = 0, **config: object) -> Ranker:
    """Return a float64 ranker with random gap biases: no term is zero by its initial value."""
    torch.manual_seed(seed)
    options = {
        "width": 16,
        "num_layers": 3,
        "num_heads": 4,
        "id_dim": 6,
        "feature_dim": 4,
        **config,
    }
    columns = [torch.randint(0, size, (NUM_ITEMS + 1,)) for size in SIZES["item"]]
    table = torch.stack(columns, dim=1)
    model = Ranker(ModelConfig(**options), SCHEMA, SIZES, table).double()  # type: ignore[arg-type]
    for layer in getattr(model.stca, "layers", ()):
        if layer.gap_bias is not None:
            torch.nn.init.normal_(layer.gap_bias)
    return model.eval()


def offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def segments(num_events: list[int], num_targets: list[int]) -> Segments:
    return Segments.from_offsets(offsets(num_events), offsets(num_targets))


def batch(lengths: list[int], num_targets: list[int], *, seed: int = 0) -> RequestBatch:
    """Return a random valid batch with these history lengths and numbers of targets."""
    torch.manual_seed(seed)
    num_events = sum(lengths)
    all_targets = sum(num_targets)
    num_requests = len(lengths)
    request_times = NOW_MS + torch.randint(0, 10**9, (num_requests,))
    times = [torch.zeros(0, dtype=torch.int64)]
    for request_time, length in zip(request_times, lengths, strict=True):
        ages = torch.randint(1, 10**10, (length,))
        times.append(torch.sort(request_time - ages).values)
    return RequestBatch(
        event_items=torch.randint(0, NUM_ITEMS + 1, (num_events,)),
        event_features=torch.stack(
            [torch.randint(0, size, (num_events,)) for size in SIZES["event"]],
            dim=1,
        ),
        event_timestamps=torch.cat(times),
        event_offsets=offsets(lengths),
        target_items=torch.randint(0, NUM_ITEMS + 1, (all_targets,)),
        target_offsets=offsets(num_targets),
        user_features=torch.randint(0, SIZES["user"][0], (num_requests, 1)),
        request_timestamps=request_times,
        labels=torch.randint(0, 2, (all_targets, 2)).double(),
    ).validate(num_items=NUM_ITEMS + 1)


def pick(
    whole: RequestBatch,
    requests: list[int],
    targets: dict[int, list[int]] | None = None,
) -> RequestBatch:
    """Return the batch of some requests, in that order.

    Args:
        whole: the batch to pick from.
        requests: requests of it.
        targets: targets of each request, by position in `requests`; None for all.
    """
    events: list[int] = []
    rows: list[int] = []
    num_events = []
    num_targets = []
    event_offsets = whole.event_offsets.tolist()
    target_offsets = whole.target_offsets.tolist()
    for position, request in enumerate(requests):
        start, end = event_offsets[request : request + 2]
        first, last = target_offsets[request : request + 2]
        chosen = list(range(first, last))
        if targets is not None:
            chosen = [first + k for k in targets[position]]
        events += range(start, end)
        rows += chosen
        num_events.append(end - start)
        num_targets.append(len(chosen))
    event_index = torch.tensor(events, dtype=torch.int64)
    target_index = torch.tensor(rows, dtype=torch.int64)
    request_index = torch.tensor(requests, dtype=torch.int64)
    return RequestBatch(
        event_items=whole.event_items[event_index],
        event_features=whole.event_features[event_index],
        event_timestamps=whole.event_timestamps[event_index],
        event_offsets=offsets(num_events),
        target_items=whole.target_items[target_index],
        target_offsets=offsets(num_targets),
        user_features=whole.user_features[request_index],
        request_timestamps=whole.request_timestamps[request_index],
        labels=None if whole.labels is None else whole.labels[target_index],
    )


def expanded(whole: RequestBatch) -> RequestBatch:
    """Return the per-sample expansion: one request with its own history for each target."""
    requests = []
    targets = []
    for request, count in enumerate(whole.target_offsets.diff().tolist()):
        requests += [request] * count
        targets += range(count)
    return pick(whole, requests, {i: [target] for i, target in enumerate(targets)})


def scores(model: Ranker, requests: RequestBatch) -> Tensor:
    """Return the logits of all targets, without gradients."""
    with torch.no_grad():
        logits: Tensor = model(requests).logits
    return logits


def close(left: Tensor, right: Tensor, bound: float = 1e-10) -> None:
    """Assert that two tensors differ by at most `bound`."""
    torch.testing.assert_close(left, right, rtol=0, atol=bound)
