"""Load on a service: connections in a closed loop, and requests at planned times."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

LENGTH_HEADER = b"content-length:"


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of a service.

    Args:
        ended_at: seconds since the load began, for each answer.
        statuses: of HTTP, for each answer.
        seconds: how long the load lasted.
    """

    ended_at: Sequence[float]
    statuses: Sequence[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers of status 200 a second."""
        return self.counts[200] / self.seconds

    @property
    def counts(self) -> Counter[int]:
        """Answers by status."""
        return Counter(self.statuses)

    def between(self, start: float, end: float) -> Answers:
        """Return the answers of a part of the time."""
        both = zip(self.ended_at, self.statuses, strict=True)
        chosen = [(ended_at, status) for ended_at, status in both if start <= ended_at < end]
        return Answers(
            ended_at=[ended_at for ended_at, _ in chosen],
            statuses=[status for _, status in chosen],
            seconds=end - start,
        )


class Load:
    """Requests with one JSON body to POST /rank.

    Args:
        url: of the service.
        body: JSON form of the request.
    """

    def __init__(self, url: str, body: dict) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        content = json.dumps(body).encode()
        lines = (
            "POST /rank HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        )
        self._message = "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    def keep_busy(self, num_connections: int, seconds: float) -> Answers:
        """Send the next request of each connection as soon as the last one is answered."""
        return asyncio.run(self._keep_busy(num_connections, seconds))

    def send_at(self, send_seconds: Sequence[float]) -> Answers:
        """Send a request at each of these times, in ascending order, whatever the answers do."""
        return asyncio.run(self._send_at(send_seconds))

    async def _keep_busy(self, num_connections: int, seconds: float) -> Answers:
        started = time.perf_counter()
        found: list[tuple[float, int]] = []

        async def repeat() -> None:
            reader, writer = await asyncio.open_connection(*self._address)
            while time.perf_counter() < started + seconds:
                status = await self._ask(reader, writer)
                found.append((time.perf_counter() - started, status))
            writer.close()

        await asyncio.gather(*(repeat() for _ in range(num_connections)))
        return _answers(found, time.perf_counter() - started)

    async def _send_at(self, send_seconds: Sequence[float]) -> Answers:
        started = time.perf_counter()
        found: list[tuple[float, int]] = []
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def send() -> None:
            streams = idle.pop() if idle else await asyncio.open_connection(*self._address)
            status = await self._ask(*streams)
            found.append((time.perf_counter() - started, status))
            idle.append(streams)

        tasks = []
        for due in send_seconds:
            await asyncio.sleep(started + due - time.perf_counter())
            tasks.append(asyncio.create_task(send()))
        await asyncio.gather(*tasks)
        for _, writer in idle:
            writer.close()
        return _answers(found, max(send_seconds))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Return the status of the answer to one request."""
        writer.write(self._message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        (length,) = (line for line in head if line.startswith(LENGTH_HEADER))
        await reader.readexactly(int(length.removeprefix(LENGTH_HEADER)))
        return int(head[0].split()[1])


def _answers(found: list[tuple[float, int]], seconds: float) -> Answers:
    ended_at = [each[0] for each in found]
    return Answers(ended_at, [each[1] for each in found], seconds)
