"""Ranking one request on a GPU through the engine's own parts: cache and Scorer, rows in,
probabilities out, times of the host's clock.

    python model/benchmarks/gpu_serve.py                all rows; --cases 2 the first two shapes,
    which have bars
    python model/benchmarks/gpu_serve.py --out rows.csv rows there instead of results.csv
    python model/benchmarks/gpu_serve.py --device cpu --events 70 --targets 5 --width 32 --heads 2
    --items 500 --repeats 3

d=256, h=8, M=4, r=2, recency bias, bfloat16 products, a million items. "cold": no event of the user
is kept; "warm": all are; "append":
all but one; "eager": without captured graphs (longrec.scoring.cuda_graphs). Shapes with bars are
called ten times as often, also eagerly. "together":
several warm requests in one call, replayed one after another against an eager batch. Everything
from the history's Arrow columns to
NumPy probabilities is in the time, but no HTTP and no feature store. Before the times, scores are
compared: cold with the forward pass in
float32, warm and appended with cold, warm with eager; and scores that are made while another scorer
captures its graphs (a promotion)
with those before. Exit status 1 where a bar is missed or a shape failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import gc
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).parent))
import _rows
import _world

from longrec.config import ModelConfig
from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.nn.ranker import Ranker
from longrec.schema import synthetic_schema
from longrec.scoring.bundle import Bundle
from longrec.scoring.cuda_graphs import MIN_EVENT_BUCKET, MIN_TARGET_BUCKET, bucket_size
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import MAX_CUDA_GRAPH_REQUESTS, Scorer
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice

CONFIG = ModelConfig(
    width=256,
    num_layers=4,
    num_heads=8,
    ffn_ratio=2,
    recency="bias",
)
EVENTS, TARGETS = [10_000, 1_000, 2_000, 32_000], [500, 2_048, 50]
BARS = {
    ("cold", 10_000, 500): 5.0,
    ("warm", 10_000, 500): 2.0,
    ("cold", 10_000, 2_048): 10.0,
    ("warm", 10_000, 2_048): 10.0,
}
"""Of p99, ms."""
APART = {"cuda": 5e-3, "cpu": 1e-5}
"""Largest difference of a probability, of what is compared but for float32: roundings within
bfloat16, in float32 another order of sums.
"""
SCHEMA = synthetic_schema()
Times = tuple[float, float, float]


def make_scorer(
    config: ModelConfig, num_items: int, served_length: int, device: torch.device
) -> Scorer:
    """Returns a scorer with random weights, which uses fixed buffers on a CPU too."""
    items = pa.table({"item_id": np.arange(num_items), "topic": np.arange(num_items) % 64})
    encoder = Encoder.fit(
        SCHEMA,
        items,
        pa.table({"region": np.arange(8)}),
        [timeline(4_096, num_items, 1)],
        [np.arange(num_items)] * 5,
    )
    torch.manual_seed(0)
    ranker = (
        Ranker(config, SCHEMA, encoder.sizes, torch.from_numpy(encoder.item_table))
        .to(device)
        .eval()
    )
    for layer in ranker.stca.layers:
        torch.nn.init.normal_(layer.gap_bias, std=0.3)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Scorer(
        Bundle(ranker, encoder, config, served_length, {}, "random"),
        device,
        precision=precision,
        max_cuda_graph_requests=MAX_CUDA_GRAPH_REQUESTS,
    )


def timeline(num_events: int, num_items: int, seed: int) -> pa.RecordBatch:
    """Returns a history as the feature store gives it."""
    rng = np.random.default_rng(seed)
    times = np.sort(_world.NOW_MS - rng.integers(1, _world.SPAN_MS, num_events))
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
class Case:
    """One history and its candidates."""

    scorer: Scorer
    rows: RequestRows
    num_events: int

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        num_events: int,
        num_targets: int,
    ) -> Case:
        num_items = scorer.bundle.encoder.num_items
        candidates = np.random.default_rng(3).integers(0, num_items, num_targets)
        return cls(
            scorer,
            RequestRows(
                timeline(num_events + 256, num_items, 2), {"region": 3}, _world.NOW_MS, candidates
            ),
            num_events,
        )

    def rank(self, cache: HistoryKVCache, first: int = 0) -> np.ndarray:
        """Returns the scores over the events from row `first` on."""
        wanted = HistorySlice(
            "user", self.rows.history, first, first + self.num_events, self.rows.request_time_ms
        )
        return self.scorer.score_cached([self.rows], cache.get_or_encode([wanted]))[0]

    @property
    def eager(self) -> Case:
        """The same without captured graphs."""
        return dataclasses.replace(
            self, scorer=dataclasses.replace(self.scorer, max_cuda_graph_requests=0)
        )

    @property
    def has_bars(self) -> bool:
        return ("cold", self.num_events, len(self.rows.candidates)) in BARS

    @property
    def shape(self) -> str:
        config = self.scorer.bundle.config
        return f"L{self.num_events} m{len(self.rows.candidates)} d{config.width} h{config.num_heads} M{config.num_layers}"


@dataclasses.dataclass(frozen=True)
class Timed:
    """What repeated calls took.

    Args:
        ms: of each call, by the clock.
        host: of each call, on the calling thread: ms of CPU time, involuntary switches, page
            faults; and Python's collections in it.
    """

    ms: list[float]
    host: list[tuple[float, int, int, int]]

    @classmethod
    def of(cls, work: Callable[[int], object], repeats: int) -> Timed:
        """Returns the times of `repeats` calls after five; a call ends when its probabilities are
        on the host.
        """
        collections, timed = list[str](), cls([], [])
        gc.callbacks.append(
            note := lambda phase, info: collections.append(phase) if phase == "stop" else None
        )
        for number in range(repeats + 5):
            before, collected, cpu = (
                resource.getrusage(resource.RUSAGE_THREAD),
                len(collections),
                time.thread_time(),
            )
            started = time.perf_counter()
            work(number)
            timed.ms.append((time.perf_counter() - started) * 1e3)
            cpu_ms, after = (
                (time.thread_time() - cpu) * 1e3,
                resource.getrusage(resource.RUSAGE_THREAD),
            )
            switches, faults = (
                after.ru_nivcsw - before.ru_nivcsw,
                after.ru_minflt - before.ru_minflt,
            )
            timed.host.append((cpu_ms, switches, faults, len(collections) - collected))
        gc.callbacks.remove(note)
        return cls(timed.ms[5:], timed.host[5:])

    @property
    def quantiles(self) -> Times:
        """The 50, 95 and 99 % quantile, ms."""
        p50, p95, p99 = np.quantile(self.ms, [0.5, 0.95, 0.99]).tolist()
        return p50, p95, p99

    @property
    def slowest(self) -> str:
        """The longest calls, and a usual one, with what the host did in them."""
        order = np.argsort(self.ms)
        calls = [(self.ms[i], *self.host[i]) for i in [*order[:-4:-1], order[len(order) // 2]]]
        return ", ".join(
            f"{ms:.2f} ms (cpu {cpu:.1f}, {switches} switches, {faults} faults, {collections} collections)"
            for ms, cpu, switches, faults, collections in calls
        )


def errors(case: Case) -> dict[str, float]:
    """Returns the largest differences of a probability."""
    exact = dataclasses.replace(case.scorer, precision=torch.float32, max_cuda_graph_requests=0)
    whole = dataclasses.replace(case.rows, history=case.rows.history.slice(1, case.num_events))
    cache = HistoryKVCache(case.scorer, 1 << 34, events_per_user=case.num_events)
    case.rank(cache)
    appended, warm, eager = case.rank(cache, 1), case.rank(cache, 1), case.eager.rank(cache, 1)
    cold = case.rank(HistoryKVCache(case.scorer, 1 << 34), 1)
    expected, alone = (
        exact.score([whole], case.num_events)[0],
        case.scorer.score([whole], case.num_events)[0],
    )
    pairs = {
        "cold to float32": (cold, expected),
        "warm to cold": (warm, cold),
        "appended to cold": (appended, cold),
        "warm to eager": (warm, eager),
        "score to cold": (alone, cold),
    }
    return {name: float(np.abs(a - b).max()) for name, (a, b) in pairs.items()}


def works_of(case: Case, kind: str) -> dict[str, Callable[[int], object]]:
    """Returns what is timed, by name; `kind` goes before the names."""
    cache = HistoryKVCache(case.scorer, 1 << 34, events_per_user=case.num_events)
    case.rank(cache)
    return {
        f"{kind}cold": lambda _: case.rank(HistoryKVCache(case.scorer, 1 << 34)),
        f"{kind}warm": lambda _: case.rank(cache),
        f"{kind}append": lambda number: case.rank(cache, 1 + number),
    }


def measured(case: Case, repeats: int) -> Iterator[tuple[str, Timed]]:
    """Yields what was timed, and its times."""
    few = max(1, repeats // 10)
    for name, work in works_of(case, "").items():
        yield name, Timed.of(work, repeats if case.has_bars and name != "append" else min(few, 200))
    for name, work in works_of(case.eager, "eager ").items() if case.has_bars else ():
        yield name, Timed.of(work, few)


def stages(case: Case) -> str:
    """Returns how long the parts of a request take, medians in ms; of a graph its time on the
    device.
    """
    scorer, cache = (
        case.scorer,
        HistoryKVCache(case.scorer, 1 << 34, events_per_user=case.num_events),
    )
    case.rank(cache)
    history = case.rows.history.slice(0, case.num_events)
    wanted = [
        HistorySlice("user", case.rows.history, 0, case.num_events, case.rows.request_time_ms)
    ]
    kept, asked, cuda_graphs = (
        cache.get_or_encode(wanted),
        scorer._encode_candidates(case.rows),
        scorer.cuda_graphs,
    )
    assert cuda_graphs is not None
    parts = {
        "encode rows": lambda _: scorer.bundle.encoder.events(history),
        "look up": lambda _: cache.get_or_encode(wanted),
        "pack": lambda _: scorer._encode_candidates(case.rows),
        "keys_values": lambda _: scorer.keys_values([history], [case.rows.request_time_ms]),
        "copy kept, replay, copy back": lambda _: cuda_graphs.score_cached(
            kept[0].layers, kept[0].timestamps, asked
        ),
    }
    found = [f"{name} {Timed.of(part, 50).quantiles[0]:.3f}" for name, part in parts.items()]
    sizes = (
        bucket_size(case.num_events, MIN_EVENT_BUCKET),
        bucket_size(len(case.rows.candidates), MIN_TARGET_BUCKET),
    )
    for name, key in (
        ("graph of encode", ("_encode_all", sizes[0])),
        ("graph of score", ("_score_all", *sizes)),
    ):
        if graph := cuda_graphs._graphs.get(key):
            found.append(f"{name} {_rows.timed(graph.replay, scorer.device, repeats=50)[1]:.3f}")
    return ", ".join(found)


def rows_of(case: Case, repeats: int, missed: list[str]) -> list[dict[str, str]]:
    """Returns the rows of a case; adds to `missed` what misses its bar."""
    apart, found = errors(case), list[dict[str, str]]()
    bar, num_targets = APART[case.scorer.device.type], len(case.rows.candidates)
    missed += [
        f"{case.shape}: {name} {value:.1e}"
        for name, value in apart.items()
        if name != "cold to float32" and value > bar
    ]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
    print(
        case.shape,
        "differences:",
        differences,
        *(["ms:", stages(case)] if case.has_bars else []),
        flush=True,
    )
    for name, timed in measured(case, repeats):
        times = timed.quantiles
        notes = (
            f"p50 {times[0]:.2f} p95 {times[1]:.2f} p99 {times[2]:.2f} most {max(timed.ms):.2f} ms of {len(timed.ms)}; "
            f"{sum(collected for *_, collected in timed.host)} collections; largest differences {differences}"
        )
        row = _rows.row(
            f"scorer {name} p50 p95 p99",
            case.shape,
            str(case.scorer.precision).removeprefix("torch."),
            times,
            notes=notes,
        )
        print(
            row["claim"],
            case.shape,
            notes.partition("; largest")[0],
            *(["slowest", timed.slowest] if case.has_bars else []),
            flush=True,
        )
        found.append(row)
        limit = (
            BARS.get((name, case.num_events, num_targets), float("inf"))
            if case.scorer.device.type == "cuda"
            else float("inf")
        )
        missed += (
            [f"{case.shape}: {name} p99 {times[2]:.2f} ms, not {limit:g}"]
            if times[2] > limit
            else []
        )
    return found


def together(case: Case, repeats: int) -> Iterator[dict[str, str]]:
    """Yields the rows of several requests in one call."""
    kept = case.scorer.keys_values(
        [case.rows.history.slice(0, case.num_events)], [case.rows.request_time_ms]
    )
    for count in (2, 4, 8):
        for name, scorer in (
            ("replayed", dataclasses.replace(case.scorer, max_cuda_graph_requests=count)),
            ("eager", case.eager.scorer),
        ):
            times = Timed.of(
                lambda _: scorer.score_cached([case.rows] * count, kept * count), repeats
            ).quantiles
            row = _rows.row(
                f"scorer {count} warm together {name} p50 p95 p99",
                case.shape,
                str(case.scorer.precision).removeprefix("torch."),
                times,
            )
            print(row["claim"], case.shape, *(f"{value:.2f}" for value in times), flush=True)
            yield row


def promotion(case: Case, missed: list[str]) -> None:
    """Scores in one thread while another scorer of the same bundle captures all its graphs; adds to
    `missed` where scores move.
    """
    cache, stop, found = (
        HistoryKVCache(case.scorer, 1 << 34, events_per_user=case.num_events),
        threading.Event(),
        list[tuple[float, float]](),
    )
    expected = case.rank(cache)

    def work() -> None:
        while not stop.is_set() or not found:
            started = time.perf_counter()
            scores = case.rank(cache if len(found) % 2 else HistoryKVCache(case.scorer, 1 << 34))
            found.append(
                ((time.perf_counter() - started) * 1e3, float(np.abs(scores - expected).max()))
            )

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        at_work, other, started = (
            pool.submit(work),
            dataclasses.replace(case.scorer),
            time.perf_counter(),
        )
        other.warm_up()
        seconds = time.perf_counter() - started
        stop.set()
        at_work.result()
    of_other = float(np.abs(dataclasses.replace(case, scorer=other).rank(cache) - expected).max())
    apart = max(of_other, *(difference for _, difference in found))
    p50, p99 = np.quantile([ms for ms, _ in found], [0.5, 0.99]).tolist()
    print(
        f"another scorer captures for {seconds:.1f} s: {len(found)} requests meanwhile, p50 {p50:.2f} p99 {p99:.2f} "
        f"slowest {max(ms for ms, _ in found):.2f} ms, largest difference {apart:.1e}",
        flush=True,
    )
    missed += (
        [f"scores move by {apart:.1e} while another scorer captures"]
        if apart > APART[case.scorer.device.type]
        else []
    )


def main() -> None:
    chosen = _arguments()
    device, config = (
        torch.device(chosen.device),
        dataclasses.replace(CONFIG, width=chosen.width, num_heads=chosen.heads),
    )
    scorer, started = (
        make_scorer(config, chosen.items, max(chosen.events), device),
        time.perf_counter(),
    )
    scorer.warm_up()
    if device.type == "cuda" and scorer.cuda_graphs is not None:
        print(
            f"{scorer.cuda_graphs.num_graphs} graphs in {time.perf_counter() - started:.1f} s, "
            f"{torch.cuda.memory_reserved() / 2**30:.2f} GiB reserved",
            flush=True,
        )
    missed: list[str] = []
    shapes = [(n, m) for n in chosen.events for m in chosen.targets]
    for number, shape in enumerate(shapes[: chosen.cases]):
        try:
            case = Case.of(scorer, *shape)
            _rows.append(rows_of(case, chosen.repeats, missed), chosen.out)
            if not number:
                promotion(case, missed)
                _rows.append(list(together(case, max(1, chosen.repeats // 20))), chosen.out)
        except Exception:  # the other shapes are worth their minutes
            traceback.print_exc()
            missed.append(f"L{shape[0]} m{shape[1]} failed")
    raise SystemExit("; ".join(missed) if missed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=_rows.RESULTS)
    parser.add_argument(
        "--events",
        type=int,
        nargs="+",
        default=EVENTS,
    )
    parser.add_argument(
        "--targets",
        type=int,
        nargs="+",
        default=TARGETS,
    )
    for name, default in (
        ("repeats", 1_000),
        ("items", 1_000_000),
        ("width", CONFIG.width),
        ("heads", CONFIG.num_heads),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--cases",
        type=int,
        default=None,
        help="the first so many shapes",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
