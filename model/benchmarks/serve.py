"""Measure the service over HTTP: latency by length, candidates and concurrency, overload, faults.

    longrec bench serve                         everything, about ten minutes on two cores
    longrec bench serve --only alone            10,000 events x 200 candidates: goal, new events,
                                                growth with candidates
    longrec bench serve --only event            CPU time of one new event against a cold history,
                                                in this process
    longrec bench serve --only grid --seconds 1 the table, about a second a cell
    longrec bench serve --only overload --overload-seconds 600
    longrec bench serve --device cuda --only grid --seconds 4 --lengths 10000 --forms json arrow

A real `bentoml serve` of a model with random weights: on a CPU of the quickstart's size, on a GPU
d=256, M=4, h=8. The feature store is real, with histories of 33,000 events. Load comes from another
process than the server's, on the same cores.

The load is open. Bursts of `c` requests are sent at times that do not depend on the answers, far
enough apart to keep the server 60 % busy. A time counts from the moment at which the request should
have been sent. "cold": the server caches nothing. "append": every request has one event more than
the one before. Of 10,000 events in such a history some 3,650 differ, and duplicates are attended to
once; with `--items 100000` 9,500 differ. Times are compared with a service that does nothing,
measured between the others. Redis is the online store if `redis-server` is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from harness import http_load, results
from harness.call_times import quantiles_of
from harness.http_load import Address, Answer
from harness.redis_server import RedisServer
from harness.results import Row
from harness.served_model import MODELS, NUM_USERS, ServedModel
from longrec.scoring.scorer import Scorer
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice

LENGTHS = (1_000, 2_000, 10_000, 32_000)
CANDIDATES = (50, 200, 500, 2_048)
CONCURRENCY = (1, 8, 32)
GROWTH_CANDIDATES = (50, 200, 500, 1_000, 2_048)
PARTS = ("alone", "event", "grid", "overload")
FORMS = ("json", "arrow")
GOAL_ABOVE_EMPTY_MS = 25
DEADLINE_MS = 1_000
OVERLOAD_FACTOR = 2
FAULT_SECONDS = 45
FAULT_FACTOR = 0.5
FAULT_REQUESTS = 16
BYTES_PER_MIB = 2**20
MAX_SCORE_DIFFERENCE = 1e-5
ACCEPTED = (200, 408, 504)
"""Statuses of requests that were not rejected."""
PATIENT = {
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_QUEUE_SECONDS": "1000",
    "LONGREC_CALLER_REQUESTS": "1000",
}
"""A service that rejects nothing."""


def measure(
    address: Address, make_message: Callable[[int], bytes], concurrency: int, seconds: float
) -> http_load.BurstTimes:
    """Measure bursts of requests, after one request of every user."""
    return http_load.measure_bursts(address, make_message, concurrency, seconds, NUM_USERS)


def make_row(claim: str, shape: str, milliseconds: list[float], notes: str) -> Row:
    """Return and print a row of results.csv; its quantiles are 50, 95 and 99 %."""
    notes += f"; load average {os.getloadavg()[0]:.1f}"
    quantiles = quantiles_of(milliseconds)
    measured = results.row(f"{claim} p50 p95 p99", shape, "", quantiles, notes=notes)
    numbers = "".join(f"{value:9.2f}" for value in quantiles)
    print(f"{claim:<22}{shape:<22}{numbers} {notes}", flush=True)
    return measured


def measure_empty(model: ServedModel, concurrency: int, seconds: float) -> list[float]:
    """Return the times in ms of a service that does nothing."""
    make_message = functools.partial(model.message, length=10_000, num_candidates=200)
    with model.served_empty() as address:
        return measure(address, make_message, concurrency, seconds).milliseconds


def grid(model: ServedModel, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the table of sizes, each row compared with a service that does nothing."""
    empty_p50 = {}
    for concurrency in options.concurrency:
        milliseconds = measure_empty(model, concurrency, 2 * options.seconds)
        empty_p50[concurrency] = float(np.median(milliseconds))
        yield make_row(
            "http empty", f"c{concurrency}", milliseconds, f"{len(milliseconds)} requests"
        )
    cells = list(
        itertools.product(options.lengths, options.candidates, options.concurrency, options.forms)
    )
    for mode, megabytes in (("warm", "4096"), ("cold", "0")):
        variables = {**PATIENT, "LONGREC_THREADS": options.threads, "LONGREC_CACHE_MB": megabytes}
        with model.served(**variables) as address:
            for length, num_candidates, concurrency, form in cells:
                make_message = functools.partial(
                    model.message, length=length, num_candidates=num_candidates, form=form
                )
                milliseconds, rate = measure(address, make_message, concurrency, options.seconds)
                p50 = float(np.median(milliseconds))
                empty = empty_p50[concurrency]
                notes = (
                    f"{len(milliseconds)} requests; {rate:.1f} requests/s in a burst; "
                    f"p50 {p50 - empty:.1f} ms above empty, {p50 / empty:.1f} times it"
                )
                claim = f"http {mode}" if form == "json" else f"http {mode} {form}"
                shape = f"L{length} m{num_candidates} c{concurrency}"
                yield make_row(claim, shape, milliseconds, notes)


