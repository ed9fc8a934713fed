"""Matches: how often each feature of a target occurred in the history, and how long ago last;
exact, whatever the embeddings know.

    count   events of the request whose item has the target's value of the feature   -> bucket 0
    (none), 1 + floor(log2 count), ...
    gap     request time minus time of the last of them                              -> log bucket;
    one more for none

Attention has to learn such equality from embeddings; for items that training never saw, their
embeddings say next to nothing of
it (docs/results.md, dev-events). Here events are sorted by (request, value) once, and every target
looks its value up: (T + N) log T,
no pair of event and target is formed. It reads the indices of items only, so that the encoding of
an event stays free of targets.

Source: ours; the exact-match counts of search ranking, and the cross features of SIM's hard search
(arXiv 2006.05639).
Shape letters: T packed events, N packed targets, D width, C compared columns (the item itself, then
its features but the id).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.data.batch import RequestBatch
from longrec.nn.layers import FEATURE_STD, NUM_GAP_BUCKETS, gap_buckets, linear

NUM_COUNT_BUCKETS = 14
"""None, 1, 2 to 3, ..., 4,096 and more."""


class Matches(nn.Module):
    """One row per target of what the history says of its features.

    Args:
        num_columns: C, columns of the item table.
        width: D.
        feature_dim: width of one bucket's embedding.
    """

    def __init__(
        self,
        num_columns: int,
        width: int,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.counts = nn.Embedding(num_columns * NUM_COUNT_BUCKETS, feature_dim)
        self.gaps = nn.Embedding(num_columns * (NUM_GAP_BUCKETS + 1), feature_dim)
        for table in (self.counts, self.gaps):
            nn.init.normal_(table.weight, std=FEATURE_STD)
        self.part = linear(2 * num_columns * feature_dim, width)

    def forward(self, batch: RequestBatch, item_table: Int[Tensor, "I C"]) -> Float[Tensor, "N D"]:
        """Returns what is added to the token of each target."""
        counts, gaps = find(batch, item_table)
        columns = torch.arange(counts.shape[1], device=counts.device)
        parts = (
            self.counts(counts + columns * NUM_COUNT_BUCKETS),
            self.gaps(gaps + columns * (NUM_GAP_BUCKETS + 1)),
        )
        row: Tensor = self.part(torch.cat(parts, dim=2).flatten(1))
        return row


def find(
    batch: RequestBatch, item_table: Int[Tensor, "I C"]
) -> tuple[Int[Tensor, "N C"], Int[Tensor, "N C"]]:
    """Returns the count bucket and the gap bucket of every target and column, int64.

    Row 0 of the item table is the unknown item, index 0 of a feature the missing value: they match
    nothing.
    """
    values = torch.cat(
        [
            torch.arange(item_table.shape[0], device=item_table.device)[:, None],
            item_table[:, 1:].long(),
        ],
        dim=1,
    )
    requests = torch.arange(batch.num_requests, device=item_table.device)
    of_events = requests.repeat_interleave(batch.event_offsets.diff(), output_size=batch.num_events)
    of_targets = requests.repeat_interleave(
        batch.target_offsets.diff(), output_size=batch.num_targets
    )
    request_times = batch.request_timestamps[of_targets]
    found = [
        _lookup(
            values[batch.event_items.long(), column],
            of_events,
            values[batch.target_items.long(), column],
            of_targets,
        )
        for column in range(values.shape[1])
    ]
    counts = [
        (count > 0) + count.clamp(min=1).log2().long().clamp(max=NUM_COUNT_BUCKETS - 2)
        for count, _ in found
    ]
    times = torch.cat(
        [batch.event_timestamps, batch.event_timestamps.new_zeros(1)]
    )  # for a batch without events
    gaps = [
        torch.where(count > 0, gap_buckets(request_times, times[last]), NUM_GAP_BUCKETS)
        for count, last in found
    ]
    return torch.stack(counts, dim=1), torch.stack(gaps, dim=1)


def _lookup(
    events: Tensor, of_events: Tensor, targets: Tensor, of_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns how many events of its request share the value of each target, and the place of the
    last one, int64 [N] each.
    """
    span = int(torch.iinfo(torch.int32).max)
    keys, order = (of_events * span + events).sort(
        stable=True
    )  # equal keys stay in the order of time
    wanted = of_targets * span + targets
    first, end = torch.searchsorted(keys, wanted), torch.searchsorted(keys, wanted, right=True)
    count = torch.where(targets > 0, end - first, 0)
    places = torch.cat([order, order.new_zeros(1)])
    return count, places[(end - 1).clamp(min=0)]
