"""Rank one request on a GPU: cold, warm, with one new event, eager and with CUDA graphs.

    python model/benchmarks/gpu_serve.py                all rows
    python model/benchmarks/gpu_serve.py --cases 2      the first two shapes, which have goals
    python model/benchmarks/gpu_serve.py --out rows.csv rows go there, not to results.csv
    python model/benchmarks/gpu_serve.py --device cpu --events 70 --targets 5 --width 32 \\
        --heads 2 --items 500 --repeats 3

The parts of the engine are used: cache and scorer. A time runs from the history's Arrow columns to
NumPy probabilities, by the host's clock, without HTTP and feature store. d=256, h=8, M=4, r=2,
recency bias, bfloat16 products, a million items.

"cold": no event of the user is cached; "warm": all are; "append": all but one; "eager": without
CUDA graphs (longrec.scoring.cuda_graphs). Shapes with goals are called ten times as often, also
eagerly. "together": several warm requests in one call, replayed one after another or as an eager
batch.

Before the times, scores are compared: cold with the forward pass in float32, warm and appended with
cold, warm with eager. Scores made while another scorer captures its graphs (a promotion) are
compared with those before. The exit status is 1 when a goal is missed or a shape failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from harness import results, timing
from harness.call_times import CallTimes, quantiles_of
from harness.ranking_case import RankingCase, largest_differences, make_scorer
from longrec.config import ModelConfig
from longrec.scoring.cuda_graphs import MIN_EVENT_BUCKET, MIN_TARGET_BUCKET, bucket_size
from longrec.scoring.scorer import Scorer

CONFIG = ModelConfig(width=256, num_layers=4, num_heads=8, ffn_ratio=2, recency="bias")
EVENTS = [10_000, 1_000, 2_000, 32_000]
TARGETS = [500, 2_048, 50]
GOALS_P99_MS = {
    ("cold", 10_000, 500): 5.0,
    ("warm", 10_000, 500): 2.0,
    ("cold", 10_000, 2_048): 10.0,
    ("warm", 10_000, 2_048): 10.0,
}
MAX_DIFFERENCE = {"cuda": 5e-3, "cpu": 1e-5}
"""Largest difference of a probability, except to float32.