def alone(model: ServedModel, options: argparse.Namespace) -> Iterator[Row]:
    """Yield 10,000 events x 200 candidates with one caller.

    A warm cache, a new event in every request, and the growth with the candidates.
    """
    seconds = 5 * options.seconds
    empty = measure_empty(model, 1, 2 * options.seconds)
    yield make_row("http empty", "c1", empty, f"{len(empty)} requests")
    variables = {**PATIENT, "LONGREC_THREADS": options.threads, "LONGREC_CACHE_MB": "4096"}
    with model.served(**variables) as address:
        warm = measure(
            address, lambda number: model.message(number % 4, 10_000, 200), 1, seconds
        ).milliseconds
        above_empty = quantiles_of(warm)[2] - quantiles_of(empty)[2]
        notes = (
            f"{len(warm)} requests; p99 {above_empty:.2f} ms above the empty service's "
            f"(goal {GOAL_ABOVE_EMPTY_MS}); {model.num_distinct:,} different events of 10,000"
        )
        yield make_row("http warm alone", "L10000 m200 c1", warm, notes)
        appended = measure(
            address,
            lambda number: model.message(7, 10_000, 200, last=20_000 + number),
            1,
            seconds / 2,
        ).milliseconds
        ratio = np.median(appended) / np.median(warm)
        notes = f"{len(appended)} requests, one new event each; p50 {ratio:.2f} times that without"
        yield make_row("http append", "L10000 m200 c1", appended, notes)
        yield _growth(model, address, seconds / 5)


def _growth(model: ServedModel, address: Address, seconds: float) -> Row:
    """Return the row of the median time against the number of candidates."""
    medians = []
    for count in GROWTH_CANDIDATES:
        make_message = functools.partial(_message_of_few_users, model, count)
        milliseconds = measure(address, make_message, 1, seconds).milliseconds
        medians.append(float(np.median(milliseconds)))
    slope, base = np.polyfit(GROWTH_CANDIDATES, medians, 1)
    fitted = np.polyval((slope, base), GROWTH_CANDIDATES)
    residual = np.abs(fitted - medians).max() / max(medians)
    listed = ", ".join(f"{value:.1f}" for value in medians)
    notes = (
        f"p50 at {GROWTH_CANDIDATES}: {listed} ms; {base:.1f} + {slope * 1e3:.1f} ms per 1,000; "
        f"largest residual {residual:.1%} of the largest"
    )
    return make_row("http candidates", "L10000 c1", medians, notes)


def _message_of_few_users(model: ServedModel, num_candidates: int, number: int) -> bytes:
    return model.message(number % 4, 10_000, num_candidates)


