"""Batching: greedy bounds, balanced ranks, and batches that do not fit are refused."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.batch import RequestBatch
from longrec.data.loading.batching import balance_events, batch_bounds
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import DataError
from tests.longrec import small_histories


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120), st.integers(1, 8))
def test_batches_are_filled_greedily_inside_the_budget(
    sizes: list[int],
    budget: int,
    max_requests: int,
) -> None:
    bounds = batch_bounds(
        np.array(sizes, np.int64),
        token_budget=budget,
        max_requests=max_requests,
    )
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    for start, end in itertools.pairwise(bounds.tolist()):
        num_requests = end - start
        num_events = sum(sizes[start:end])
        assert num_requests > 0
        is_alone = num_requests == 1
        assert is_alone or (num_events <= budget and num_requests <= max_requests)
        if end < len(sizes) and num_events <= budget:
            is_full = num_requests == max_requests
            assert is_full or num_events + sizes[end] > budget


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_ranks_have_nearly_equal_events_and_are_not_empty(
    sizes: list[int],
    num_ranks: int,
) -> None:
    num_events = np.array(sizes, np.int64)
    ranks = balance_events(num_events, num_ranks)
    loads = np.bincount(ranks, weights=num_events, minlength=num_ranks)
    assert loads.max() - loads.min() <= max(sizes)
    assert len(set(ranks.tolist())) == min(num_ranks, len(sizes))


@pytest.fixture
def batch(encoded: EncodedHistories) -> RequestBatch:
    requests = encoded.requests("train")[-4:]
    return encoded.batch(
        requests,
        encoded.event_starts[requests],
        encoded.event_ends[requests],
    )


def damaged(batch: RequestBatch, damage: str) -> RequestBatch:
    offsets = batch.event_offsets
    targets = batch.target_offsets
    no_request = torch.zeros(1, dtype=torch.int64)
    falling = [offsets[:1], offsets[1:-1].flip(0), offsets[-1:]]
    empty_first_request = [targets[:1], targets[:1], targets[2:]]
    assert batch.labels is not None
    changes = {
        "first offset": {"event_offsets": offsets + 1},
        "falling offsets": {"event_offsets": torch.cat(falling)},
        "last offset": {"target_offsets": torch.cat([targets[:-1], targets[-1:] + 1])},
        "no request": {"event_offsets": no_request},
        "one offset more": {"event_offsets": torch.cat([offsets, offsets[-1:]])},
        "an item beyond its table": {"target_items": torch.full_like(batch.target_items, 1_000)},
        "a feature row less": {"event_features": batch.event_features[1:]},
        "a label less": {"labels": batch.labels[1:]},
        "a request without target": {"target_offsets": torch.cat(empty_first_request)},
    }
    return dataclasses.replace(batch, **changes[damage])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("first offset", "event_offsets do not fit"),
        ("falling offsets", "event_offsets do not fit"),
        ("last offset", "target_offsets do not fit"),
        ("no request", "the batch is empty"),
        ("one offset more", "does not fit the batch"),
        ("an item beyond its table", "target_items out of range; found 1000..1000; expected 0..60"),
        ("a feature row less", "event_features does not fit"),
        ("a label less", "labels does not fit"),
        ("a request without target", "a request has no target"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    batch: RequestBatch,
    damage: str,
    message: str,
) -> None:
    num_items = small_histories.NUM_ITEMS + 1
    batch.validate(num_items=num_items)
    with pytest.raises(DataError, match=message) as caught:
        damaged(batch, damage).validate(num_items=num_items)
    assert "\n" not in str(caught.value)


def test_a_batch_of_no_request_is_refused(encoded: EncodedHistories) -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="the batch is empty"):
        encoded.batch(nothing, nothing, nothing)
