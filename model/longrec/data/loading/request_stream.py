"""RequestStream: a fixed sequence of batches over encoded histories.

The length sampler acts here, in training only. Evaluation and serving read the most recent events.
Batches are filled up to a token budget (events) and never padded.

Shape letters: n requests of a stream, N its targets, B batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from longrec.data.batch import GlobalBatch, RequestBatch
from longrec.data.columns import Int64
from longrec.data.loading.batching import balance_events, batch_bounds, most_recent
from longrec.data.loading.encoded_histories import EncodedHistories, Split
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.prefetch import prefetch


@dataclasses.dataclass(frozen=True, slots=True)
class RequestStream:
    """Batches over encoded histories; iterating packs them ahead in a background thread.

    The arguments alone decide the sequence: two streams with equal arguments give equal batches.
    A stream that starts at `first_batch` gives the rest of the one that starts at 0.

    Args:
        encoded: the histories.
        requests: int64 [n], positions of the requests in the order of the stream.
        starts, ends: int64 [n], offsets of the events of each request.
        bounds: int64 [B+1]; batch b is the requests bounds[b]:bounds[b+1].
        epoch: number of the pass over the data.
        first_batch: number of batches to skip.
        num_ranks: number of processes that train together.
        rank: this process; it gets its balanced part of each batch.
    """

    encoded: EncodedHistories
    requests: Int64
    starts: Int64
    ends: Int64
    bounds: Int64
    epoch: int = 0
    first_batch: int = 0
    num_ranks: int = 1
    rank: int = 0

    @classmethod
    def for_training(
        cls,
        encoded: EncodedHistories,
        length_sampler: LengthSampler,
        *,
        token_budget: int,
        max_requests: int,
        seed: int,
        epoch: int = 0,
        split: Split = "train",
        first_batch: int = 0,
        num_ranks: int = 1,
        rank: int = 0,
    ) -> RequestStream:
        """Return one epoch: the requests of a split in random order, with sampled lengths.

        Args:
            encoded: the histories.
            length_sampler: chooses the events of each request.
            token_budget: events of a batch, over all ranks.
            max_requests: requests of a batch, over all ranks.
            seed: seed of the order, which is drawn from (seed, epoch).
            epoch: number of the pass over the data.
            split: the requests to read.
            first_batch: number of batches to skip.
            num_ranks: number of processes; it does not change the batches.
            rank: this process.
        """
        requests = encoded.requests(split)
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(requests))
        requests = requests[order]
        starts, ends = length_sampler.cut(
            encoded.request_ids[requests],
            encoded.event_starts[requests],
            encoded.event_ends[requests],
            epoch,
        )
        bounds = batch_bounds(
            ends - starts,
            token_budget=token_budget,
            max_requests=max_requests,
        )
        return cls(
            encoded,
            requests,
            starts,
            ends,
            bounds,
            epoch=epoch,
            first_batch=first_batch,
            num_ranks=num_ranks,
            rank=rank,
        )

    @classmethod
    def for_evaluation(
        cls,
        encoded: EncodedHistories,
        requests: Int64,
        length: int,
        *,
        token_budget: int,
        max_requests: int,
    ) -> RequestStream:
        """Return some requests in the given order, each with its most recent events.

        Args:
            encoded: the histories.
            requests: int64 [n], positions of requests.
            length: largest number of events of a request.
            token_budget: events of a batch.
            max_requests: requests of a batch.
        """
        starts, ends = most_recent(
            encoded.event_starts[requests],
            encoded.event_ends[requests],
            length,
        )
        bounds = batch_bounds(
            ends - starts,
            token_budget=token_budget,
            max_requests=max_requests,
        )
        return cls(encoded, requests, starts, ends, bounds)

    def __len__(self) -> int:
        return len(self.batch_numbers)

    def __iter__(self) -> Iterator[RequestBatch]:
        return prefetch([self])

    @property
    def batch_numbers(self) -> range:
        """Numbers of the batches that iterating gives, counted from the start of the epoch."""
        return range(self.first_batch, len(self.bounds) - 1)

    def batch(
        self,
        number: int,
        *,
        pin: bool = False,
    ) -> RequestBatch:
        """Return one batch.

        Args:
            number: number of the batch, counted from the start of the epoch.
            pin: whether the batch is in page-locked memory.
        """
        start = self.bounds[number]
        end = self.bounds[number + 1]
        positions = np.arange(start, end)
        global_batch = None
        if self.num_ranks > 1:
            positions, global_batch = self._share_of_rank(positions)
        batch = self.encoded.batch(
            self.requests[positions],
            self.starts[positions],
            self.ends[positions],
            pin=pin,
        )
        return dataclasses.replace(batch, global_batch=global_batch)

    @property
    def num_events(self) -> int:
        """Number of events of the whole sequence, skipped batches included."""
        lengths = self.ends - self.starts
        return int(lengths.sum())

    @property
    def num_targets(self) -> int:
        """Number of targets of the whole sequence, skipped batches included."""
        return int(self._targets_per_request(self.requests).sum())

    @property
    def target_positions(self) -> Int64:
        """Positions of the targets in stream order, int64 [N], for `encoded.labels`."""
        positions, _ = self.encoded.targets_of(self.requests)
        return positions

    @property
    def target_requests(self) -> Int64:
        """Position of the request of each of `target_positions`, int64 [N]."""
        _, requests = self.encoded.targets_of(self.requests)
        return requests

    def _targets_per_request(self, requests: Int64) -> Int64:
        starts = self.encoded.target_starts[requests]
        ends = self.encoded.target_ends[requests]
        return ends - starts

    def _share_of_rank(self, positions: Int64) -> tuple[Int64, GlobalBatch]:
        """Return the requests of this rank in a batch, in order, and the sizes of the batch.

        A rank without requests repeats the shortest one as a placeholder.
        """
        num_events = self.ends[positions] - self.starts[positions]
        num_targets = self._targets_per_request(self.requests[positions])
        is_own = balance_events(num_events, self.num_ranks) == self.rank
        own = positions[is_own]
        global_batch = GlobalBatch(
            num_requests=len(positions),
            num_events=int(num_events.sum()),
            num_targets=int(num_targets.sum()),
            is_placeholder=not len(own),
        )
        if global_batch.is_placeholder:
            own = positions[[num_events.argmin()]]
        return own, global_batch
