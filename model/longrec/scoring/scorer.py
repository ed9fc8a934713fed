"""Scorer: requests in, probabilities out.

Evaluation, parity checks and the service all score through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from longrec.data.batch import RequestBatch
from longrec.data.loading import batching
from longrec.errors import ConfigError
from longrec.nn.fused.stca import StackedWeights
from longrec.nn.target_attention.cached import DuplicateEvents
from longrec.schema import Schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.cuda_graphs import CudaGraphScorer, EncodedQuery
from longrec.scoring.duplicates import find_duplicates
from longrec.scoring.request import (
    CachedEvents,
    RequestRows,
    add_cached_items,
    encode_candidates,
    encode_events,
    encode_history,
    encode_users,
    no_events,
    pack_events,
    pack_requests,
)

Scores: TypeAlias = npt.NDArray[np.float32]
"""Probabilities of each task, float32 [m, K]."""
TOKEN_BUDGET = 65_536
"""Default number of events that one batch may hold."""
MAX_REQUESTS = 64
"""Default number of requests that one batch may hold."""
MAX_CUDA_GRAPH_REQUESTS = 4
"""Most requests of a call that CUDA graphs score one after another.

Up to four, this is faster than one batch; eight are slower (docs/benchmarks/serving.md).
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Scorer:
    """Scores requests with a bundle.

    Its fields must not change, since stacked weights and CUDA graphs are made from them.

    Args:
        bundle: the model and its encoder.
        device: device of the ranker.
        token_budget: most events of one batch. It changes the speed, not the scores.
        max_requests: most requests of one batch. It changes the speed, not the scores.
        precision: of the matrix products; float32, or bfloat16 for serving on a GPU.
        max_cuda_graph_requests: most requests of a call that are scored one after another in fixed
            buffers (longrec.scoring.cuda_graphs). None for MAX_CUDA_GRAPH_REQUESTS on a CUDA device
            and for 0 elsewhere.

    Attributes:
        cuda_graphs: scorer of single requests in fixed buffers, or None.
    """

    bundle: Bundle
    device: torch.device
    token_budget: int = TOKEN_BUDGET
    max_requests: int = MAX_REQUESTS
    precision: torch.dtype = torch.float32
    max_cuda_graph_requests: int | None = None
    cuda_graphs: CudaGraphScorer | None = dataclasses.field(
        init=False,
        repr=False,
        compare=False,
    )
    _weights: StackedWeights | None = dataclasses.field(
        init=False,
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        weights = None
        if self.is_separable:
            with torch.no_grad():
                weights = self.bundle.ranker.stack_weights()
        cuda_graphs = None
        if self._uses_cuda_graphs:
            cuda_graphs = CudaGraphScorer(
                self.bundle.ranker,
                weights,
                self.device,
                precision=self.precision,
                max_events=self.bundle.served_length,
            )
        # A frozen dataclass sets its computed fields in this way.
        object.__setattr__(self, "_weights", weights)
        object.__setattr__(self, "cuda_graphs", cuda_graphs)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        *,
        schema: Schema | None = None,
        token_budget: int = TOKEN_BUDGET,
        max_requests: int = MAX_REQUESTS,
        precision: torch.dtype = torch.float32,
    ) -> Scorer:
        """Return the scorer of the bundle in a directory.

        Raises:
            ConfigError: `device` is a GPU and there is none.
            DataError, SchemaMismatch: see Bundle.load.
        """
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "no GPU is available",
                found=f"device {device}",
                expected="cpu",
                fix="Ask for device cpu.",
            )
        bundle = Bundle.load(directory, device, schema)
        return cls(
            bundle,
            device,
            token_budget,
            max_requests,
            precision,
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the K columns of the scores."""
        return self.bundle.schema.task_names

    @property
    def is_separable(self) -> bool:
        """Whether histories are encoded apart from their targets, as Ranker.keys_values needs."""
        return self.bundle.config.kind == "stca"

    @property
    def is_cacheable(self) -> bool:
        """Whether an event's keys and values never change.

        With `recency: token` they depend on the request time (see Ranker.encode).
        """
        return self.is_separable and self.bundle.config.recency != "token"

    def score(
        self,
        requests: Sequence[RequestRows],
        length: int | None = None,
    ) -> list[Scores]:
        """Return the probabilities of each request, float32 [m, K] in the order of its candidates.

        Items that the encoder does not know are scored as the unknown item. The scores of a request
        do not depend on the other requests.

        Args:
            requests: any number, in any order.
            length: number of most recent events used; None for the bundle's served length.

        Raises:
            DataError: a history is not in time order, lacks a column, or has one of the wrong type.
        """
        if length is None:
            length = self.bundle.served_length
        if length < 0:
            raise ConfigError("the served length must not be negative", found=length)
        no_scores = np.zeros((0, len(self.task_names)), np.float32)
        scores = [no_scores.copy() for _ in requests]
        positions = []
        for position, request in enumerate(requests):
            if len(request.candidates):
                positions.append(position)
        if positions:
            nonempty = [requests[position] for position in positions]
            parts = self._score_nonempty(nonempty, length)
            for position, part in zip(positions, parts, strict=True):
                scores[position] = part
        return scores

    def warm_up(self) -> None:
        """Capture all CUDA graphs of the served length; without a CUDA device, do nothing."""
        if self.cuda_graphs is not None and self.device.type == "cuda":
            self.cuda_graphs.warm_up()

    def score_batches(self, batches: Iterable[RequestBatch]) -> Iterator[Scores]:
        """Yield the probabilities of each batch, float32 [N, K] in the order of its targets.

        Labels are ignored.
        """
        for batch in batches:
            unlabelled = dataclasses.replace(batch, labels=None)  # saves their copy to the device
            with torch.inference_mode(), self.autocast():
                output = self.bundle.ranker(unlabelled.to(self.device))
                scores = to_probabilities(output.logits)
            yield scores

    def keys_values(
        self,
        histories: Sequence[pa.RecordBatch],
        request_times_ms: Sequence[int],
    ) -> list[CachedEvents]:
        """Return keys and values of histories; each row depends on its own event only.

        Args:
            histories: the history codec's columns, oldest event first, before their request times.
            request_times_ms: time of each request; used only if the model is not `is_cacheable`.
        """
        encoder = self.bundle.encoder
        encoded_histories = [encode_events(encoder, history) for history in histories]
        lengths = [history.num_rows for history in histories]
        no_targets = [0] * len(lengths)
        cuda_graphs = self._cuda_graphs_for(lengths, no_targets)
        if cuda_graphs is not None:
            cached = []
            histories_with_times = zip(encoded_histories, request_times_ms, strict=True)
            for events, request_time_ms in histories_with_times:
                layers, encoded, timestamps = cuda_graphs.keys_values(events, request_time_ms)
                cached.append(CachedEvents(layers, encoded, timestamps))
            return cached
        batch = pack_events(encoded_histories, lengths, request_times_ms)
        with torch.inference_mode(), self.autocast():
            if self.device.type != "cpu":
                batch = batch.to(self.device)
            layers = self.bundle.ranker.keys_values(batch, self._weights)
        return _split_events(layers, batch, lengths)

    def score_cached(
        self,
        requests: Sequence[RequestRows],
        cached: Sequence[CachedEvents],
    ) -> list[Scores]:
        """Return the probabilities of each request over cached events, float32 [m, K].

        They equal the result of `score` for the same events.

        Args:
            requests: at least one, each with candidates; their histories are not used.
            cached: events of each request.
        """
        num_events = [len(events) for events in cached]
        num_targets = [len(request.candidates) for request in requests]
        cuda_graphs = self._cuda_graphs_for(num_events, num_targets)
        if cuda_graphs is not None:
            return [
                cuda_graphs.score_cached(
                    events.layers,
                    events.timestamps,
                    self._encode_query(request),
                )
                for request, events in zip(requests, cached, strict=True)
            ]
        batch = self._pack_cached(requests, cached)
        with torch.inference_mode(), self.autocast():
            duplicates = []
            for events, count in zip(cached, num_targets, strict=True):
                duplicates.append(self._find_duplicates(events, count))
            sources = self.bundle.ranker.cached_sources(
                [events.layers for events in cached],
                [events.timestamps for events in cached],
                batch,
                duplicates=duplicates,
            )
            logits = self.bundle.ranker.score(batch, sources).logits
            scores = to_probabilities(logits)
        return _split_scores(scores, num_targets)

    def attention(
        self,
        request: RequestRows,
        cached: CachedEvents,
    ) -> npt.NDArray[np.float32]:
        """Return the attention weights that score each candidate, float32 [M, H, m, L].

        Rows sum to 1.
        """
        ranker = self.bundle.ranker
        batch = self._pack_cached([request], [cached])
        weights: list[list[Tensor]] = []
        with torch.inference_mode(), self.autocast():
            sources = ranker.cached_sources([cached.layers], [cached.timestamps], batch)
            # Each source appends the weights of its layer to `weights` while it is scored.
            recorded = [dataclasses.replace(source, recorded_weights=weights) for source in sources]
            ranker.score(batch, recorded)
            stacked = torch.stack([by_request[0] for by_request in weights])
            attention: npt.NDArray[np.float32] = stacked.cpu().numpy()
        return attention

    def to_batch(
        self,
        requests: Sequence[RequestRows],
        length: int,
    ) -> RequestBatch:
        """Pack requests that all have candidates, with at most `length` events each."""
        encoder = self.bundle.encoder
        histories = [encode_history(encoder, request, length) for request in requests]
        return pack_requests(encoder, requests, histories)

    @property
    def _cuda_graph_limit(self) -> int:
        """Most requests of a call that are scored one after another."""
        if self.max_cuda_graph_requests is not None:
            return self.max_cuda_graph_requests
        return MAX_CUDA_GRAPH_REQUESTS if self.device.type == "cuda" else 0

    @property
    def _uses_cuda_graphs(self) -> bool:
        return self._cuda_graph_limit > 0 and self.is_separable and not self.bundle.config.matches

    def _cuda_graphs_for(
        self,
        num_events: Sequence[int],
        num_targets: Sequence[int],
    ) -> CudaGraphScorer | None:
        """Return the scorer for requests of these sizes; None if they are scored as a batch."""
        cuda_graphs = self.cuda_graphs
        if cuda_graphs is None or len(num_events) > self._cuda_graph_limit:
            return None
        fits = map(cuda_graphs.fits, num_events, num_targets)
        return cuda_graphs if all(fits) else None

    def _score_nonempty(
        self,
        requests: Sequence[RequestRows],
        length: int,
    ) -> Sequence[Scores]:
        """Return the probabilities of requests that all have candidates."""
        num_targets = [len(request.candidates) for request in requests]
        if self.cuda_graphs is not None and len(requests) <= self._cuda_graph_limit:
            encoder = self.bundle.encoder
            histories = [encode_history(encoder, request, length) for request in requests]
            num_events = [len(items) for items, _, _ in histories]
            cuda_graphs = self._cuda_graphs_for(num_events, num_targets)
            if cuda_graphs is not None:
                return [
                    cuda_graphs.score(events, self._encode_query(request))
                    for events, request in zip(histories, requests, strict=True)
                ]
            # A request is too large for the graphs, which is rare: the batches encode again.
        batches = self._batches(requests, length)
        scores = np.concatenate(list(self.score_batches(batches)))
        return _split_scores(scores, num_targets)

    def _batches(
        self,
        requests: Sequence[RequestRows],
        length: int,
    ) -> Iterator[RequestBatch]:
        """Yield batches of requests with candidates.

        One batch is encoded at a time: memory does not grow with the number of requests.
        """
        num_events = [min(request.history.num_rows, length) for request in requests]
        bounds = batching.batch_bounds(
            np.array(num_events, np.int64),
            token_budget=self.token_budget,
            max_requests=self.max_requests,
        )
        starts = bounds[:-1].tolist()
        ends = bounds[1:].tolist()
        for start, end in zip(starts, ends, strict=True):
            yield self.to_batch(requests[start:end], length)

    def _pack_cached(
        self,
        requests: Sequence[RequestRows],
        cached: Sequence[CachedEvents],
    ) -> RequestBatch:
        """Pack requests that all have candidates, without the histories that the cache holds."""
        encoder = self.bundle.encoder
        histories = [no_events(encoder.schema)] * len(requests)
        batch = pack_requests(encoder, requests, histories).to(self.device)
        if not self.bundle.config.matches:
            return batch
        num_targets = [len(request.candidates) for request in requests]
        return add_cached_items(batch, cached, num_targets)

    def _encode_query(self, request: RequestRows) -> EncodedQuery:
        """Encode the request without its history."""
        encoder = self.bundle.encoder
        return EncodedQuery(
            request.request_time_ms,
            encode_users(encoder, [request]),
            encode_candidates(encoder, request),
        )

    def _find_duplicates(
        self,
        events: CachedEvents,
        num_targets: int,
    ) -> DuplicateEvents | None:
        """Return which events are equal, or None if they are not searched or it does not pay.

        They are searched in float32 on a CPU only.
        """
        is_float32_on_cpu = self.device.type == "cpu" and self.precision == torch.float32
        if not is_float32_on_cpu or not self.is_cacheable:
            return None
        work = len(events) * num_targets * self.bundle.config.width
        return find_duplicates(events, work)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of the scorer's precision."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def to_probabilities(logits: Tensor) -> Scores:
    """Return the probabilities of logits in host memory, float32."""
    probabilities = torch.sigmoid(logits.float())
    scores: Scores = probabilities.cpu().numpy()
    return scores


def _split_scores(scores: Scores, num_targets: Sequence[int]) -> list[Scores]:
    """Split packed scores [N, K] into one array per request."""
    ends = np.cumsum(num_targets)
    return np.split(scores, ends[:-1])


def _split_events(
    layers: Sequence[Tensor],
    batch: RequestBatch,
    lengths: Sequence[int],
) -> list[CachedEvents]:
    """Split the keys and values of a batch into one view per request."""
    items = batch.event_items[:, None]
    encoded = torch.cat([items, batch.event_features], dim=1)
    if len(lengths) == 1:
        return [CachedEvents(layers, encoded, batch.event_timestamps)]
    sizes = list(lengths)
    requests_by_layer = [layer.split(sizes) for layer in layers]
    layers_by_request = zip(*requests_by_layer, strict=True)
    encoded_by_request = encoded.split(sizes)
    timestamps_by_request = batch.event_timestamps.split(sizes)
    fields = zip(layers_by_request, encoded_by_request, timestamps_by_request, strict=True)
    return [CachedEvents(*fields_of_request) for fields_of_request in fields]
