"""A small scorer with random weights, and users whose events arrive one by one, late or in ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from longrec.config import ModelConfig
from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.data.histories import Histories
from longrec.nn.ranker import Ranker
from longrec.scoring.bundle import Bundle
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.longrec import small_histories

SERVED_LENGTH = 40
START_MS = small_histories.SPLIT_MS
STEP_MS = 7_000
NUM_ITEMS = 60


def make_scorer(directory: Path, recency: str = "bias", **options: object) -> Scorer:
    """Return a ranker with random weights on the schema of the small histories.

    Parameters that start at zero are random too.
    """
    histories = Histories.open(small_histories.write(directory / "histories"))
    encoder = Encoder.fit(
        histories.schema,
        histories.items,
        histories.users,
        histories.event_batches(),
    )
    defaults = {
        "width": 32,
        "num_layers": 3,
        "num_heads": 2,
        "id_dim": 8,
        "feature_dim": 4,
        "recency": recency,
    }
    config = ModelConfig(**{**defaults, **options})
    torch.manual_seed(7)
    item_table = torch.from_numpy(encoder.item_table)
    ranker = Ranker(config, encoder.schema, encoder.sizes, item_table).eval()
    for name, parameter in ranker.named_parameters():
        if name.endswith(("gap_bias", "norm.bias", "norm.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
    bundle = Bundle(ranker, encoder, config, SERVED_LENGTH, {}, "v")
    return Scorer(bundle, torch.device("cpu"))


class User:
    """Events of one user as a feature store gives them, in the order of their keys."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = []

    @property
    def next_ms(self) -> int:
        """A time after the last event."""
        return self.rows[-1][0] + 1 if self.rows else START_MS

    def append(self, count: int = 1, *, late: bool = False) -> None:
        """Add events at the end, or anywhere.

        Every third is in a tie with the one before; two of five repeat an earlier one.
        """
        newest = self.rows[-1][0] if self.rows else START_MS
        for _ in range(count):
            if late:
                time = int(self.rng.integers(START_MS, newest + 1))
            else:
                time = newest + int(self.rng.integers(0, 3)) * STEP_MS
            newest = max(newest, time)
            seconds = None if self.rng.random() < 0.2 else float(self.rng.random())
            is_missing = self.rng.random() < 0.1
            actions = ["view", "buy", "like", "new"]
            action = None if is_missing else str(self.rng.choice(actions))
            item = int(small_histories.FIRST_ID + self.rng.integers(0, NUM_ITEMS))
            if self.rows and self.rng.random() < 0.4:
                item, action, seconds = self.rows[self.rng.integers(0, len(self.rows))][2:]
            self.rows.append((time, len(self.rows), item, action, seconds))
        self.rows.sort(key=lambda row: row[:3])

    def timeline(self) -> pa.RecordBatch:
        """Return all events, packed and unpacked again."""
        columns = [list(column) for column in zip(*self.rows, strict=True)] or [[]] * 5
        times, orders, items, actions, seconds = columns
        events = pa.table(
            {
                "item_id": pa.array(items, pa.int64()),
                "seconds": pa.array(seconds, pa.float64()),
                "action": pa.array(actions, pa.string()),
                "timestamp": pa.array(times, pa.int64()),
                "event_seq": pa.array(orders, pa.int64()),
            }
        )
        packed = history.pack(events.combine_chunks(), small_histories.SCHEMA)
        return history.unpack(packed, small_histories.SCHEMA)

    def request(
        self,
        timeline: pa.RecordBatch,
        request_time_ms: int,
        num_candidates: int = 5,
    ) -> RequestRows:
        """Return a request with random candidates, the unknown item among them."""
        items = self.rng.integers(0, NUM_ITEMS + 1, num_candidates)
        candidates = (small_histories.FIRST_ID + items).astype(np.int64)
        return RequestRows(timeline, {"region": "north"}, request_time_ms, candidates)