It is rounding within bfloat16, and another order of sums in float32.
"""
MAX_FEW_CALLS = 200
NUM_STAGE_CALLS = 50
BYTES_PER_GIB = 2**30
Work = Callable[[int], object]


def has_goals(case: RankingCase) -> bool:
    """Return whether the shape of a case has goals."""
    return ("cold", case.num_events, case.num_targets) in GOALS_P99_MS


def timed_works(case: RankingCase) -> dict[str, Work]:
    """Return the calls that are timed, by name."""
    cache = case.warm_cache()
    return {
        "cold": lambda _: case.rank_cold(),
        "warm": lambda _: case.rank(cache),
        "append": lambda number: case.rank(cache, 1 + number),
    }


def measure(case: RankingCase, repeats: int) -> Iterator[tuple[str, CallTimes]]:
    """Yield the name and the times of each kind of call."""
    few = max(1, repeats // 10)
    for name, work in timed_works(case).items():
        is_measured_fully = has_goals(case) and name != "append"
        count = repeats if is_measured_fully else min(few, MAX_FEW_CALLS)
        yield name, CallTimes.measure(work, count)
    if has_goals(case):
        for name, work in timed_works(case.eager).items():
            yield f"eager {name}", CallTimes.measure(work, few)


def stage_times(case: RankingCase) -> str:
    """Return the median times of the parts of a request in ms, as text.

    The time of a CUDA graph is that of the device.
    """
    scorer = case.scorer
    cache = case.warm_cache()
    graphs = scorer.cuda_graphs
    assert graphs is not None
    events = case.rows.history.slice(0, case.num_events)
    times_ms = [case.rows.request_time_ms]
    history = case.slice_from(0)
    cached = cache.get_or_encode([history])[0]
    candidates = scorer._encode_query(case.rows)
    parts: dict[str, Work] = {
        "encode rows": lambda _: scorer.bundle.encoder.events(events),
        "look up": lambda _: cache.get_or_encode([history]),
        "pack": lambda _: scorer._encode_query(case.rows),
        "keys_values": lambda _: scorer.keys_values([events], times_ms),
        "copy cached, replay, copy back": lambda _: graphs.score_cached(
            cached.layers, cached.timestamps, candidates
        ),
    }
    texts = []
    for name, part in parts.items():
        median, _, _ = CallTimes.measure(part, NUM_STAGE_CALLS).quantiles
        texts.append(f"{name} {median:.3f}")
    event_bucket = bucket_size(case.num_events, MIN_EVENT_BUCKET)
    target_bucket = bucket_size(case.num_targets, MIN_TARGET_BUCKET)
    for name, key in (
        ("graph of encode", ("_encode_bucket", event_bucket)),
        ("graph of score", ("_score_bucket", event_bucket, target_bucket)),
    ):
        graph = graphs._graphs.get(key)
        if graph is not None:
            _, median, _ = timing.timed(graph.replay, scorer.device, repeats=NUM_STAGE_CALLS)
            texts.append(f"{name} {median:.3f}")
    return ", ".join(texts)


def measure_case(case: RankingCase, repeats: int, misses: list[str]) -> list[results.Row]:
    """Return the rows of a case; add what misses its goal to `misses`."""
    device = case.scorer.device.type
    differences = largest_differences(case)
    for name, value in differences.items():
        if name != "cold to float32" and value > MAX_DIFFERENCE[device]:
            misses.append(f"{case.shape}: {name} {value:.1e}")
    difference_text = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(case.shape, "differences:", difference_text, flush=True)
    if has_goals(case):
        print("ms:", stage_times(case), flush=True)
    rows = []
    for name, times in measure(case, repeats):
        p50, p95, p99 = times.quantiles
        summary = (
            f"p50 {p50:.2f} p95 {p95:.2f} p99 {p99:.2f} most {max(times.wall_ms):.2f} ms "
            f"of {len(times.calls)}; {times.num_collections} collections"
        )
        row = results.row(
            f"scorer {name} p50 p95 p99",
            case.shape,
            case.dtype,
            times.quantiles,
            notes=f"{summary}; largest differences {difference_text}",
        )
        rows.append(row)
        print(row["claim"], case.shape, summary, flush=True)
        if has_goals(case):
            print("slowest", times.slowest, flush=True)
        goal = GOALS_P99_MS.get((name, case.num_events, case.num_targets), math.inf)
        if device == "cuda" and p99 > goal:
            misses.append(f"{case.shape}: {name} p99 {p99:.2f} ms, not {goal:g}")
    return rows


def measure_together(case: RankingCase, repeats: int) -> Iterator[results.Row]:
    """Yield the rows of several warm requests in one call."""
    events = case.rows.history.slice(0, case.num_events)
    cached = case.scorer.keys_values([events], [case.rows.request_time_ms])
    for count in (2, 4, 8):
        replaying = dataclasses.replace(case.scorer, max_cuda_graph_requests=count)
        for name, scorer in (("replayed", replaying), ("eager", case.eager.scorer)):
            work = _score_together(scorer, [case.rows] * count, cached * count)
            times = CallTimes.measure(work, repeats)
            claim = f"scorer {count} warm together {name} p50 p95 p99"
            row = results.row(claim, case.shape, case.dtype, times.quantiles)
            p50, p95, p99 = times.quantiles
            print(claim, case.shape, f"{p50:.2f} {p95:.2f} {p99:.2f}", flush=True)
            yield row


def _score_together(scorer: Scorer, rows: list, cached: list) -> Work:
    return lambda _: scorer.score_cached(rows, cached)


def measure_promotion(case: RankingCase, misses: list[str]) -> None:
    """Score in one thread while another scorer of the same bundle captures all its graphs.

    Scores that move are added to `misses`.
    """
    cache = case.warm_cache()
    expected = case.rank(cache)
    stop = threading.Event()
    calls: list[tuple[float, float]] = []

    def score_until_stopped() -> None:
        while not stop.is_set() or not calls:
            started = time.perf_counter()
            scores = case.rank(cache) if len(calls) % 2 else case.rank_cold()
            wall_ms = (time.perf_counter() - started) * 1e3
            calls.append((wall_ms, float(np.abs(scores - expected).max())))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(score_until_stopped)
        challenger = dataclasses.replace(case.scorer)
        started = time.perf_counter()
        challenger.warm_up()
        seconds = time.perf_counter() - started
        stop.set()
        scoring.result()
    challenger_scores = dataclasses.replace(case, scorer=challenger).rank(cache)
    differences = [difference for _, difference in calls]
    difference = max(float(np.abs(challenger_scores - expected).max()), *differences)
    wall_ms = [milliseconds for milliseconds, _ in calls]
    p50, _, p99 = quantiles_of(wall_ms)
    print(
        f"another scorer captures for {seconds:.1f} s: {len(calls)} requests meanwhile, "
        f"p50 {p50:.2f} p99 {p99:.2f} slowest {max(wall_ms):.2f} ms, "
        f"largest difference {difference:.1e}",
        flush=True,
    )
    if difference > MAX_DIFFERENCE[case.scorer.device.type]:
        misses.append(f"scores move by {difference:.1e} while another scorer captures")


def main() -> None:
    """Measure every shape; one that fails does not hide the others."""
    options = _arguments()
    device = torch.device(options.device)
    config = dataclasses.replace(CONFIG, width=options.width, num_heads=options.heads)
    scorer = make_scorer(config, options.items, max(options.events), device)
    started = time.perf_counter()
    scorer.warm_up()
    if device.type == "cuda" and scorer.cuda_graphs is not None:
        seconds = time.perf_counter() - started
        reserved_gib = torch.cuda.memory_reserved() / BYTES_PER_GIB
        num_graphs = scorer.cuda_graphs.num_graphs
        print(
            f"{num_graphs} graphs in {seconds:.1f} s, {reserved_gib:.2f} GiB reserved", flush=True
        )
    misses: list[str] = []
    shapes = [(events, targets) for events in options.events for targets in options.targets]
    for number, shape in enumerate(shapes[: options.cases]):
        try:
            case = RankingCase.random(scorer, *shape)
            results.append(measure_case(case, options.repeats, misses), options.out)
            if number == 0:
                measure_promotion(case, misses)
                few = max(1, options.repeats // 20)
                results.append(list(measure_together(case, few)), options.out)
        except Exception:
            traceback.print_exc()
            misses.append(f"L{shape[0]} m{shape[1]} failed")
    raise SystemExit("; ".join(misses) if misses else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    parser.add_argument("--events", type=int, nargs="+", default=EVENTS)
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    for name, default in (
        ("repeats", 1_000),
        ("items", 1_000_000),
        ("width", CONFIG.width),
        ("heads", CONFIG.num_heads),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--cases", type=int, default=None, help="only the first shapes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
