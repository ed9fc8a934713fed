"""Match features of a target: how often its item and features occurred, and how long ago last.

They are exact, whatever the embeddings have learned:

    count   events of the request that share the target's value of a feature
            -> bucket 0 (none), 1 + floor(log2 count), ...
    gap     request time minus time of the last such event
            -> log bucket; one more for none

Attention has to learn such equality from embeddings, which say next to nothing about items that
training never saw (docs/results.md, dev-events). Here events are sorted by (request, value) once,
and every target looks its value up. This costs (T + N) log T and forms no pair of event and
target. Only item indices are read, so the encoding of an event stays free of targets.

Source: ours; the exact-match counts of search ranking, and the cross features of SIM's hard search
(arXiv 2006.05639).

Shape letters: T packed events, N packed targets, D width, I items, K tasks, C compared columns
(column 0 is the item itself, the others are its features without the id).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longrec.data.batch import RequestBatch
from longrec.nn.layers import FEATURE_STD, linear
from longrec.nn.time_gaps import NUM_GAP_BUCKETS, gap_buckets

NUM_COUNT_BUCKETS = 14
"""None, 1, 2 to 3, ..., 4,096 and more."""
LOGIT_GAIN = 8.0
"""Factor of the logits of buckets: Adam moves them by as many times the learning rate a step."""


class MatchFeatures(nn.Module):
    """One row per target from the match features of its item and item features, and its logits.

    The logits are a sum over the buckets, as in a logistic regression. The row lets the head learn
    how buckets and items act together (wide and deep, arXiv 1606.07792).

    Args:
        num_columns: C, columns of the item table.
        width: D.
        feature_dim: width of one bucket's embedding.
        num_tasks: K.
    """

    def __init__(
        self,
        num_columns: int,
        width: int,
        feature_dim: int,
        num_tasks: int,
    ) -> None:
        super().__init__()
        # Embeddings of the buckets of `match_buckets`; saved weights have these names.
        self.counts = nn.Embedding(num_columns * NUM_COUNT_BUCKETS, feature_dim)
        self.gaps = nn.Embedding(num_columns * (NUM_GAP_BUCKETS + 1), feature_dim)
        nn.init.normal_(self.counts.weight, std=FEATURE_STD)
        nn.init.normal_(self.gaps.weight, std=FEATURE_STD)
        self.part = linear(2 * num_columns * feature_dim, width)
        self.count_logits = nn.Embedding(num_columns * NUM_COUNT_BUCKETS, num_tasks)
        self.gap_logits = nn.Embedding(num_columns * (NUM_GAP_BUCKETS + 1), num_tasks)
        nn.init.zeros_(self.count_logits.weight)
        nn.init.zeros_(self.gap_logits.weight)

    def forward(
        self,
        batch: RequestBatch,
        item_table: Int[Tensor, "I C"],
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N K"]]:
        """Return the rows to add to the tokens of the targets, and what to add to their logits."""
        counts, gaps = match_buckets(batch, item_table)
        columns = torch.arange(counts.shape[1], device=counts.device)
        count_index = counts + columns * NUM_COUNT_BUCKETS
        gap_index = gaps + columns * (NUM_GAP_BUCKETS + 1)
        embedded = torch.cat([self.counts(count_index), self.gaps(gap_index)], dim=2)
        row: Tensor = self.part(embedded.flatten(1))
        logits: Tensor = self.count_logits(count_index) + self.gap_logits(gap_index)
        return row, LOGIT_GAIN * logits.sum(dim=1)


def match_buckets(
    batch: RequestBatch, item_table: Int[Tensor, "I C"]
) -> tuple[Int[Tensor, "N C"], Int[Tensor, "N C"]]:
    """Return the count bucket and the gap bucket of every target and column, int64.

    Row 0 of the item table is the unknown item, index 0 of a feature the missing value. They match
    nothing.

    Args:
        batch: events and targets.
        item_table: indices of the item features; column 0, the id, is replaced by the item itself.
    """
    device = item_table.device
    items = torch.arange(item_table.shape[0], device=device)
    values_IC = torch.cat([items[:, None], item_table[:, 1:].long()], dim=1)
    event_values_TC = values_IC[batch.event_items.long()]
    target_values_NC = values_IC[batch.target_items.long()]
    event_requests = _request_of_rows(batch.event_offsets, batch.num_events)
    target_requests = _request_of_rows(batch.target_offsets, batch.num_targets)
    request_times = batch.request_timestamps[target_requests]
    # In a batch without events, index 0 reads this time; its gap is not used.
    no_time = batch.event_timestamps.new_zeros(1)
    event_times = torch.cat([batch.event_timestamps, no_time])
    counts = []
    gaps = []
    for column in range(values_IC.shape[1]):
        count, last_event = _count_matches(
            event_values_TC[:, column],
            event_requests,
            target_values_NC[:, column],
            target_requests,
        )
        bucket = gap_buckets(request_times, event_times[last_event])
        counts.append(_count_bucket(count))
        gaps.append(torch.where(count > 0, bucket, NUM_GAP_BUCKETS))
    return torch.stack(counts, dim=1), torch.stack(gaps, dim=1)


def _request_of_rows(offsets: Tensor, num_rows: int) -> Tensor:
    """Return the request of each row."""
    requests = torch.arange(len(offsets) - 1, device=offsets.device)
    return requests.repeat_interleave(offsets.diff(), output_size=num_rows)


def _count_bucket(count: Tensor) -> Tensor:
    """Return 0 for no match, else 1 + floor(log2 count), up to the last bucket."""
    magnitude = count.clamp(min=1).log2().long()
    return (count > 0) + magnitude.clamp(max=NUM_COUNT_BUCKETS - 2)


def _count_matches(
    event_values: Tensor,
    event_requests: Tensor,
    target_values: Tensor,
    target_requests: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the number of matching events of each target, and the last of them, int64 [N] each.

    An event matches if it belongs to the same request and has the same value.
    """
    # Values are int32 and below it, so each (request, value) has a key of its own.
    span = int(torch.iinfo(torch.int32).max)
    event_keys = event_requests * span + event_values
    sorted_keys, order = event_keys.sort(stable=True)  # equal keys stay in time order
    target_keys = target_requests * span + target_values
    first_match = torch.searchsorted(sorted_keys, target_keys)
    end_of_matches = torch.searchsorted(sorted_keys, target_keys, right=True)
    # Value 0 is unknown or missing and matches nothing.
    count = torch.where(target_values > 0, end_of_matches - first_match, 0)
    padded_order = torch.cat([order, order.new_zeros(1)])  # index 0 of a batch without events
    last_event = padded_order[(end_of_matches - 1).clamp(min=0)]
    return count, last_event
