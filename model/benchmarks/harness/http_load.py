"""Open load over HTTP: requests are sent at planned times, whatever the answers do."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

BUSY_SHARE = 0.6
"""Bursts come as far apart as keeps the server busy for this share of the time."""
MAX_BURSTS = 400
LEAD_SECONDS = 0.05
END_OF_HEAD = b"\r\n\r\n"
LENGTH_HEADER = "content-length:"
Address = tuple[str, int]
"""Host and port."""


class Answer(NamedTuple):
    """Answer to a request.

    Args:
        status: of HTTP; 0 when the connection ended without an answer.
        seconds: since the request should have been sent.
        body: bytes.
    """

    status: int
    seconds: float
    body: bytes


def http_message(path: str, content_type: str, body: bytes) -> bytes:
    """Return a POST request as it is sent."""
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


def send(
    address: Address,
    messages: Iterator[bytes],
    send_seconds: list[float],
    on_burst: Callable[[float], None] | None = None,
) -> list[Answer]:
    """Send one message at each time, and return the answers in that order.

    Args:
        address: of the server.
        messages: as many as there are times.
        send_seconds: times from now, ascending; equal times form a burst.
        on_burst: is called with the time of each burst after it was sent.
    """
    return asyncio.run(_send(address, messages, send_seconds, on_burst))


async def _send(
    address: Address,
    messages: Iterator[bytes],
    send_seconds: list[float],
    on_burst: Callable[[float], None] | None,
) -> list[Answer]:
    connections: asyncio.Queue = asyncio.Queue()
    started = time.perf_counter() + LEAD_SECONDS
    tasks = []
    for second, burst in itertools.groupby(send_seconds):
        # Messages are made before they are due: their time is not the server's.
        burst_messages = [next(messages) for _ in burst]
        due = started + second
        while (remaining := due - time.perf_counter()) > 0:
            await asyncio.sleep(remaining)
        posts = [_post(connections, address, message, due) for message in burst_messages]
        tasks += [asyncio.create_task(post) for post in posts]
        if on_burst is not None:
            on_burst(second)
    answers = list(await asyncio.gather(*tasks))
    while not connections.empty():
        _, writer = connections.get_nowait()
        writer.close()
    return answers


async def _post(connections: asyncio.Queue, address: Address, message: bytes, due: float) -> Answer:
    """Return the answer to a message, on an open connection or on a new one."""
    if connections.empty():
        reader, writer = await asyncio.open_connection(*address)
    else:
        reader, writer = await connections.get()
    try:
        writer.write(message)
        head = (await reader.readuntil(END_OF_HEAD)).decode().lower().split("\r\n")
        header = next(line for line in head if line.startswith(LENGTH_HEADER))
        body = await reader.readexactly(int(header.removeprefix(LENGTH_HEADER)))
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
        return Answer(0, time.perf_counter() - due, b"")
    connections.put_nowait((reader, writer))
    status = int(head[0].split()[1])
    return Answer(status, time.perf_counter() - due, body)


class BurstTimes(NamedTuple):
    """Result of bursts of requests.

    Args:
        milliseconds: of each request.
        requests_per_second: of the first burst.
    """

    milliseconds: list[float]
    requests_per_second: float


def measure_bursts(
    address: Address,
    make_message: Callable[[int], bytes],
    concurrency: int,
    seconds: float,
    num_first: int,
) -> BurstTimes:
    """Send bursts of `concurrency` requests for about `seconds`.

    One request at a time comes first, `num_first` of them: one for every user fills the cache, and
    the fastest tells how far apart bursts must be.

    Raises:
        SystemExit: a status is not 200.
    """
    messages = (make_message(number) for number in itertools.count())
    first_seconds = [send(address, messages, [0.0])[0].seconds for _ in range(num_first)]
    fastest = min(first_seconds)
    num_bursts = round(seconds * BUSY_SHARE / (fastest * concurrency))
    num_bursts = max(1, min(MAX_BURSTS, num_bursts))
    gap = fastest * concurrency / BUSY_SHARE
    send_seconds = [burst * gap for burst in range(num_bursts) for _ in range(concurrency)]
    answers = send(address, messages, send_seconds)
    failures = Counter(answer.status for answer in answers if answer.status != 200)
    if failures:
        raise SystemExit(f"a moderate load got other statuses than 200: {dict(failures)}")
    first_burst = max(answer.seconds for answer in answers[:concurrency])
    milliseconds = [answer.seconds * 1e3 for answer in answers]
    return BurstTimes(milliseconds, concurrency / first_burst)
