"""The service over HTTP: latency by history length, candidates and concurrency, cold and warm;
overload; a store that dies under load.

    longrec bench serve                         everything, about ten minutes on two cores
    longrec bench serve --only alone            10,000 events x 200 candidates alone: its bound, new
    events, growth with candidates
    longrec bench serve --only event            one new event against a cold history, CPU time of
    the cache in this process
    longrec bench serve --only grid --seconds 1 the table alone, about a second a cell
    longrec bench serve --only overload --overload-seconds 600
    longrec bench serve --device cuda --only grid --seconds 4 --lengths 10000 --forms json arrow
    a worker that scores on a GPU

A real `bentoml serve` of a model with random weights, on a CPU of the quickstart's size, on a GPU
of d=256, M=4, h=8; a real feature
store with histories of 33,000 events; load from another process than the server's, on the same
cores. The load is open: bursts of `c`
requests are sent at moments that do not depend on the answers, far enough apart to keep the server
60 % busy; a time counts from the
moment at which the request should have been sent. "cold": the server keeps nothing. "append": every
request has one event more than the
one before. Of 10,000 events in such a history some 3,650 differ, and equal ones are attended to
once; with `--items 100000` 9,500 differ.
Times are also given as differences to and multiples of a service that does nothing, measured
between the others. Redis is used where
`redis-server` is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import _rows
import numpy as np
import psutil
import torch

from longrec.config import DataConfig, ModelConfig
from longrec.data import features, history
from longrec.data.dataset import Dataset
from longrec.data.encoder import Encoder
from longrec.data.importers.synthetic import synthesize
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.nn.ranker import Ranker
from longrec.release.bento_server import serve_bento
from longrec.runs.project import find_root
from longrec.scoring.bundle import Bundle
from longrec.scoring.scorer import Scorer
from longrec.serving.arrow_codec import write_request
from longrec.serving.kv_cache import HistoryKVCache, HistorySlice

LENGTHS, CANDIDATES, CONCURRENCY = (1_000, 2_000, 10_000, 32_000), (50, 200, 500, 2_048), (1, 8, 32)
NUM_USERS, NUM_EVENTS = 8, 33_000
MODELS = {
    "cpu": ModelConfig(
        width=64,
        num_layers=2,
        num_heads=2,
    ),
    "cuda": ModelConfig(
        width=256,
        num_layers=4,
        num_heads=8,
    ),
}
BUSY = 0.6
PARTS = ["alone", "event", "grid", "overload"]
PATIENT = {
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_QUEUE_SECONDS": "1000",
    "LONGREC_CALLER_REQUESTS": "1000",
}
EMPTY = """import bentoml
@bentoml.service(name="empty")
class Empty:
    @bentoml.api
    async def rank(self, user_id: int, candidates: list[int], request_time: int = 0, length: int = 0) -> dict:
        return {}
