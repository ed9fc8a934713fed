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

SERVED = 40
START_MS = small_histories.SPLIT_MS


def scorer(directory: Path, recency: str = "bias", **options: object) -> Scorer:
    """A ranker with random weights on the small world's schema, every parameter that starts at zero
    included.
    """
    histories = Histories.open(small_histories.write(directory / "histories"))
    encoder = Encoder.fit(
        histories.schema, histories.items, histories.users, histories.event_batches()
    )
    config = ModelConfig(
        **{
            "width": 32,
            "num_layers": 3,
            "num_heads": 2,
            "id_dim": 8,
            "feature_dim": 4,
            "recency": recency,
            **options,
        }
    )
    torch.manual_seed(7)
    ranker = Ranker(
        config, encoder.schema, encoder.sizes, torch.from_numpy(encoder.item_table)
    ).eval()
    for name, parameter in ranker.named_parameters():
        if name.endswith(("gap_bias", "norm.bias", "norm.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
    return Scorer(Bundle(ranker, encoder, config, SERVED, {}, "v"), torch.device("cpu"))


class User:
    """Events of one user as a feature store gives them: packed and unpacked again, in the order of
    their keys.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.rows = np.random.default_rng(seed), []

    def append(self, count: int = 1, *, late: bool = False) -> None:
        """Adds events at the end, every third in a tie with the one before, or anywhere; two of
        five are an earlier one again.
        """
        newest = self.rows[-1][0] if self.rows else START_MS
        for _ in range(count):
            time = (
                int(self.rng.integers(START_MS, newest + 1))
                if late
                else newest + int(self.rng.integers(0, 3)) * 7_000
            )
            newest = max(newest, time)
            seconds = None if self.rng.random() < 0.2 else float(self.rng.random())
            action = (
                None
                if self.rng.random() < 0.1
                else str(self.rng.choice(["view", "buy", "like", "new"]))
            )
            item = int(small_histories.FIRST_ID + self.rng.integers(0, 60))
            if self.rows and self.rng.random() < 0.4:
                item, action, seconds = self.rows[self.rng.integers(0, len(self.rows))][2:]
            self.rows.append((time, len(self.rows), item, action, seconds))
        self.rows.sort(key=lambda row: row[:3])

    def timeline(self) -> pa.RecordBatch:
        schema = small_histories.SCHEMA
        names = ("timestamp", "event_seq", "item_id", "action", "seconds")
        columns = (
            {
                name: list(values)
                for name, values in zip(names, zip(*self.rows, strict=True), strict=True)
            }
            if self.rows
            else {}
        )
        events = pa.table(
            {
                "item_id": pa.array(columns.get("item_id", []), pa.int64()),
                "seconds": pa.array(columns.get("seconds", []), pa.float64()),
                "action": pa.array(columns.get("action", []), pa.string()),
                **{
                    name: pa.array(columns.get(name, []), pa.int64())
                    for name in ("timestamp", "event_seq")
                },
            }
        )
        return history.unpack(history.pack(events.combine_chunks(), schema), schema)

    def request(
        self, timeline: pa.RecordBatch, request_time: int, candidates: int = 5
    ) -> RequestRows:
        items = small_histories.FIRST_ID + self.rng.integers(0, 61, candidates)
        return RequestRows(timeline, {"region": "north"}, request_time, items.astype(np.int64))
