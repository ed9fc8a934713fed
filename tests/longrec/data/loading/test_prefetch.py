"""Prefetching: equal batches for any number of threads, errors arrive, threads end."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.data.loading.prefetch import prefetch
from longrec.data.loading.request_stream import RequestStream
from tests.longrec.data.loading.streams import SHORT, training_stream


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_batches_do_not_depend_on_the_workers(encoded: EncodedHistories, workers: int) -> None:
    first = training_stream(encoded, SHORT, epoch=0)
    second = training_stream(encoded, SHORT, epoch=1, first_batch=4)
    expected = [first.batch(number) for number in first.batch_numbers]
    expected += [second.batch(number) for number in second.batch_numbers]
    batches = list(prefetch([first, second], num_workers=workers))
    assert len(batches) == len(expected)
    for found, wanted in zip(batches, expected, strict=True):
        assert torch.equal(found.event_timestamps, wanted.event_timestamps)
        assert torch.equal(found.target_items, wanted.target_items)
        assert torch.equal(found.request_timestamps, wanted.request_timestamps)


def test_a_failing_batch_stops_the_stream_with_its_error(encoded: EncodedHistories) -> None:
    stream = RequestStream.for_evaluation(
        encoded,
        encoded.requests("eval"),
        5,
        token_budget=50,
        max_requests=5,
    )
    broken = dataclasses.replace(stream, starts=stream.starts[:6])
    with pytest.raises((IndexError, ValueError)):
        list(broken)


def test_a_reader_that_stops_leaves_no_thread(encoded: EncodedHistories) -> None:
    stream = training_stream(encoded, SHORT, token_budget=50, max_requests=4)
    batches = prefetch([stream], num_workers=3)
    next(batches)
    assert num_worker_threads() > 0
    batches.close()
    assert num_worker_threads() == 0


def num_worker_threads() -> int:
    names = [thread.name for thread in threading.enumerate()]
    return sum(name.startswith("longrec-batches") for name in names)
