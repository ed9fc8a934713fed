"""RequestStream: every request once, with its own events and targets, in any batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data.batch import RequestBatch
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.length_sampler import LengthSampler
from longrec.data.loading.request_stream import RequestStream
from tests.longrec.data.loading.streams import FULL, SHORT, by_request, training_stream


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.sampled_from([FULL, SHORT]),
    st.integers(0, 3),
)
def test_packing_equals_one_request_at_a_time(
    encoded: EncodedHistories,
    budget: int,
    max_requests: int,
    length_sampler: LengthSampler,
    epoch: int,
) -> None:
    packed = training_stream(
        encoded,
        length_sampler,
        token_budget=budget,
        max_requests=max_requests,
        epoch=epoch,
    )
    single = training_stream(
        encoded,
        length_sampler,
        token_budget=1,
        max_requests=1,
        epoch=epoch,
    )
    assert by_request(packed) == by_request(single)
    assert len(single) == len(encoded.requests("train"))


def test_orders_are_seeded_and_change_with_the_epoch(encoded: EncodedHistories) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = training_stream(encoded, FULL, seed=seed, epoch=epoch)
        return stream.requests.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    everyone = encoded.requests("train").tolist()
    assert sorted(order(0, 0)) == everyone
    assert sorted(order(0, 1)) == everyone


def test_a_stream_resumes_where_it_stopped(encoded: EncodedHistories) -> None:
    whole = list(training_stream(encoded, SHORT, epoch=2))
    rest = training_stream(encoded, SHORT, epoch=2, first_batch=3)
    assert len(rest) == len(whole) - 3
    for expected, found in zip(whole[3:], rest, strict=True):
        assert_equal(found, expected)


def assert_equal(found: RequestBatch, expected: RequestBatch) -> None:
    for field in dataclasses.fields(expected):
        left = getattr(found, field.name)
        right = getattr(expected, field.name)
        assert left is right is None or torch.equal(left, right)


def test_the_length_sampler_acts_on_training_batches_only(encoded: EncodedHistories) -> None:
    short = training_stream(encoded, SHORT, token_budget=500, max_requests=64)
    full = training_stream(encoded, FULL, token_budget=500, max_requests=64)
    assert short.num_events < full.num_events
    assert short.num_targets == full.num_targets
    assert sum(batch.num_events for batch in short) == short.num_events


def test_sampled_lengths_are_multiples_of_the_most_recent_events(
    encoded: EncodedHistories,
) -> None:
    stream = training_stream(encoded, SHORT)
    starts = encoded.event_starts[stream.requests]
    ends = encoded.event_ends[stream.requests]
    lengths = stream.ends - stream.starts
    has_all_events = lengths == ends - starts
    assert np.array_equal(stream.ends, ends)
    assert np.all((lengths % 8 == 0) | has_all_events)


@pytest.mark.parametrize("length", [0, 1, 7, 1000])
def test_evaluation_takes_the_most_recent_events_in_the_given_order(
    encoded: EncodedHistories,
    length: int,
) -> None:
    requests = encoded.requests("eval")
    stream = RequestStream.for_evaluation(
        encoded,
        requests,
        length,
        token_budget=50,
        max_requests=5,
    )
    batches = list(stream)
    times = torch.cat([batch.request_timestamps for batch in batches])
    assert times.tolist() == encoded.request_timestamps[requests].tolist()
    lengths = torch.cat([batch.event_offsets.diff() for batch in batches]).numpy()
    available = encoded.event_ends[requests] - encoded.event_starts[requests]
    assert np.array_equal(lengths, np.minimum(length, available))
    last_events = encoded.event_ends[requests][lengths > 0] - 1
    expected = encoded.event_timestamps[last_events]
    assert [time for batch in batches for time in last_times(batch)] == expected.tolist()


def last_times(batch: RequestBatch) -> list[int]:
    """Return the time of the last event of each request that has one."""
    has_events = batch.event_offsets.diff() > 0
    ends = batch.event_offsets[1:][has_events]
    times: list[int] = batch.event_timestamps[ends - 1].tolist()
    return times


def test_positions_of_targets_follow_the_stream(encoded: EncodedHistories) -> None:
    stream = training_stream(encoded, FULL, max_requests=4)
    labels = torch.cat([batch.labels for batch in stream if batch.labels is not None])
    assert np.array_equal(labels.numpy(), encoded.labels[stream.target_positions])
    users = encoded.request_users[stream.target_requests]
    assert len(users) == len(labels) == stream.num_targets
    assert set(users) <= set(encoded.request_users)


@pytest.mark.parametrize(("num_ranks", "budget"), [(2, 60), (3, 300)])
def test_the_parts_of_all_ranks_are_the_batch(
    encoded: EncodedHistories,
    num_ranks: int,
    budget: int,
) -> None:
    options = {"token_budget": budget, "max_requests": 16}
    whole = training_stream(encoded, SHORT, **options)
    streams = [
        training_stream(encoded, SHORT, **options, num_ranks=num_ranks, rank=rank)
        for rank in range(num_ranks)
    ]
    num_placeholders = 0
    skews = []
    for number in range(len(whole)):
        batch = whole.batch(number)
        parts = [stream.batch(number) for stream in streams]
        own = [part for part in parts if not is_placeholder(part)]
        assert by_request(own) == by_request([batch])
        assert_global_sizes(parts, batch)
        num_placeholders += len(parts) - len(own)
        num_events = [part.num_events for part in parts]
        skews.append(max(num_events) - min(num_events))
        assert skews[-1] <= int(batch.event_offsets.diff().max())
    assert {len(stream) for stream in streams} == {len(whole)}
    if budget == 60:
        assert num_placeholders  # some batch had fewer requests than ranks
    else:
        assert np.mean(skews) < 0.1 * budget / num_ranks


def is_placeholder(part: RequestBatch) -> bool:
    assert part.global_batch is not None
    return part.global_batch.is_placeholder


def assert_global_sizes(parts: list[RequestBatch], batch: RequestBatch) -> None:
    for part in parts:
        assert part.global_batch is not None
        assert part.global_batch.num_requests == batch.num_requests
        assert part.global_batch.num_events == batch.num_events
        assert part.global_batch.num_targets == batch.num_targets