def new_event(model: ServedModel) -> Iterator[Row]:
    """Yield the CPU time of one new event in the cache, and its share of a cold history.

    It is the time above an unchanged history, with one thread, of the cache and its scorer alone.
    """
    torch.set_num_threads(1)
    scorer = Scorer.load(model.folder / "bundle")
    events = model.open_store().fetch(model.users[:1])[0].history
    piece = HistorySlice("user", events, 0, 10_000, 1 << 62)
    cold = [_cpu_ms(HistoryKVCache(scorer, 1 << 30), piece) for _ in range(8)]
    cache = HistoryKVCache(scorer, 1 << 30, events_per_user=10_000)
    cache.get_or_encode([piece])
    moved = []
    unchanged = []
    for _ in range(300):
        piece = dataclasses.replace(piece, start=piece.start + 1, end=piece.end + 1)
        moved.append(_cpu_ms(cache, piece))
        unchanged.append(_cpu_ms(cache, piece))
    unchanged_median = float(np.median(unchanged))
    best = min(moved) - min(unchanged)
    median = float(np.median(moved)) - unchanged_median
    cold_median = float(np.median(cold))
    notes = (
        f"best of 300 {best:.3f} ms, a {min(cold) / best:.0f}th of the best of 8 cold ones, "
        f"{min(cold):.1f} ms (goal a 100th); medians {median:.3f} and {cold_median:.1f} ms, "
        f"a {cold_median / median:.0f}th"
    )
    above = [value - unchanged_median for value in moved]
    yield make_row("new event, CPU time", "L10000", above, notes)


def _cpu_ms(cache: HistoryKVCache, piece: HistorySlice) -> float:
    """Return the CPU time in ms of reading a history through the cache."""
    started = time.thread_time()
    cache.get_or_encode([piece])
    return (time.thread_time() - started) * 1e3


def overload(
    model: ServedModel, options: argparse.Namespace, redis: RedisServer | None
) -> Iterator[Row]:
    """Yield a run at twice the capacity, and one in which the store dies and comes back."""
    variables = {"LONGREC_THREADS": options.threads, "LONGREC_CALLER_REQUESTS": "10000"}
    rng = np.random.default_rng(0)
    with model.served(**variables) as address:
        worker = _largest_child()
        messages = (_overload_message(model, number) for number in itertools.count())
        capacity = _capacity(address, messages)
        rate = OVERLOAD_FACTOR * capacity
        memory: list[int] = []
        answers = http_load.send(
            address,
            messages,
            _poisson_times(rng, rate, options.overload_seconds),
            lambda _: memory.append(worker.memory_info().rss),
        )
        shape = f"L2000 m200, {rate:.0f} requests/s, {options.overload_seconds:.0f} s"
        yield _summary("http overload", shape, answers, _memory_notes(memory))
        if redis is not None:
            rate = FAULT_FACTOR * capacity
            yield _measure_fault(model, address, redis, _poisson_times(rng, rate, FAULT_SECONDS))


def _largest_child() -> psutil.Process:
    """Return the child of this process with the most memory: the worker."""
    children = psutil.Process().children(recursive=True)
    return max(children, key=lambda process: process.memory_info().rss)


def _overload_message(model: ServedModel, number: int) -> bytes:
    return model.message(number, 2_000, 200, timeout_ms=DEADLINE_MS)


def _capacity(address: Address, messages: Iterator[bytes]) -> float:
    """Return the requests/s of the best of five bursts."""
    http_load.send(address, messages, [0.1 * number for number in range(50)])
    rates = []
    for _ in range(5):
        burst = http_load.send(address, messages, [0.0] * 64)
        num_scored = sum(answer.status == 200 for answer in burst)
        rates.append(num_scored / max(answer.seconds for answer in burst))
    return max(rates)


