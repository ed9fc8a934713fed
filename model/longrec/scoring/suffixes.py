"""Score requests at several served lengths: events are encoded once, suffixes are scored.

The encoding of an event depends on the event alone, so the most recent events of a history have
the rows that the whole history has. A request is scored again only where a length changes it.

Shape letters: T packed events, D width, N packed targets, K tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch
from longrec.data.columns import Int64
from longrec.scoring.scorer import Scorer, Scores, to_probabilities


def score_suffixes(
    scorer: Scorer,
    batches: Iterable[RequestBatch],
    lengths: Sequence[int],
) -> Iterator[list[Scores]]:
    """Yield the probabilities of each batch at every length, float32 [N, K] each.

    Args:
        scorer: scorer of a model that is `is_cacheable`.
        batches: requests with their longest histories.
        lengths: numbers of most recent events, rising.
    """
    for batch in batches:
        unlabelled = dataclasses.replace(batch, labels=None)
        with torch.inference_mode(), scorer.autocast():
            yield _score_lengths(scorer, unlabelled.to(scorer.device), lengths)


def _score_lengths(
    scorer: Scorer,
    batch: RequestBatch,
    lengths: Sequence[int],
) -> list[Scores]:
    layers = scorer.bundle.ranker.encode(batch)
    num_events, num_targets = np.array(batch.host_counts)
    owners = np.repeat(np.arange(len(num_events)), num_targets)
    scores = np.zeros((len(owners), len(scorer.task_names)), np.float32)
    is_changed = np.ones(len(num_events), bool)
    by_length = []
    for length in lengths:
        requests = np.flatnonzero(is_changed)
        if len(requests):
            scores = scores.copy()
            scores[is_changed[owners]] = _score_suffix(scorer, batch, layers, requests, length)
        by_length.append(scores)
        # A history that this length does not cut stays the same at all longer ones.
        is_changed = num_events > length
    return by_length


def _score_suffix(
    scorer: Scorer,
    batch: RequestBatch,
    layers: Sequence[Tensor],
    requests: Int64,
    length: int,
) -> Scores:
    """Return the probabilities of some requests of a batch with their most recent events.

    Args:
        scorer: scorer of the model.
        batch: all requests, on the device.
        layers: encodings of their events, M of [T, D].
        requests: positions of the requests.
        length: number of most recent events.
    """
    num_events, num_targets = batch.host_counts or ((), ())
    event_ends = np.cumsum(num_events)[requests]
    event_counts = np.minimum(np.asarray(num_events)[requests], length)
    target_counts = np.asarray(num_targets)[requests]
    target_starts = np.cumsum(num_targets)[requests] - target_counts
    events = _ranges(event_ends - event_counts, event_counts, batch)
    targets = _ranges(target_starts, target_counts, batch)
    rows = torch.from_numpy(requests).to(events.device)
    part = RequestBatch(
        event_items=batch.event_items[events],
        event_features=batch.event_features[events],
        event_timestamps=batch.event_timestamps[events],
        event_offsets=_offsets(event_counts, batch),
        target_items=batch.target_items[targets],
        target_offsets=_offsets(target_counts, batch),
        user_features=batch.user_features[rows],
        request_timestamps=batch.request_timestamps[rows],
        host_counts=(event_counts.tolist(), target_counts.tolist()),
    )
    encodings = [layer[events] for layer in layers]
    return to_probabilities(scorer.bundle.ranker.score(part, encodings).logits)


def _ranges(
    starts: Int64,
    counts: Int64,
    batch: RequestBatch,
) -> Tensor:
    """Return the positions from each start on, one range after another, on the batch's device."""
    shifts = np.repeat(starts - _starts_of(counts), counts)
    positions = torch.from_numpy(np.arange(len(shifts)) + shifts)
    return positions.to(batch.event_items.device)


def _offsets(counts: Int64, batch: RequestBatch) -> Tensor:
    offsets = torch.from_numpy(np.append(_starts_of(counts), counts.sum()))
    return offsets.to(batch.event_items.device)


def _starts_of(counts: Int64) -> Int64:
    """Return the first position of each range when ranges follow each other."""
    return np.cumsum(counts) - counts
