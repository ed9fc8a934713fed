"""One request for a scorer with random weights: a history and its candidates."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from harness.training_step import NOW_MS, NUM_TOPICS, SPAN_MS
from longrec.config import ModelConfig
from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.nn.ranker import Ranker
from longrec.schema import synthetic_schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import MAX_CUDA_GRAPH_REQUESTS, Scorer
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice

SCHEMA = synthetic_schema()
CACHE_BYTES = 1 << 34
NUM_SPARE_EVENTS = 256
"""Events beyond a history, for requests with one new event each."""
FIT_EVENTS = 4_096
Scores = npt.NDArray[np.float32]


def make_scorer(
    config: ModelConfig, num_items: int, served_length: int, device: torch.device
) -> Scorer:
    """Return a scorer with random weights; it uses fixed buffers on a CPU too."""
    items = pa.table({"item_id": np.arange(num_items), "topic": np.arange(num_items) % NUM_TOPICS})
    users = pa.table({"region": np.arange(8)})
    # Every item occurs five times, so none is rare.
    item_counts = [np.arange(num_items)] * 5
    encoder = Encoder.fit(
        SCHEMA, items, users, [random_history(FIT_EVENTS, num_items, 1)], item_counts
    )
    torch.manual_seed(0)
    item_table = torch.from_numpy(encoder.item_table)
    ranker = Ranker(config, SCHEMA, encoder.sizes, item_table).to(device).eval()
    for layer in ranker.stca.layers:
        torch.nn.init.normal_(layer.gap_bias, std=0.3)
    return Scorer(
        Bundle(ranker, encoder, config, served_length, {}, "random"),
        device,
        precision=torch.bfloat16 if device.type == "cuda" else torch.float32,
        max_cuda_graph_requests=MAX_CUDA_GRAPH_REQUESTS,
    )


def random_history(num_events: int, num_items: int, seed: int) -> pa.RecordBatch:
    """Return a history as the feature store gives it."""
    rng = np.random.default_rng(seed)
    times = np.sort(NOW_MS - rng.integers(1, SPAN_MS, num_events))
    events = pa.table(
        {
            "item_id": (num_items * rng.random(num_events) ** 3).astype(np.int64),
            "timestamp": times,
            "event_seq": np.arange(num_events),
            "action": pa.array(rng.choice(["view", "like", "share"], num_events)),
        }
    )
    return history.unpack(history.pack(events.combine_chunks(), SCHEMA), SCHEMA)


@dataclasses.dataclass(frozen=True)
class RankingCase:
    """A request, and the scorer that ranks it.

    Args:
        scorer: of the request.
        rows: history, user features, time and candidates.
        num_events: events of the history that are used.
    """

    scorer: Scorer
    rows: RequestRows
    num_events: int

    @classmethod
    def random(cls, scorer: Scorer, num_events: int, num_targets: int) -> RankingCase:
        """Return a case with a random history and random candidates."""
        num_items = scorer.bundle.encoder.num_items
        candidates = np.random.default_rng(3).integers(0, num_items, num_targets)
        events = random_history(num_events + NUM_SPARE_EVENTS, num_items, 2)
        rows = RequestRows(events, {"region": 3}, NOW_MS, candidates)
        return cls(scorer, rows, num_events)

    def rank(self, cache: HistoryKVCache, first: int = 0) -> Scores:
        """Return the scores over the events from row `first` on."""
        cached = cache.get_or_encode([self.slice_from(first)])
        return self.scorer.score_cached([self.rows], cached)[0]

    def rank_cold(self, first: int = 0) -> Scores:
        """Return the same scores, with an empty cache."""
        return self.rank(HistoryKVCache(self.scorer, CACHE_BYTES), first)

    def slice_from(self, first: int) -> HistorySlice:
        """Return the history from row `first` on, as the cache takes it."""
        end = first + self.num_events
        return HistorySlice("user", self.rows.history, first, end, self.rows.request_time_ms)

    def warm_cache(self) -> HistoryKVCache:
        """Return a cache that holds the history."""
        cache = HistoryKVCache(self.scorer, CACHE_BYTES, events_per_user=self.num_events)
        self.rank(cache)
        return cache

    @property
    def num_targets(self) -> int:
        """Number of candidates."""
        return len(self.rows.candidates)

    @property
    def eager(self) -> RankingCase:
        """The same case without CUDA graphs."""
        scorer = dataclasses.replace(self.scorer, max_cuda_graph_requests=0)
        return dataclasses.replace(self, scorer=scorer)

    @property
    def dtype(self) -> str:
        """Name of the dtype of the products."""
        return str(self.scorer.precision).removeprefix("torch.")

    @property
    def shape(self) -> str:
        """Shape column of a row."""
        config = self.scorer.bundle.config
        return (
            f"L{self.num_events} m{self.num_targets} "
            f"d{config.width} h{config.num_heads} M{config.num_layers}"
        )


def largest_differences(case: RankingCase) -> dict[str, float]:
    """Return the largest differences of a probability, by what is compared."""
    exact = dataclasses.replace(case.scorer, precision=torch.float32, max_cuda_graph_requests=0)
    events = case.rows.history.slice(1, case.num_events)
    whole = dataclasses.replace(case.rows, history=events)
    cache = case.warm_cache()
    appended = case.rank(cache, 1)
    warm = case.rank(cache, 1)
    eager = case.eager.rank(cache, 1)
    cold = case.rank_cold(1)
    expected = exact.score([whole], case.num_events)[0]
    forward = case.scorer.score([whole], case.num_events)[0]
    pairs = {
        "cold to float32": (cold, expected),
        "warm to cold": (warm, cold),
        "appended to cold": (appended, cold),
        "warm to eager": (warm, eager),
        "score to cold": (forward, cold),
    }
    return {name: float(np.abs(left - right).max()) for name, (left, right) in pairs.items()}