"""
FORMS = {
    "json": ("/rank", "application/json"),
    "arrow": ("/rank_arrow", "application/vnd.apache.arrow.stream"),
}
Answer = tuple[int, float, bytes]
"""Status, seconds since it should have been sent, body."""


class Home:
    """A published feature store and a model for a device, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        redis: str,
        device: str,
        num_items: int,
    ) -> None:
        self.path, self.device, root = folder, device, find_root()
        os.environ |= {"LONGREC_FEATURE_OVERLAY": "redis", "LONGREC_REDIS": redis} if redis else {}
        synthesize(
            folder / "dataset",
            num_users=NUM_USERS,
            events_per_user=NUM_EVENTS,
            num_items=num_items,
            seed=0,
        )
        features.build_features(
            folder / "dataset", folder / "features", DataConfig(max_history=NUM_EVENTS)
        )
        publish(folder / "features", folder / "home", root / "feature_repo")
        dataset = Dataset.open(folder / "dataset")
        known = OnlineStore(folder / "home", root / "feature_repo").fetch(range(4 * NUM_USERS))
        users = sorted(known, key=lambda rows: -rows.history.num_rows)
        self.users = [rows.user_id for rows in users[:NUM_USERS]]
        self.times = [history.timestamps(rows.history) for rows in users[:NUM_USERS]]
        self.items = dataset.items().column("item_id").to_pylist()
        last = users[0].history.slice(max(0, users[0].history.num_rows - 10_000))
        self.num_distinct = len(
            set(
                zip(*(last.column(name).to_pylist() for name in ("item_id", "action")), strict=True)
            )
        )
        encoder = Encoder.fit(
            dataset.schema, dataset.items(), dataset.users(), [rows.history for rows in users]
        )
        torch.manual_seed(0)
        model = MODELS[device]
        Bundle(
            Ranker(model, dataset.schema, encoder.sizes, torch.from_numpy(encoder.item_table)),
            encoder,
            model,
            10_000,
            {},
        ).save(folder / "bundle")
        script = (
            "import bentoml, shutil, sys\nwith bentoml.models.create('longrec-ranker:bench') as model:\n"
            "    shutil.copytree(sys.argv[1], model.path_of('bundle'))\n"
        )
        environment = {
            **os.environ,
            "BENTOML_HOME": str(folder / "store"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        subprocess.run(
            [sys.executable, "-c", script, str(folder / "bundle")], env=environment, check=True
        )
        (folder / "empty.py").write_text(EMPTY, encoding="utf-8")

    @contextlib.contextmanager
    def served(self, **environment: str) -> Iterator[tuple[str, int]]:
        """Yields the address of the service, with these variables."""
        before = dict(os.environ)
        os.environ.update(environment | {"LONGREC_DEVICE": self.device})
        try:
            with serve_bento(
                "bento.service:Ranker",
                workdir=self.path / "home",
                store=self.path / "store",
                folder=find_root(),
            ) as address:
                yield address
        finally:
            os.environ.clear()
            os.environ.update(before)

    @property
    def where(self) -> dict[str, str]:
        """What rows of results.csv say of the machine and the products."""
        processor = f"{_rows.cpu_name()}, {os.cpu_count()} cores"
        if self.device == "cpu":
            return {"device": processor, "dtype": "float32"}
        return {"device": f"{torch.cuda.get_device_name()}, {processor}", "dtype": "bfloat16"}

    def message(
        self,
        number: int,
        length: int,
        candidates: int,
        *,
        last: int = NUM_EVENTS,
        timeout_ms: int | None = None,
        form: str = "json",
    ) -> bytes:
        """Returns a request, as it is sent, for the history before event `last` of a user."""
        times = self.times[number % len(self.users)]
        chosen = np.random.default_rng(number).integers(0, len(self.items), candidates)
        items = [self.items[row] for row in chosen.tolist()]
        asked = {
            "user_id": self.users[number % len(self.users)],
            "request_time": int(times[min(last, len(times) - 1)]),
            "length": length,
        }
        asked |= {} if timeout_ms is None else {"timeout_ms": timeout_ms}
        path, kind = FORMS[form]
        body = (
            json.dumps({**asked, "candidates": items}).encode()
            if form == "json"
            else write_request(items, asked)
        )
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


async def post(
    connections: asyncio.Queue, address: tuple[str, int], message: bytes, due: float
) -> Answer:
    """Returns the answer to a request on one of the open connections, or on a new one; status 0
    where there was none.
    """
    reader, writer = (
        await connections.get()
        if not connections.empty()
        else await asyncio.open_connection(*address)
    )
    try:
        writer.write(message)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        size = next(int(line[15:]) for line in lines if line.startswith("content-length:"))
        answer = await reader.readexactly(size)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
        return 0, time.perf_counter() - due, b""
    connections.put_nowait((reader, writer))
    return int(lines[0].split()[1]), time.perf_counter() - due, answer


async def send(
    address: tuple[str, int],
    messages: Iterator[bytes],
    request_times: list[float],
    meanwhile: Callable[[float], None] | None = None,
) -> list[Answer]:
    """Returns the answers to requests sent at moments (seconds from now), whatever the answers
    do.
    """
    connections: asyncio.Queue = asyncio.Queue()
    started, tasks = time.perf_counter() + 0.05, []
    for request_time, burst in itertools.groupby(request_times):
        written = [
            next(messages) for _ in burst
        ]  # before they are due: what it takes is not the server's
        while (rest := started + request_time - time.perf_counter()) > 0:
            await asyncio.sleep(rest)
        tasks += [
            asyncio.create_task(post(connections, address, message, started + request_time))
            for message in written
        ]
        if meanwhile is not None:
            meanwhile(request_time)
    answers = list(await asyncio.gather(*tasks))
    while not connections.empty():
        connections.get_nowait()[1].close()
    return answers


def trial(
    address: tuple[str, int], messages: Callable[[int], bytes], concurrency: int, seconds: float
) -> tuple[list[float], float]:
    """Returns (times in ms, requests/s while busy) of bursts, after a request of every user to
    learn how far apart they must be.
    """
    numbers = iter(range(10**9))
    stream = (messages(number) for number in numbers)
    first = [
        asyncio.run(send(address, stream, [0.0]))[0] for _ in range(NUM_USERS)
    ]  # of every user, so that what can be kept is kept
    each = min(answer[1] for answer in first)
    bursts = max(1, min(400, round(seconds * BUSY / (each * concurrency))))
    gap = each * concurrency / BUSY
    answers = asyncio.run(
        send(address, stream, [burst * gap for burst in range(bursts) for _ in range(concurrency)])
    )
    wrong = Counter(answer[0] for answer in answers if answer[0] != 200)
    if wrong:
        raise SystemExit(f"answers other than 200 under a load that is not too much: {dict(wrong)}")
    return [answer[1] * 1e3 for answer in answers], concurrency / (
        max(answer[1] for answer in answers[:concurrency])
    )


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Returns 50, 95 and 99 %."""
    p50, p95, p99 = np.quantile(times, [0.5, 0.95, 0.99]).tolist()
    return p50, p95, p99


def row(
    claim: str,
    shape: str,
    times: list[float],
    notes: str,
) -> dict[str, str]:
    """Returns a row of results.csv; its quantiles are 50, 95 and 99 %, as the claim says."""
    notes += f"; load average {os.getloadavg()[0]:.1f}"
    found = _rows.row(f"{claim} p50 p95 p99", shape, "", quantiles(times), notes=notes)
    print(
        f"{claim:<22}{shape:<22}" + "".join(f"{value:9.2f}" for value in quantiles(times)),
        notes,
        flush=True,
    )
    return found


def grid(workdir: Home, chosen: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Yields the table, each part beside a service that does nothing."""
    empty = {c: nothing(workdir, c, 2 * chosen.seconds) for c in chosen.concurrency}
    for c, times in empty.items():
        yield row("http empty", f"c{c}", times, f"{len(times)} requests")
    trials = list(
        itertools.product(chosen.lengths, chosen.candidates, chosen.concurrency, chosen.forms)
    )
    for kind, megabytes in (("warm", "4096"), ("cold", "0")):
        with workdir.served(
            **PATIENT, LONGREC_THREADS=chosen.threads, LONGREC_CACHE_MB=megabytes
        ) as address:
            for length, candidates, c, form in trials:
                times, rate = trial(
                    address,
                    functools.partial(
                        workdir.message, length=length, candidates=candidates, form=form
                    ),
                    c,
                    chosen.seconds,
                )
                floor, claim = (
                    np.median(empty[c]),
                    f"http {kind}" + ("" if form == "json" else f" {form}"),
                )
                yield row(
                    claim,
                    f"L{length} m{candidates} c{c}",
                    times,
                    f"{len(times)} requests; {rate:.1f} requests/s "
                    f"in a burst; p50 {np.median(times) - floor:.1f} ms above empty, {np.median(times) / floor:.1f} times it",
                )


def nothing(workdir: Home, concurrency: int, seconds: float) -> list[float]:
    """Returns the times in ms of a service that does nothing."""
    with serve_bento("empty:Empty", workdir=workdir.path, folder=workdir.path) as address:
        return trial(address, lambda n: workdir.message(n, 10_000, 200), concurrency, seconds)[0]


def alone(workdir: Home, seconds: float, threads: str) -> Iterator[dict[str, str]]:
    """Yields 10,000 events x 200 candidates, one request at a time, beside a service that does
    nothing.
    """
    empty = nothing(workdir, 1, 2 * seconds)
    yield row("http empty", "c1", empty, f"{len(empty)} requests")
    with workdir.served(
        **PATIENT,
        LONGREC_THREADS=threads,
        LONGREC_CACHE_MB="4096",
    ) as address:
        yield from headline(workdir, address, empty, 5 * seconds)


def headline(
    workdir: Home, address: tuple[str, int], empty: list[float], seconds: float
) -> Iterator[dict[str, str]]:
    """Yields 10,000 events x 200 candidates alone, warm and with one more event a request, and the
    growth with candidates.
    """
    plain = trial(address, lambda n: workdir.message(n % 4, 10_000, 200), 1, seconds)[0]
    above = quantiles(plain)[2] - quantiles(empty)[2]
    yield row(
        "http warm alone",
        "L10000 m200 c1",
        plain,
        f"{len(plain)} requests; p99 {above:.2f} ms above the empty service's (bound "
        f"25); {workdir.num_distinct:,} different events of 10,000",
    )
    grown = trial(
        address, lambda n: workdir.message(7, 10_000, 200, last=20_000 + n), 1, seconds / 2
    )[0]
    yield row(
        "http append",
        "L10000 m200 c1",
        grown,
        f"{len(grown)} requests, one new event each; p50 "
        f"{np.median(grown) / np.median(plain):.2f} times that without",
    )
    sizes = (50, 200, 500, 1_000, 2_048)
    medians = [
        float(
            np.median(
                trial(address, lambda n, m=m: workdir.message(n % 4, 10_000, m), 1, seconds / 5)[0]
            )
        )
        for m in sizes
    ]
    slope, base = np.polyfit(sizes, medians, 1)
    residual = np.abs(np.polyval((slope, base), sizes) - medians).max() / max(medians)
    yield row(
        "http candidates",
        "L10000 c1",
        medians,
        f"p50 at {sizes}: {', '.join(f'{value:.1f}' for value in medians)} ms; "
        f"{base:.1f} + {slope * 1e3:.1f} ms per 1,000; largest residual {residual:.1%} of the largest",
    )


def event(workdir: Home) -> Iterator[dict[str, str]]:
    """Yields what one new event costs the cache above an unchanged timeline, and its share of a
    cold encoding of 10,000: CPU time, one
    thread, nothing but the cache and its scorer."""
    torch.set_num_threads(1)
    scorer = Scorer.load(workdir.path / "bundle")
    timeline = (
        OnlineStore(workdir.path / "home", find_root() / "feature_repo")
        .fetch(workdir.users[:1])[0]
        .history
    )
    asked = HistorySlice("user", timeline, 0, 10_000, 1 << 62)
    cold = [cpu_ms(HistoryKVCache(scorer, 1 << 30), asked) for _ in range(8)]
    cache, moved, same = HistoryKVCache(scorer, 1 << 30, events_per_user=10_000), [], []
    cache.get_or_encode([asked])
    for _ in range(300):
        asked = dataclasses.replace(asked, start=asked.start + 1, end=asked.end + 1)
        moved.append(cpu_ms(cache, asked))
        same.append(cpu_ms(cache, asked))
    best, middle = min(moved) - min(same), float(np.median(moved) - np.median(same))
    yield row(
        "new event, CPU time",
        "L10000",
        [value - float(np.median(same)) for value in moved],
        f"best of 300 {best:.3f} ms, a {min(cold) / best:.0f}th of the best of 8 cold ones, {min(cold):.1f} ms (bound a 100th); "
        f"medians {middle:.3f} and {np.median(cold):.1f} ms, a {np.median(cold) / middle:.0f}th",
    )


def cpu_ms(cache: HistoryKVCache, asked: HistorySlice) -> float:
    """Returns the CPU time in ms of reading a history through the cache."""
    started = time.thread_time()
    cache.get_or_encode([asked])
    return (time.thread_time() - started) * 1e3


def overload(
    workdir: Home, seconds: float, redis: Redis | None, threads: str
) -> Iterator[dict[str, str]]:
    """Yields a run at twice the capacity, and one in which the store is killed and comes back."""
    limit_ms = 1_000
    with workdir.served(LONGREC_THREADS=threads, LONGREC_CALLER_REQUESTS="10000") as address:
        worker = max(
            psutil.Process().children(recursive=True), key=lambda process: process.memory_info().rss
        )
        messages = (
            workdir.message(number, 2_000, 200, timeout_ms=limit_ms) for number in range(10**9)
        )
        asyncio.run(send(address, messages, [0.1 * n for n in range(50)]))
        bursts = [asyncio.run(send(address, messages, [0.0] * 64)) for _ in range(5)]
        capacity = max(
            sum(a[0] == 200 for a in burst) / max(a[1] for a in burst) for burst in bursts
        )
        memory: list[int] = []
        random = np.random.default_rng(0)
        request_times = np.cumsum(
            random.exponential(1 / (2 * capacity), round(2 * capacity * seconds))
        ).tolist()
        answers = asyncio.run(
            send(
                address, messages, request_times, lambda _: memory.append(worker.memory_info().rss)
            )
        )
        yield summary(
            "http overload",
            f"L2000 m200, {2 * capacity:.0f} requests/s, {seconds:.0f} s",
            answers,
            limit_ms,
            memory,
        )
        if redis is None:
            return
        request_times = np.cumsum(
            random.exponential(1 / (0.5 * capacity), round(0.5 * capacity * 45))
        ).tolist()
        asked = [
            workdir.message(number % 16, 2_000, 200, timeout_ms=limit_ms) for number in range(16)
        ]
        expected = [
            json.loads(a[2])["scores"]
            for a in asyncio.run(send(address, iter(asked), [0.2 * n for n in range(16)]))
        ]
        answers = asyncio.run(
            send(
                address,
                (asked[n % 16] for n in range(10**9)),
                request_times,
                redis.dies_between(10, 25),
            )
        )
        yield summary(
            "http store dies",
            f"L2000 m200, {0.5 * capacity:.0f} requests/s, 45 s",
            answers,
            limit_ms,
            [],
            expected,
        )


def summary(
    claim: str,
    shape: str,
    answers: list[Answer],
    limit_ms: float,
    memory: list[int],
    expected: list[dict[str, list[float]]] | None = None,
) -> dict[str, str]:
    """Returns the row of an overload: codes, share of the accepted in time, memory, and scores that
    are not what they were.
    """
    codes = Counter(answer[0] for answer in answers)
    accepted = [answer for answer in answers if answer[0] in (200, 408, 504)]
    in_time = sum(answer[0] == 200 and answer[1] * 1e3 <= limit_ms for answer in accepted) / max(
        1, len(accepted)
    )
    notes = f"codes {dict(sorted(codes.items()))}; {in_time:.4%} of the accepted within {limit_ms:.0f} ms"
    if memory:
        second, last = (
            max(part) / 2**20
            for part in (np.array_split(memory, 4)[1], np.array_split(memory, 4)[3])
        )
        notes += f"; memory {second:.0f} MiB at most in the second quarter, {last:.0f} in the last"
    if expected is not None:
        found = [
            (json.loads(answer[2]), expected[number % 16])
            for number, answer in enumerate(answers)
            if answer[0] == 200
        ]
        wrong = sum(
            float(np.abs(np.subtract(got["scores"]["label"], want["label"])).max()) > 1e-5
            for got, want in found
        )
        notes += f"; {sum(got['degraded'] for got, _ in found)} degraded; {wrong} other scores than before"
    return row(claim, shape, [answer[1] * 1e3 for answer in accepted] or [0.0], notes)


class Redis:
    """A Redis of one's own, which keeps what it was given on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.folder, self.address = folder, f"127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Starts it, with what it had."""
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--dir",
            str(self.folder),
        ]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        for _ in range(100):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), 1),
            ):
                return
            time.sleep(0.05)

    def stop(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()

    def dies_between(self, first: float, last: float) -> Callable[[float], None]:
        """Returns a function of the time that kills it at the first moment and starts it at the
        last one.
        """
        todo = [(first, self.stop), (last, self.start)]

        def at(request_time: float) -> None:
            if todo and request_time >= todo[0][0]:
                todo.pop(0)[1]()

        return at


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="longrec bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        nargs="*",
        help="by default all that the device has; event is of a CPU",
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of load in a cell (one burst at least)"
    )
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
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs="+",
            default=default,
            help="of the table",
        )
    parser.add_argument(
        "--forms",
        choices=sorted(FORMS),
        nargs="+",
        default=["json"],
        help="of the table's requests",
    )
    parser.add_argument(
        "--items",
        type=int,
        default=4_000,
        help="of the synthetic dataset; of 100000 hardly any comes twice in a history",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=_rows.RESULTS,
        help="where rows go",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the rows, do not append them to results.csv"
    )
    chosen = parser.parse_args()
    named = chosen.only or [part for part in PARTS if chosen.device == "cpu" or part != "event"]
    if chosen.device == "cuda" and "event" in named:
        parser.error("--only event times the cache of this process, on a CPU")
    with tempfile.TemporaryDirectory(prefix="longrec-bench-") as folder:
        redis = Redis(Path(folder) / "redis") if shutil.which("redis-server") else None
        try:
            workdir = Home(
                Path(folder), redis.address if redis else "", chosen.device, chosen.items
            )
            parts = {
                "alone": lambda: alone(workdir, chosen.seconds, chosen.threads),
                "event": lambda: event(workdir),
                "grid": lambda: grid(workdir, chosen),
                "overload": lambda: overload(
                    workdir, chosen.overload_seconds, redis, chosen.threads
                ),
            }
            for name in named:
                for found in parts[name]():
                    if not chosen.dry_run:
                        _rows.append([found | workdir.where], chosen.out)
        finally:
            if redis:
                redis.stop()


if __name__ == "__main__":
    main()
