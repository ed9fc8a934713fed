"""Measure the CPU time that traces add to a request: POST /rank in process, off and on in turns.

    longrec bench tracing                                   1 % of the requests sampled
    longrec bench tracing --shares 0.01 1 --pairs 400       and every request

The application of BentoML is made twice around one engine: as it is without OpenTelemetry's
variables, and with them. Blocks of requests go to one and the other, in random order, by direct
calls of the application. CPU time is that of the whole process: of the event loop, the engine and
the thread that sends spans, every SEND_MS here: else their cost would fall on other blocks. A
receiver in another process takes them. `off` against itself shows what the measurement cannot see.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_REQUESTS = 20
SEND_MS = 20
NANOSECONDS_PER_MS = 1_000_000
NUM_WARM_REQUESTS = 200
BOOTSTRAP_SAMPLES = 2_000
SHAPE = "L10000 m200"
VARIABLES = {
    "LONGREC_MODEL": "longrec-ranker:bench",
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_STORE_TIMEOUT_MS": "20000",
    "LONGREC_QUEUE_SECONDS": "1000",
    "BENTOML_DO_NOT_TRACK": "True",
}
RECEIVER = """
import http.server
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"""
HEADERS = [
    (b"content-type", b"application/json"),
    (b"host", b"localhost"),
]
Call = Callable[[bytes], Any]


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """Yield the address of a receiver in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def make_call(app: Any) -> Call:
    """Return the call of POST /rank of an application."""

    async def call(body: bytes) -> None:
        message = {
            "type": "http.request",
            "body": body,
            "more_body": False,
        }
        messages = iter([message])
        status = []
        length = str(len(body)).encode()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
            "method": "POST",
            "scheme": "http",
            "path": "/rank",
            "raw_path": b"/rank",
            "root_path": "",
            "query_string": b"",
            "headers": [*HEADERS, (b"content-length", length)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 3000),
        }

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            status.append(message.get("status"))

        await app(scope, receive, send)
        assert status[0] == 200, status

    return call


async def block_ms(call: Call, bodies: Sequence[bytes]) -> float:
    """Return the CPU time of a request in ms, over a block of them."""
    started = time.process_time_ns()
    for body in bodies:
        await call(body)
    nanoseconds = time.process_time_ns() - started
    return nanoseconds / NANOSECONDS_PER_MS / len(bodies)


async def measure_pairs(
    calls: Sequence[Call],
    switches: Sequence[Callable[[], None]],
    bodies: Sequence[bytes],
    num_pairs: int,
) -> np.ndarray:
    """Return the CPU time of a request in ms, [pairs, 2], of blocks in random order."""
    rng = np.random.default_rng(0)
    times = np.empty((num_pairs, 2))
    for row in times:
        for side in rng.permutation(2):
            switches[side]()
            row[side] = await block_ms(calls[side], bodies)
    return times


def growth(times: np.ndarray) -> tuple[float, float, float]:
    """Return the growth of the mean of the second column, and its 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    num_pairs = len(times)
    chosen = rng.integers(0, num_pairs, (BOOTSTRAP_SAMPLES, num_pairs))
    samples = times[chosen]
    off, on = samples.mean(axis=1).T
    low, high = np.quantile(on / off - 1, (0.025, 0.975))
    mean_off, mean_on = times.mean(axis=0)
    return mean_on / mean_off - 1, low, high


async def measure(
    bodies: Sequence[bytes],
    address: str,
    shares: Sequence[float],
    num_pairs: int,
) -> dict[str, np.ndarray]:
    """Return the times of off against off, and of off against each share."""
    from _bentoml_impl.server.app import ServiceAppFactory

    from bento import traces
    from bento.service import Ranker
    from longrec import tracing

    service: Any = Ranker  # the decorator made a service of the class
    service.inject_config()
    factory = ServiceAppFactory(service, is_main=True)
    app = factory()
    off = make_call(app)

    def switch_off() -> None:
        tracing.use(None)

    async with app.router.lifespan_context(app):
        await block_ms(off, list(bodies) * (NUM_WARM_REQUESTS // len(bodies)))
        switches = [switch_off, switch_off]
        found = {"off": await measure_pairs([off, off], switches, bodies, num_pairs)}
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        os.environ["OTEL_BSP_SCHEDULE_DELAY"] = str(SEND_MS)
        os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        for share in shares:
            os.environ["OTEL_TRACES_SAMPLER_ARG"] = str(share)
            traces.install()
            switch_on = functools.partial(setattr, tracing, "_tracer", tracing._tracer)
            on = make_call(factory())
            switches = [switch_off, switch_on]
            name = f"sampled {share:.0%}"
            found[name] = await measure_pairs([off, on], switches, bodies, num_pairs)
    return found


def main() -> None:
    """Measure, print and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        metrics = folder / "metrics"
        metrics.mkdir()
        # prometheus_client reads it when it is imported: a worker counts into files.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        os.environ |= VARIABLES
        from harness import results
        from harness.served_model import ServedModel
        from longrec.runs.project import find_root

        sys.path.insert(0, str(find_root()))  # bento/ is no installed package
        model = ServedModel(folder, "", "cpu", 2_000)
        os.environ["LONGREC_HOME"] = str(folder / "workdir")
        os.environ["BENTOML_HOME"] = str(folder / "store")
        messages = [model.message(number, 10_000, 200) for number in range(BLOCK_REQUESTS)]
        bodies = [message.partition(b"\r\n\r\n")[2] for message in messages]
        with receiver() as address:
            found = asyncio.run(measure(bodies, address, options.shares, options.pairs))
    rows = []
    for name, times in found.items():
        grown, low, high = growth(times)
        notes = (
            f"CPU time grows by {grown:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}; "
            f"off {times[:, 0].mean():.3f} ms; {len(times)} pairs of {BLOCK_REQUESTS} requests"
        )
        quantiles = np.quantile(times[:, 1], (0.2, 0.5, 0.8)).tolist()
        row = results.row(f"trace {name}", SHAPE, "float32", quantiles, notes=notes)
        results.show(row)
        rows.append(row)
    results.append(rows, options.out or results.RESULTS)


if __name__ == "__main__":
    main()
