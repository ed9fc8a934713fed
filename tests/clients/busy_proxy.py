"""A proxy before a service whose first answer is that it is busy."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import ClassVar

RETRY_AFTER_SECONDS = 1


class BusyProxy(http.server.BaseHTTPRequestHandler):
    """Answers the first request with 503 and forwards the others."""

    protocol_version = "HTTP/1.1"
    target: ClassVar[str]
    times: ClassVar[list[float]]

    def do_POST(self) -> None:
        """Answer a request."""
        self.times.append(time.monotonic())
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(self.times) == 1:
            busy = b'{"error": "too much work"}'
            self._answer(503, busy, {"retry-after": str(RETRY_AFTER_SECONDS)})
            return
        connection = http.client.HTTPConnection(self.target, timeout=60)
        with contextlib.closing(connection):
            # Every header goes on as it came, those of an upgrade too.
            connection.request("POST", self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            self._answer(answer.status, answer.read(), {})

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
    ) -> None:
        self.send_response(status)
        content = {"content-type": "application/json", "content-length": str(len(body))}
        for name, value in {**content, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def busy_proxy(server: str) -> Iterator[tuple[str, list[float]]]:
    """Yield the address of a proxy, and the times at which requests arrive."""
    times: list[float] = []
    target = urllib.parse.urlsplit(server).netloc
    handler = type("Handler", (BusyProxy,), {"target": target, "times": times})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", times
        finally:
            proxy.shutdown()
