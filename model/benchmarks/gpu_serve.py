"""Ranking one request on a GPU through the engine's own parts: cache and Scorer, rows in, probabilities out, times of the host's clock.

    python model/benchmarks/gpu_serve.py                all rows
    python model/benchmarks/gpu_serve.py --out rows.csv rows there instead of results.csv

d=256, h=8, M=4, r=2, recency bias, bfloat16 products, a million items. "cold": no event of the user is kept; "warm": all are; "append":
all but one. Everything from the history's Arrow columns to NumPy probabilities is in the time, but no HTTP and no feature store. Before
the times, cold and warm scores are compared with the forward pass in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).parent))
import _rows
import _world

from longrec.bundle import Bundle
from longrec.config import ModelConfig
from longrec.data import history
from longrec.data.encode import Encoder
from longrec.nn.ranker import Ranker
from longrec.schema import planted
from longrec.scorer import RequestRows, Scorer
from longrec.serving.cache import HistoryCache, Wanted

CONFIG = ModelConfig(width=256, num_layers=4, num_heads=8, ffn_ratio=2, recency="bias")
CASES = [(10_000, 500), (10_000, 2_048), (10_000, 50), (1_000, 500), (2_000, 500), (32_000, 500), (32_000, 2_048)]
SCHEMA = planted()


def make_scorer(num_items: int, device: torch.device) -> Scorer:
    """Returns a scorer with random weights."""
    items = pa.table({"item_id": np.arange(num_items), "topic": np.arange(num_items) % 64})
    encoder = Encoder.fit(SCHEMA, items, pa.table({"region": np.arange(8)}), [timeline(4_096, num_items, 1)], [np.arange(num_items)] * 5)
    torch.manual_seed(0)
    ranker = Ranker(CONFIG, SCHEMA, encoder.sizes, torch.from_numpy(encoder.item_table)).to(device).eval()
    for layer in ranker.stca.layers:
        torch.nn.init.normal_(layer.gap_bias, std=0.3)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Scorer(Bundle(ranker, encoder, CONFIG, 10_000, {}, "random"), device, precision=precision)


def timeline(num_events: int, num_items: int, seed: int) -> pa.RecordBatch:
    """Returns a history as the feature store gives it."""
    rng = np.random.default_rng(seed)
    times = np.sort(_world.NOW_MS - rng.integers(1, _world.SPAN_MS, num_events))
    events = pa.table({"item_id": (num_items * rng.random(num_events) ** 3).astype(np.int64), "timestamp": times,
                       "event_seq": np.arange(num_events), "action": pa.array(rng.choice(["view", "like", "share"], num_events))})
    return history.unpack(history.pack(events.combine_chunks(), SCHEMA), SCHEMA)


@dataclasses.dataclass(frozen=True)
class Case:
    """One history and its candidates."""

    scorer: Scorer
    rows: RequestRows
    num_events: int

    @classmethod
    def of(cls, scorer: Scorer, num_events: int, num_targets: int) -> Case:
        num_items = scorer.bundle.encoder.num_items
        candidates = np.random.default_rng(3).integers(0, num_items, num_targets)
        return cls(scorer, RequestRows(timeline(num_events + 256, num_items, 2), {"region": 3}, _world.NOW_MS, candidates), num_events)

    def rank(self, cache: HistoryCache, first: int = 0) -> np.ndarray:
        """Returns the scores over the events from row `first` on."""
        wanted = Wanted("user", self.rows.history, first, first + self.num_events, self.rows.moment_ms)
        return self.scorer.score_kept([self.rows], cache.kept([wanted]))[0]


def quantiles(work: Callable[[int], object], repeats: int) -> tuple[float, float, float]:
    """Returns the 50, 95 and 99 % quantile of a call in ms; a call ends when its probabilities are on the host."""
    for number in range(5):
        work(number)
    times = []
    for number in range(5, repeats + 5):
        started = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - started) * 1e3)
    p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99]).tolist()
    return p50, p95, p99


def errors(case: Case) -> tuple[float, float, float]:
    """Returns the largest difference of a probability: cold to float32, warm to cold, and appended to cold."""
    exact = dataclasses.replace(case.scorer, precision=torch.float32)
    whole = dataclasses.replace(case.rows, history=case.rows.history.slice(1, case.num_events))
    cache = HistoryCache(case.scorer, 1 << 34, keep=case.num_events)
    case.rank(cache)
    appended, warm = case.rank(cache, 1), case.rank(cache, 1)
    cold = case.rank(HistoryCache(case.scorer, 1 << 34), 1)
    expected = exact.score([whole], case.num_events)[0]
    return float(np.abs(cold - expected).max()), float(np.abs(warm - cold).max()), float(np.abs(appended - cold).max())


def measured(case: Case, repeats: int) -> list[dict[str, str]]:
    """Returns the rows of a case."""
    cache = HistoryCache(case.scorer, 1 << 34, keep=case.num_events)
    case.rank(cache)
    works: dict[str, Callable[[int], object]] = {
        "cold": lambda _: case.rank(HistoryCache(case.scorer, 1 << 34)), "warm": lambda _: case.rank(cache),
        "append": lambda number: case.rank(cache, 1 + number)}
    apart, found = errors(case), []
    num_targets = len(case.rows.candidates)
    for name, work in works.items():
        count = repeats if name != "append" else min(repeats, 200)
        p50, p95, p99 = quantiles(work, count)
        notes = (f"p50 {p50:.2f} p95 {p95:.2f} p99 {p99:.2f} ms of {count}; {num_targets / p50 * 1e3:,.0f} candidates/s; "
                 f"{cache.num_bytes / case.num_events:.0f} bytes an event; largest difference cold to float32 {apart[0]:.1e}, "
                 f"warm to cold {apart[1]:.1e}, appended to cold {apart[2]:.1e}")
        shape = f"L{case.num_events} m{num_targets} d{CONFIG.width} h{CONFIG.num_heads} M{CONFIG.num_layers}"
        precision = str(case.scorer.precision).removeprefix("torch.")
        row = _rows.row(f"scorer {name} p50 p95 p99", shape, precision, (p50, p95, p99), notes=notes)
        print(row["claim"], row["shape"], notes, flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_rows.RESULTS)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    chosen = parser.parse_args()
    scorer = make_scorer(chosen.items, torch.device(chosen.device))
    for num_events, num_targets in CASES[:chosen.cases]:
        _rows.append(measured(Case.of(scorer, num_events, num_targets), chosen.repeats), chosen.out)


if __name__ == "__main__":
    main()
