"""Score in fixed buffers: on a CUDA device, one graph replaces hundreds of kernel launches.

On other devices the same code runs in the same buffers without a graph, so tests need no GPU.

    items, features, times   --copied--> [E events]     --encode--> K | V of every layer --+
    cached K | V, times      --copied-----------------------------> the same               |
    time, user, candidates   --copied--> [N candidates] -----------------------------------+
                                                                                           |
                                                    probabilities  <--------score----------+

There is one graph for each bucket (a size: E of 1,024, 2,048, ... events, N of 64, 128, ...
candidates). A request takes the smallest bucket that holds it. The buffers of a bucket are the
first rows of the largest one's, and all graphs share the memory of their intermediate results.

Rows behind a request's own hold data of earlier requests. The CUDA kernels get the length and do
not read them. Other attention code reads all rows, so a bias of MASK_BIAS removes their weight;
it is added in either case. A softmax over masked rows alone is a mean, so a request without events
cannot be scored here.

A graph reads the weights at the addresses that they had at its capture. Another ranker needs graphs
of its own.

Shape letters: E events and N candidates of a bucket, L events and m candidates of a request, D
width, M layers, A action features of an event, U user features, K tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch
from longrec.data.feature_encoders import Int32
from longrec.data.loading.batching import EncodedEvents
from longrec.nn.fused.stca import StackedWeights
from longrec.nn.ranker import Ranker
from longrec.nn.target_attention import Segments
from longrec.scoring.cuda_buffers import (
    EVENT_OFFSETS,
    NUM_REQUEST_FIELDS,
    REQUEST_TIME,
    RequestBuffers,
    allocate_layers,
)

MIN_EVENT_BUCKET = 1_024
"""Events of the smallest bucket."""
MIN_TARGET_BUCKET = 64
"""Candidates of the smallest bucket."""
MAX_TARGETS = 2_048
"""Candidates of the largest bucket."""
MASK_BIAS = -1e30
"""Added to a logit, it makes the softmax weight 0; a finite one gives no NaN in masked chunks."""
NUM_WARMUP_RUNS = 2
"""Runs before a capture: they compile the kernels and set up the libraries."""

Float32: TypeAlias = npt.NDArray[np.float32]

_capture_lock = threading.Lock()
"""All scorers of a device capture on one stream, so one capture runs at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedQuery:
    """One request without its history, encoded: time, user and candidates.

    Args:
        request_time_ms: the request's time, ms since 1970 UTC.
        user: int32 [1, U], user features.
        items: int32 [m], candidates as rows of the item table.
    """

    request_time_ms: int
    user: Int32
    items: Int32


