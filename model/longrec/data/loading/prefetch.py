"""Prefetching: batches are packed ahead by threads, and copied to a CUDA device ahead of use."""

from __future__ import annotations

import collections
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from longrec.data.batch import RequestBatch

PREFETCHED_BATCHES = 2
"""Batches packed ahead of the one in use; each further worker adds one."""


class BatchSource(Protocol):
    """Numbered batches, such as a RequestStream."""

    @property
    def batch_numbers(self) -> range:
        """Numbers of the batches, in order."""

    def batch(
        self,
        number: int,
        *,
        pin: bool = False,
    ) -> RequestBatch:
        """Return one batch, in page-locked memory if `pin` is set."""


def prefetch(
    streams: Iterable[BatchSource],
    *,
    num_workers: int = 1,
    pin: bool = False,
) -> Generator[RequestBatch, None, None]:
    """Yield the batches of streams, one stream after another, packed ahead by threads.

    Batches and their order do not depend on the number of threads. Packing copies long slices,
    during which numpy releases the interpreter lock. Sending batches from another process costs
    ten times as much (docs/log.md).

    Args:
        streams: for example the epochs of a training.
        num_workers: number of threads.
        pin: whether batches are in page-locked memory, for asynchronous copies to a CUDA device.
    """
    max_pending = PREFETCHED_BATCHES + num_workers
    pending: collections.deque[Future[RequestBatch]] = collections.deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="longrec-batches") as workers:
        try:
            for stream in streams:
                for number in stream.batch_numbers:
                    pending.append(workers.submit(stream.batch, number, pin=pin))
                    if len(pending) >= max_pending:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def prefetch_to_device(
    batches: Iterable[RequestBatch], device: torch.device
) -> Iterator[tuple[RequestBatch, RequestBatch]]:
    """Yield pairs of a batch in host memory and the same batch on a device.

    On CUDA, the next batch is copied on its own stream while the caller's kernels use this one.
    From pinned memory the copy is asynchronous. On a CPU both are the same object.
    """
    if device.type != "cuda":
        yield from ((batch, batch) for batch in batches)
        return
    copy_stream = torch.cuda.Stream(device)
    copied_ahead = None
    for host_batch in batches:
        with torch.cuda.stream(copy_stream):
            device_batch = host_batch.to(device, non_blocking=True)
            copy_done = copy_stream.record_event()
        if copied_ahead is not None:
            yield _wait_for_copy(*copied_ahead)
        copied_ahead = (host_batch, device_batch, copy_done)
    if copied_ahead is not None:
        yield _wait_for_copy(*copied_ahead)


def _wait_for_copy(
    host_batch: RequestBatch,
    device_batch: RequestBatch,
    copy_done: torch.cuda.Event,
) -> tuple[RequestBatch, RequestBatch]:
    """Return both batches, after making the current stream wait for the copy.

    The memory of the copy stays allocated until the current stream has used it.
    """
    current = torch.cuda.current_stream(device_batch.event_items.device)
    current.wait_event(copy_done)
    device_batch.record_stream(current)
    return host_batch, device_batch
