"""Scoring kept events as a captured CUDA graph: a bucket of events and candidates in fixed buffers, replayed for any request that fits.

An experiment, not yet part of the service: capturing has not run on a GPU.

    python model/benchmarks/gpu_graph.py                                       captured against Scorer.score_kept, one GPU
    python model/benchmarks/gpu_graph.py --device cpu --events 70 --targets 5 --width 32 --heads 2 --items 500 --repeats 3

Events beyond a request's own are masked by a gap bias of -1e30, candidates beyond its own are the unknown item and their scores dropped;
so one graph serves every request up to its bucket, but for one without events, which stays with score_kept. On a CPU the same buffers are
filled and the same calls made, without a graph: that shows that masking is right, and nothing about capturing. Exit status 1 where a
probability differs by more than the bar.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import _rows
import _world
import gpu_serve

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.layers import gap_buckets
from longrec.nn.target_attention import Segments, fused
from longrec.nn.target_attention.kept import KeptKeysValues
from longrec.scorer import KeptEvents, RequestRows, Scorer

MASKED = -1e30
BARS = {"cuda": 5e-3, "cpu": 1e-5}
"""Largest difference of a probability: in bfloat16 two roundings of a logit, in float32 another order of sums."""


class Captured:
    """One bucket: requests of up to `capacity` kept events and `num_targets` candidates."""

    def __init__(self, scorer: Scorer, capacity: int, num_targets: int, kind: torch.dtype) -> None:
        self.scorer, self.capacity, self.num_targets, device = scorer, capacity, num_targets, scorer.device
        config = scorer.bundle.config
        self.layers = [torch.zeros(capacity, 2 * config.width, dtype=kind, device=device) for _ in range(config.num_layers)]
        self.timestamps, self.length = (torch.zeros(n, dtype=torch.int64, device=device) for n in (capacity, 1))
        self.items = torch.zeros(num_targets, dtype=torch.int32, device=device)
        self.user = torch.zeros(1, len(scorer.bundle.schema.user), dtype=torch.int32, device=device)
        self.moment, self.places = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(capacity, device=device)
        self.segments = Segments.counted([capacity], [num_targets], device)
        self.run: Callable[[], object] = self._score
        self.scores = self._warm()

    def score(self, request: RequestRows, kept: KeptEvents) -> np.ndarray:
        """Returns what Scorer.score_kept returns of one request."""
        batch, count = self.scorer._without_events([request], [kept]), len(kept)
        for buffer, layer in zip(self.layers, kept.layers, strict=True):
            buffer[:count].copy_(layer)
        self.timestamps[:count].copy_(kept.timestamps)
        self.length.fill_(count)
        self.items.zero_()[:batch.num_targets].copy_(batch.target_items)
        self.user.copy_(batch.user_features)
        self.moment.copy_(batch.request_timestamps)
        with torch.inference_mode(), self.scorer._autocast():
            self.run()
        found: np.ndarray = self.scores[:batch.num_targets].cpu().numpy()
        return found

    def _warm(self) -> Tensor:
        with torch.inference_mode(), self.scorer._autocast():
            scores = self._score()
            if self.scorer.device.type == "cuda":
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        self._score()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    scores = self._score()
                self.run = graph.replay
        return scores

    def _score(self) -> Tensor:
        """Returns the probabilities of the whole bucket; reads the buffers alone and asks the device for nothing."""
        ranker, targets = self.scorer.bundle.ranker, self.num_targets
        nothing = torch.zeros(2, dtype=torch.int64, device=self.scorer.device)
        batch = RequestBatch(self.items[:0], self.user.new_zeros(0, len(self.scorer.bundle.schema.event)), self.timestamps[:0], nothing,
                             self.items, self.segments.target_offsets, self.user, self.moment, host_counts=([0], [targets]))
        logits = ranker.score(batch, self._memories()).logits
        scores = torch.sigmoid(logits.float())
        if self.scorer.device.type == "cpu":
            self.scores = scores
        return scores

    def _memories(self) -> list[fused.KeysValues | KeptKeysValues]:
        masked = torch.where(self.places < self.length, 0.0, MASKED)
        gaps = gap_buckets(self.moment.expand(self.capacity), self.timestamps)
        layers = list(self.scorer.bundle.ranker.stca.layers)
        heads = layers[0].num_heads
        biases = [masked.expand(heads, -1) if layer.gap_bias is None else layer.gap_bias.float().t().index_select(1, gaps) + masked
                  for layer in layers]
        if self.scorer.device.type == "cuda":
            return [fused.KeysValues(kv, heads, self.segments, bias.contiguous()) for kv, bias in zip(self.layers, biases, strict=True)]
        return [KeptKeysValues([kv], [bias], heads, [self.num_targets]) for kv, bias in zip(self.layers, biases, strict=True)]


def bucket(count: int, least: int) -> int:
    """Returns the smallest of least, 2 least, 4 least, ... that holds `count`."""
    size = least
    while size < count:
        size *= 2
    return size


def quantiles(work: Callable[[], object], repeats: int) -> _rows.Times:
    """Returns the 50, 95 and 99 % quantile in ms; a call ends when its probabilities are on the host."""
    times = []
    for _ in range(repeats + 5):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    p50, p95, p99 = np.quantile(times[5:], [0.5, 0.95, 0.99]).tolist()
    return p50, p95, p99


def main() -> None:
    chosen = _arguments()
    gpu_serve.CONFIG = ModelConfig(width=chosen.width, num_layers=4, num_heads=chosen.heads, ffn_ratio=2, recency="bias")
    scorer, worst = gpu_serve.make_scorer(chosen.items, torch.device(chosen.device)), 0.0
    captured: dict[tuple[int, int], Captured] = {}
    for num_events, num_targets in ((n, m) for n in chosen.events for m in chosen.targets):
        events = gpu_serve.timeline(num_events, chosen.items, num_events)
        candidates = np.random.default_rng(num_targets).integers(0, chosen.items, num_targets)
        request = RequestRows(events, {"region": 3}, _world.NOW_MS, candidates)
        kept, sizes = scorer.keys_values([events], [_world.NOW_MS])[0], (bucket(num_events, 1024), bucket(num_targets, 64))
        if sizes not in captured:
            captured[sizes] = Captured(scorer, *sizes, kept.layers[0].dtype)
        graph, expected = captured[sizes], scorer.score_kept([request], [kept])[0]
        apart = max(float(np.abs(graph.score(request, kept) - expected).max()) for _ in range(2))  # the second time the buffers are full
        worst = max(worst, apart)
        plain = quantiles(lambda: scorer.score_kept([request], [kept]), chosen.repeats)  # noqa: B023
        fast = quantiles(lambda: graph.score(request, kept), chosen.repeats)  # noqa: B023
        shape = f"L{num_events} m{num_targets} d{chosen.width} h{chosen.heads} M4"
        notes = (f"p50 {fast[0]:.2f} p95 {fast[1]:.2f} p99 {fast[2]:.2f} ms of {chosen.repeats}; eager {plain[0]:.2f} {plain[1]:.2f} "
                 f"{plain[2]:.2f}; bucket {sizes[0]} x {sizes[1]}; largest difference {apart:.1e}")
        row = _rows.row("scorer warm captured p50 p95 p99", shape, str(scorer.precision).removeprefix("torch."), fast, notes=notes)
        print(row["claim"], shape, notes, flush=True)
        _rows.append([row], chosen.out)
    raise SystemExit(0 if worst <= BARS[chosen.device] else f"probabilities differ by {worst:.1e}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[10_000, 1_000, 7_000, 32_000])
    parser.add_argument("--targets", type=int, nargs="+", default=[500, 50, 2_048])
    for name, default in (("width", 256), ("heads", 8), ("items", 1_000_000), ("repeats", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=_rows.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