def _poisson_times(rng: np.random.Generator, rate: float, seconds: float) -> list[float]:
    """Return the arrival times of a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate, round(rate * seconds))).tolist()


def _measure_fault(
    model: ServedModel, address: Address, redis: RedisServer, send_seconds: list[float]
) -> Row:
    """Return the row of a run in which Redis is stopped for 15 of 45 seconds."""
    messages = [_overload_message(model, number) for number in range(FAULT_REQUESTS)]
    calm_seconds = [0.2 * number for number in range(FAULT_REQUESTS)]
    calm = http_load.send(address, iter(messages), calm_seconds)
    expected = [json.loads(answer.body)["scores"]["label"] for answer in calm]
    answers = http_load.send(
        address, itertools.cycle(messages), send_seconds, redis.stop_between(10, 25)
    )
    num_degraded = 0
    num_wrong = 0
    for number, answer in enumerate(answers):
        if answer.status != 200:
            continue
        body = json.loads(answer.body)
        num_degraded += body["degraded"]
        difference = np.subtract(body["scores"]["label"], expected[number % FAULT_REQUESTS])
        num_wrong += float(np.abs(difference).max()) > MAX_SCORE_DIFFERENCE
    rate = len(send_seconds) / FAULT_SECONDS
    shape = f"L2000 m200, {rate:.0f} requests/s, {FAULT_SECONDS} s"
    notes = f"; {num_degraded} degraded; {num_wrong} other scores than before"
    return _summary("http store dies", shape, answers, notes)


def _memory_notes(memory: list[int]) -> str:
    """Return the largest memory of the second and of the last quarter, as text."""
    if not memory:
        return ""
    _, second, _, last = (max(part) / BYTES_PER_MIB for part in np.array_split(memory, 4))
    return f"; memory {second:.0f} MiB at most in the second quarter, {last:.0f} in the last"


def _summary(claim: str, shape: str, answers: list[Answer], notes: str) -> Row:
    """Return the row of a run: statuses, and the share of accepted requests in time."""
    statuses = Counter(answer.status for answer in answers)
    accepted = [answer for answer in answers if answer.status in ACCEPTED]
    milliseconds = [answer.seconds * 1e3 for answer in accepted]
    num_in_time = sum(
        answer.status == 200 and answer.seconds * 1e3 <= DEADLINE_MS for answer in accepted
    )
    share = num_in_time / max(1, len(accepted))
    text = (
        f"codes {dict(sorted(statuses.items()))}; "
        f"{share:.4%} of the accepted within {DEADLINE_MS} ms{notes}"
    )
    return make_row(claim, shape, milliseconds or [0.0], text)


def main() -> None:
    """Measure the chosen parts."""
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="longrec-bench-") as name:
        folder = Path(name)
        redis = RedisServer(folder / "redis") if shutil.which("redis-server") else None
        try:
            address = redis.address if redis else ""
            model = ServedModel(folder, address, options.device, options.items)
            for part in options.only:
                for measured in _rows_of(part, model, options, redis):
                    if not options.dry_run:
                        results.append([measured | model.machine], options.out)
        finally:
            if redis:
                redis.stop()


def _rows_of(
    part: str, model: ServedModel, options: argparse.Namespace, redis: RedisServer | None
) -> Iterator[Row]:
    if part == "alone":
        return alone(model, options)
    if part == "event":
        return new_event(model)
    if part == "grid":
        return grid(model, options)
    return overload(model, options, redis)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longrec bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=PARTS, nargs="*", help="default everything; event needs a CPU"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of load in a cell")
    parser.add_argument("--overload-seconds", type=float, default=180.0)
    parser.add_argument("--threads", default="2", help="LONGREC_THREADS of the server")
    parser.add_argument(
        "--device", choices=sorted(MODELS), default="cpu", help="LONGREC_DEVICE of the server"
    )
    for name, default in (
        ("lengths", LENGTHS),
        ("candidates", CANDIDATES),
        ("concurrency", CONCURRENCY),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, help="of the table")
    parser.add_argument(
        "--forms", choices=FORMS, nargs="+", default=["json"], help="of the table's requests"
    )
    parser.add_argument(
        "--items",
        type=int,
        default=4_000,
        help="of the synthetic dataset; with 100000 hardly any event repeats",
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="file that gets the rows")
    parser.add_argument("--dry-run", action="store_true", help="print the rows only")
    options = parser.parse_args()
    if not options.only:
        options.only = [part for part in PARTS if options.device == "cpu" or part != "event"]
    if options.device == "cuda" and "event" in options.only:
        parser.error("--only event times the cache of this process, on a CPU")
    return options


if __name__ == "__main__":
    main()
