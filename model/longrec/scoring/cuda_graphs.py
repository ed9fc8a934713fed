"""Scoring in fixed buffers: on a CUDA device one captured graph does what takes hundreds of launches otherwise.

    items, features, times   --copied--> [E events]     --encode--> K | V of every layer --+
    kept K | V, times        --copied-----------------------------> the same               +--score--> probabilities
    moment, user, candidates --copied--> [N candidates] -----------------------------------+

There is a graph for each size: E of 1,024, 2,048, ... events, N of 64, 128, ... candidates. A request takes the smallest that holds it.
The buffers of a size are the first rows of those of the largest, and all graphs share the memory of what they compute in between. Behind a
request's own rows lies what others left there: the kernels of a CUDA device are told the length and do not read it, elsewhere a bias of
MASKED takes all weight from it. A softmax of nothing but masks is a mean, so a request without events is none for here.

A graph reads the weights where they lay when it was captured: it belongs to one ranker as it is served, another version captures its own.
Shape letters: E events and N candidates of a size, L events and m candidates of a request, D width, M layers, A action features of an
event, U user features, K tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch
from longrec.nn.fused_stca import StackedWeights
from longrec.nn.ranker import Ranker
from longrec.nn.target_attention import Segments

MIN_EVENT_BUCKET, MIN_TARGET_BUCKET, MAX_TARGETS = 1_024, 64, 2_048
MASKED = -1e30
WARM_RUNS = 2
"""Runs before a capture: kernels are compiled and libraries set up in them."""

_capturing = threading.Lock()

Int32 = npt.NDArray[np.int32]
Events = tuple[Int32, Int32, npt.NDArray[np.int64]]
"""(item rows [L], action features [L, A], timestamps [L] in ms) of one history, as the Encoder
makes them.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for: the moment in ms, the user's features [1, U], and item rows of the
    candidates [m].
    """

    request_time_ms: int
    user: Int32
    items: Int32


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """What is copied between host and device for a request; page-locked on a host that has a GPU.

    Args:
        items, features, timestamps: int32 [E], int32 [E, A], int64 [E].
        request: int64 [3 + U + N]: moment, 0, number of events, user features, candidates.
        scores: float32 [N, K].
    """

    items: Tensor
    features: Tensor
    timestamps: Tensor
    request: Tensor
    scores: Tensor

    def pinned(self) -> _Rows:
        """Returns the same on the host."""
        tensors = (getattr(self, field.name) for field in dataclasses.fields(self))
        return _Rows(
            *(torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors)
        )


class CudaGraphScorer:
    """Scores one request at a time with a ranker; threads take turns, and all of them must be on
    the same stream.

    Args:
        ranker: STCA, without `matches`; in evaluation mode.
        weights: its `stack_weights`.
        device: where it is. Without CUDA the same is done in the same buffers, but nothing is
            captured.
        precision: of the matrix products.
        max_events: the longest history that is to fit.
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
        self._ranker, self._weights, self._device, self._precision = (
            ranker,
            weights,
            device,
            precision,
        )
        self.max_events = bucket_size(max_events, MIN_EVENT_BUCKET)
        self._lock, self._graphs = (
            threading.Lock(),
            dict[tuple[object, ...], torch.cuda.CUDAGraph](),
        )

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def fits(self, num_events: int, num_targets: int) -> bool:
        """Returns whether a request of this size can be scored here."""
        return 0 < num_events <= self.max_events and num_targets <= MAX_TARGETS

    def warm_up(self) -> None:
        """Captures every size, so that no request pays for it."""
        with self._at_work():
            for num_events in _ladder(MIN_EVENT_BUCKET, self.max_events):
                self._run(self._encode_all, num_events)
                for num_targets in _ladder(MIN_TARGET_BUCKET, MAX_TARGETS):
                    self._run(self._score_all, num_events, num_targets)

    def keys_values(
        self, events: Events, request_time_ms: int
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Returns K | V of the events in each layer, M of [L, 2 D], their item rows and features,
        and times, on the device; for the caller
        to keep."""
        with self._at_work():
            count = self._encode(events, request_time_ms)
            rows = self._rows
            encoded = torch.cat([rows.items[:count, None], rows.features[:count]], dim=1)
            return (
                list(self._layers[:, :count].clone().unbind()),
                encoded,
                rows.timestamps[:count].clone(),
            )

    def score(self, events: Events, asked: Asked) -> npt.NDArray[np.float32]:
        """Returns the probabilities of the candidates over the events, float32 [m, K]."""
        with self._at_work():
            return self._score(self._encode(events, asked.request_time_ms), asked)

    def score_cached(
        self, layers: Sequence[Tensor], timestamps: Tensor, asked: Asked
    ) -> npt.NDArray[np.float32]:
        """Returns the same over kept events: M of [L, 2 D] and int64 [L], on the device."""
        with self._at_work():
            count = timestamps.shape[0]
            torch._foreach_copy_([buffer[:count] for buffer in self._layers.unbind()], list(layers))
            self._rows.timestamps[:count].copy_(timestamps)
            return self._score(count, asked)

    @functools.cached_property
    def _rows(self) -> _Rows:
        """The buffers that the graphs read and write."""
        ranker, events, of = (
            self._ranker,
            self.max_events,
            functools.partial(torch.zeros, device=self._device),
        )
        num_features, num_user, num_tasks = (
            len(ranker.actions.sizes),
            len(ranker.users.sizes),
            ranker.head.out_features,
        )
        return _Rows(
            of(events, dtype=torch.int32),
            of(events, num_features, dtype=torch.int32),
            of(events, dtype=torch.int64),
            of(3 + num_user + MAX_TARGETS, dtype=torch.int64),
            of(MAX_TARGETS, num_tasks, dtype=torch.float32),
        )

    @functools.cached_property
    def _host(self) -> _Rows:
        return self._rows.pinned() if self._device.type == "cuda" else self._rows

    @functools.cached_property
    def _layers(self) -> Tensor:
        """K | V of the events, [M, E, 2 D]."""
        config = self._ranker.config
        return torch.zeros(
            config.num_layers,
            self.max_events,
            2 * config.width,
            dtype=self._precision,
            device=self._device,
        )

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within it the buffers are this thread's, and the host's side has been read by whatever
        was copying it.
        """
        with self._lock, torch.inference_mode():
            if self._device.type == "cuda":
                self._copied.synchronize()
            yield

    def _encode(self, events: Events, request_time_ms: int) -> int:
        """Writes K | V of the events; returns their number."""
        count, host, rows = len(events[0]), self._host, self._rows
        for values, staged, buffer in zip(
            events,
            (host.items, host.features, host.timestamps),
            (rows.items, rows.features, rows.timestamps),
            strict=True,
        ):
            staged.numpy()[:count] = values
            buffer[:count].copy_(staged[:count], non_blocking=True)
        host.request[0] = request_time_ms
        rows.request[:1].copy_(host.request[:1], non_blocking=True)
        if self._device.type == "cuda":
            self._copied.record(torch.cuda.current_stream(self._device))
        self._run(self._encode_all, bucket_size(count, MIN_EVENT_BUCKET))
        return count

    def _score(self, count: int, asked: Asked) -> npt.NDArray[np.float32]:
        """Returns the probabilities over the first `count` rows of K | V."""
        host, num_targets, first = self._host, len(asked.items), 3 + asked.user.size
        size = bucket_size(num_targets, MIN_TARGET_BUCKET)
        block = host.request.numpy()
        block[:first] = asked.request_time_ms, 0, count, *asked.user.flat
        block[first : first + num_targets] = asked.items
        self._rows.request[: first + size].copy_(host.request[: first + size], non_blocking=True)
        self._run(self._score_all, bucket_size(count, MIN_EVENT_BUCKET), size)
        host.scores[:num_targets].copy_(self._rows.scores[:num_targets], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return host.scores[:num_targets].numpy().copy()

    def _encode_all(self, num_events: int) -> None:
        """Reads the event buffers, writes K | V; asks the device for nothing, so that it can be
        captured.
        """
        rows = self._rows
        batch = RequestBatch(
            rows.items[:num_events],
            rows.features[:num_events],
            rows.timestamps[:num_events],
            self._offsets(num_events),
            rows.items[:0],
            self._offsets(0),
            rows.request[None, 3:3],
            rows.request[:1],
            host_counts=([num_events], [0]),
        )
        torch._foreach_copy_(
            [buffer[:num_events] for buffer in self._layers.unbind()],
            self._ranker.keys_values(batch, self._weights),
        )

    def _score_all(self, num_events: int, num_targets: int) -> None:
        """Reads K | V, times and the request, writes the probabilities of all candidates; can be
        captured too.
        """
        rows, first = self._rows, 3 + len(self._ranker.users.sizes)
        targets, offsets = rows.request[first : first + num_targets], self._offsets(num_targets)
        batch = RequestBatch(
            rows.items[:0],
            rows.features[:0],
            rows.timestamps[:0],
            self._offsets(0),
            targets,
            offsets,
            rows.request[None, 3:first],
            rows.request[:1],
            host_counts=([0], [num_targets]),
        )
        segments = Segments(rows.request[1:3], offsets, [num_events], [num_targets])
        layers = [buffer[:num_events] for buffer in self._layers.unbind()]
        kept = self._ranker.kept([layers], [rows.timestamps[:num_events]], batch, segments)
        masks = torch.where(
            torch.arange(num_events, device=self._device) < rows.request[2], 0.0, MASKED
        )
        heads = masks.expand(self._ranker.config.num_heads, -1)
        kept = [
            dataclasses.replace(
                memory, biases=[heads if bias is None else bias + masks for bias in memory.biases]
            )
            for memory in kept
        ]
        rows.scores[:num_targets] = torch.sigmoid(self._ranker.score(batch, kept).logits.float())

    def _offsets(self, count: int) -> Tensor:
        """Returns int64 [0, count], made on the device."""
        return torch.arange(2, device=self._device) * count

    def _run(self, work: Callable[..., None], *size: int) -> None:
        """Does `work(*size)`; on a CUDA device by the graph of it, which is captured the first
        time.
        """
        if self._device.type != "cuda":
            with self._autocast():
                work(*size)
            return
        key = (work.__name__, *size)
        if key not in self._graphs:
            self._graphs[key] = self._capture(functools.partial(work, *size))
        self._graphs[key].replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph, aside = torch.cuda.CUDAGraph(), _stream(self._device)
        with _capturing, torch.cuda.device(self._device), self._autocast():
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_RUNS):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            # thread_local: an engine that is at work meanwhile, in another thread, may allocate
            with torch.cuda.graph(
                graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"
            ):
                work()
        return graph

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """Autocast that keeps no casts: one that was made outside of a graph would be gone when the
        graph is replayed.
        """
        if self._precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._precision, cache_enabled=False)

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @functools.cached_property
    def _copied(self) -> torch.cuda.Event:
        """Recorded behind the last copies that nobody waits for."""
        return torch.cuda.Event()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream that everything is captured on: libraries keep memory for each stream that
    they have seen.
    """
    return torch.cuda.Stream(device)


def bucket_size(count: int, least: int) -> int:
    """Returns the smallest of least, 2 least, 4 least, ... that holds `count`."""
    return least << (max(count - 1, 0) // least).bit_length()


def _ladder(least: int, most: int) -> Iterator[int]:
    """Yields least, 2 least, ... up to `most`."""
    size = least
    while size <= most:
        yield size
        size *= 2