class CudaGraphScorer:
    """Scores one request at a time with a ranker.

    Threads take turns, and all of them must use the same stream.

    Args:
        ranker: STCA, without `matches`; in evaluation mode.
        weights: result of its `stack_weights`.
        device: device of the ranker. Without CUDA the buffers are used, but nothing is captured.
        precision: of the matrix products.
        max_events: longest history that must fit.
    """

    def __init__(
        self,
        ranker: Ranker,
        weights: StackedWeights | None,
        device: torch.device,
        *,
        precision: torch.dtype,
        max_events: int,
    ) -> None:
        self.max_events = bucket_size(max_events, MIN_EVENT_BUCKET)
        self._ranker = ranker
        self._weights = weights
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._precision = precision
        self._lock = threading.Lock()
        self._graphs: dict[tuple[object, ...], torch.cuda.CUDAGraph] = {}

    @property
    def num_graphs(self) -> int:
        """Number of graphs captured so far."""
        return len(self._graphs)

    def fits(
        self,
        num_events: int,
        num_targets: int,
    ) -> bool:
        """Return whether a request of this size can be scored here."""
        return 0 < num_events <= self.max_events and num_targets <= MAX_TARGETS

    def warm_up(self) -> None:
        """Capture the graphs of all buckets before the first request."""
        with self._exclusive():
            for num_events in _buckets(MIN_EVENT_BUCKET, self.max_events):
                self._run(self._encode_bucket, num_events)
                for num_targets in _buckets(MIN_TARGET_BUCKET, MAX_TARGETS):
                    self._run(
                        self._score_bucket,
                        num_events,
                        num_targets,
                    )

    def keys_values(
        self,
        events: EncodedEvents,
        request_time_ms: int,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return copies of the events' encodings, on the device.

        Returns:
            (K | V in each layer, M of [L, 2 D]; item rows and features, int32 [L, 1 + A]; times,
            int64 [L] in ms).
        """
        with self._exclusive():
            count = self._encode(events, request_time_ms)
            buffers = self._buffers
            items = buffers.items[:count, None]
            features = buffers.features[:count]
            layers = self._kv_buffer[:, :count].clone()
            return (
                list(layers.unbind()),
                torch.cat([items, features], dim=1),
                buffers.timestamps[:count].clone(),
            )

    def score(
        self,
        events: EncodedEvents,
        query: EncodedQuery,
    ) -> Float32:
        """Return the probabilities of the candidates over the events, float32 [m, K]."""
        with self._exclusive():
            count = self._encode(events, query.request_time_ms)
            return self._score(count, query)

    def score_cached(
        self,
        layers: Sequence[Tensor],
        timestamps: Tensor,
        query: EncodedQuery,
    ) -> Float32:
        """Return the probabilities of the candidates over cached events, float32 [m, K].

        Args:
            layers: M of [L, 2 D] on the device, K | V of the events in each layer.
            timestamps: int64 [L] on the device, ms.
            query: time, user and candidates of the request.
        """
        with self._exclusive():
            count = timestamps.shape[0]
            torch._foreach_copy_(self._layer_rows(count), list(layers))
            self._buffers.timestamps[:count].copy_(timestamps)
            return self._score(count, query)

    @functools.cached_property
    def _buffers(self) -> RequestBuffers:
        """Buffers of the largest bucket on the device."""
        return RequestBuffers.allocate(
            self._ranker,
            self.max_events,
            MAX_TARGETS,
            self._device,
        )

    @functools.cached_property
    def _host_buffers(self) -> RequestBuffers:
        """Buffers in host memory; without CUDA the same as those of the device."""
        if self._is_cuda:
            return self._buffers.allocate_pinned()
        return self._buffers

    @functools.cached_property
    def _kv_buffer(self) -> Tensor:
        """K | V of the events, [M, E, 2 D]."""
        return allocate_layers(
            self._ranker,
            self.max_events,
            self._precision,
            self._device,
        )

    def _layer_rows(self, count: int) -> list[Tensor]:
        """Return the first `count` rows of K | V of each layer, M of [count, 2 D]."""
        return [layer[:count] for layer in self._kv_buffer.unbind()]

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the buffers for this thread, in inference mode.

        On entry it waits until earlier asynchronous copies have read the host buffers.
        """
        with self._lock, torch.inference_mode():
            if self._is_cuda:
                self._copies_done.synchronize()
            yield

    def _encode(
        self,
        events: EncodedEvents,
        request_time_ms: int,
    ) -> int:
        """Write K | V of the events; return the number of events."""
        items, features, timestamps = events
        count = len(items)
        host = self._host_buffers
        buffers = self._buffers
        _copy_through(host.items, buffers.items, items)
        _copy_through(host.features, buffers.features, features)
        _copy_through(host.timestamps, buffers.timestamps, timestamps)
        host.request[REQUEST_TIME] = request_time_ms
        host_time = host.request[REQUEST_TIME]
        buffers.request[REQUEST_TIME].copy_(host_time, non_blocking=True)
        if self._is_cuda:
            stream = torch.cuda.current_stream(self._device)
            self._copies_done.record(stream)
        bucket = bucket_size(count, MIN_EVENT_BUCKET)
        self._run(self._encode_bucket, bucket)
        return count

    def _score(
        self,
        count: int,
        query: EncodedQuery,
    ) -> Float32:
        """Return the probabilities over the first `count` rows of K | V."""
        num_targets = len(query.items)
        num_events = bucket_size(count, MIN_EVENT_BUCKET)
        bucket = bucket_size(num_targets, MIN_TARGET_BUCKET)
        self._copy_request(count, query, bucket)
        self._run(self._score_bucket, num_events, bucket)
        host_scores = self._host_buffers.scores[:num_targets]
        host_scores.copy_(self._buffers.scores[:num_targets], non_blocking=True)
        if self._is_cuda:
            stream = torch.cuda.current_stream(self._device)
            stream.synchronize()
        return host_scores.numpy().copy()

    def _copy_request(
        self,
        count: int,
        query: EncodedQuery,
        bucket: int,
    ) -> None:
        """Copy time, number of events, user and candidates to the device."""
        first = NUM_REQUEST_FIELDS + query.user.size
        last = first + len(query.items)
        host_request = self._host_buffers.request
        values = host_request.numpy()
        values[:first] = (
            query.request_time_ms,
            0,
            count,
            *query.user.flat,
        )
        values[first:last] = query.items
        # The graph scores the whole bucket: rows behind `last` hold valid items of earlier requests
        # or zeros, and their scores are not read.
        used = slice(first + bucket)
        self._buffers.request[used].copy_(host_request[used], non_blocking=True)

    def _encode_bucket(self, num_events: int) -> None:
        """Read the event buffers and write K | V.

        This is captured, so it must not wait for the device.
        """
        buffers = self._buffers
        no_users = buffers.request[None, :0]
        batch = RequestBatch(
            event_items=buffers.items[:num_events],
            event_features=buffers.features[:num_events],
            event_timestamps=buffers.timestamps[:num_events],
            event_offsets=self._offsets(num_events),
            target_items=buffers.items[:0],
            target_offsets=self._offsets(0),
            user_features=no_users,
            request_timestamps=buffers.request[REQUEST_TIME],
            host_counts=([num_events], [0]),
        )
        torch._foreach_copy_(
            self._layer_rows(num_events),
            self._ranker.keys_values(batch, self._weights),
        )

    def _score_bucket(
        self,
        num_events: int,
        num_targets: int,
    ) -> None:
        """Read K | V, times and the request, write all probabilities; captured as well."""
        buffers = self._buffers
        request = buffers.request
        first = NUM_REQUEST_FIELDS + len(self._ranker.users.sizes)
        target_offsets = self._offsets(num_targets)
        batch = RequestBatch(
            event_items=buffers.items[:0],
            event_features=buffers.features[:0],
            event_timestamps=buffers.timestamps[:0],
            event_offsets=self._offsets(0),
            target_items=request[first : first + num_targets],
            target_offsets=target_offsets,
            user_features=request[None, NUM_REQUEST_FIELDS:first],
            request_timestamps=request[REQUEST_TIME],
            host_counts=([0], [num_targets]),
        )
        segments = Segments(
            request[EVENT_OFFSETS],
            target_offsets,
            [num_events],
            [num_targets],
        )
        sources = self._ranker.cached_sources(
            [self._layer_rows(num_events)],
            [buffers.timestamps[:num_events]],
            batch,
            segments=segments,
        )
        masked = self._mask(sources, num_events)
        logits = self._ranker.score(batch, masked).logits
        buffers.scores[:num_targets] = torch.sigmoid(logits.float())

    def _mask(
        self,
        sources: Sequence[Any],
        num_events: int,
    ) -> list[Any]:
        """Add a bias to each attention source that removes rows behind the request's events."""
        positions = torch.arange(num_events, device=self._device)
        _, num_own_events = self._buffers.request[EVENT_OFFSETS]
        is_own = positions < num_own_events
        mask = torch.where(is_own, 0.0, MASK_BIAS)
        mask_by_head = mask.expand(self._ranker.config.num_heads, -1)
        masked = []
        for source in sources:
            biases = [mask_by_head if bias is None else bias + mask for bias in source.biases]
            masked.append(dataclasses.replace(source, biases=biases))
        return masked

    def _offsets(self, count: int) -> Tensor:
        """Return int64 [0, count], made on the device."""
        return torch.arange(2, device=self._device) * count

    def _run(
        self,
        work: Callable[..., None],
        *size: int,
    ) -> None:
        """Do `work(*size)`; on a CUDA device replay its graph, captured at the first call."""
        if not self._is_cuda:
            with self._autocast():
                work(*size)
            return
        key = (work.__name__, *size)
        if key not in self._graphs:
            bound_work = functools.partial(work, *size)
            self._graphs[key] = self._capture(bound_work)
        self._graphs[key].replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Return the graph of `work`, after a few runs of it."""
        graph = torch.cuda.CUDAGraph()
        capture_stream = _capture_stream(self._device)
        with _capture_lock, torch.cuda.device(self._device), self._autocast():
            capture_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(capture_stream):
                for _ in range(NUM_WARMUP_RUNS):
                    work()
            torch.cuda.current_stream().wait_stream(capture_stream)
            # thread_local: other threads may allocate device memory during the capture.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=capture_stream,
                capture_error_mode="thread_local",
            ):
                work()
        return graph

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return autocast without a cache: a replay cannot read casts made outside of its graph."""
        if self._precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(
            self._device.type,
            self._precision,
            cache_enabled=False,
        )

    @functools.cached_property
    def _pool(self) -> Any:
        """Memory pool that all graphs share."""
        return torch.cuda.graph_pool_handle()

    @functools.cached_property
    def _copies_done(self) -> torch.cuda.Event:
        """CUDA event, recorded after the last asynchronous copy from the host buffers."""
        return torch.cuda.Event()


def _copy_through(
    host_buffer: Tensor,
    buffer: Tensor,
    values: npt.NDArray[Any],
) -> None:
    """Write values to the first rows of a host buffer, and copy these to the device's buffer."""
    count = len(values)
    host_buffer.numpy()[:count] = values
    buffer[:count].copy_(host_buffer[:count], non_blocking=True)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all captures: libraries hold memory for each stream they saw."""
    return torch.cuda.Stream(device)


def bucket_size(count: int, smallest: int) -> int:
    """Return the least power-of-two multiple of `smallest` that is at least `count`.

    Of 1,024: 1 and 1,024 give 1,024; 1,025 and 2,048 give 2,048; 2,049 gives 4,096.
    """
    full_buckets = max(count - 1, 0) // smallest
    return smallest << full_buckets.bit_length()


def _buckets(smallest: int, largest: int) -> Iterator[int]:
    """Yield smallest, 2 smallest, ... up to `largest`."""
    size = smallest
    while size <= largest:
        yield size
        size *= 2
