"""HTTP as uvicorn speaks it here: everything that touches uvicorn's internals.

Uvicorn's protocol for httptools serves, with four differences:

    a request with `Upgrade`    is answered in HTTP/1.1; uvicorn loses its body (issue 2722)
    a request without an end    is refused: uvicorn reads headers of any size
    a refusal of the parser     has the JSON form of every error
    an idle connection          stays open longer than the connections in callers' pools

With h11 the first two would need no code, but each request takes 0.17 to 0.21 ms more of the event
loop: 0.23 to 0.28 ms in place of 0.06 to 0.08, measured with bodies of 300 to 60,000 bytes. A
rejection may take 0.3 ms in all.

`tests/bento/http/test_uvicorn_adapter.py` fails when an internal that is used here changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""Largest request line and headers, as in h11."""
ERROR_HEADERS = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
UVICORN_KEEP_ALIVE_SECONDS = 5
"""What `bentoml serve` passes to uvicorn unless `--timeout-keep-alive` is given."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 of one connection.

    `install` sets the class variables.
    """

    before: ClassVar[Callable[[Any], Any]]
    keep_alive_seconds: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = type(self).before(self.app)
        if self.timeout_keep_alive == UVICORN_KEEP_ALIVE_SECONDS:
            self.timeout_keep_alive = self.keep_alive_seconds
        self._is_in_head = False
        self._num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._unset_keepalive_if_required()
        was_in_head = self._is_in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._answer_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("the request is not HTTP/1.1")
        if was_in_head and self._is_in_head:
            self._bound_head(len(data))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the answer, unless the parser is about to skip the body for an upgrade."""
        self._is_in_head = False
        self._num_head_bytes = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body of a request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and close the connection."""
        self._refuse(400, msg)

    def _bound_head(self, num_bytes: int) -> None:
        """Refuse a request whose headers do not end.

        Args:
            num_bytes: of its headers that arrived.
        """
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the headers are larger than {MAX_HEAD_BYTES} bytes")

    def _answer_without_upgrade(self, rest: bytes) -> None:
        """Parse a request again, without its header `Upgrade`.

        Args:
            rest: what follows its headers.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "the service is no proxy")
            return
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n" % (method, self.url, version)
        for name, value in self.headers:
            if name != b"upgrade":
                head += b"%s: %s\r\n" % (name, value)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + b"\r\n" + rest)

    def _refuse(self, status: int, reason: str) -> None:
        """Send an error and close the connection."""
        body = json.dumps({"error": reason}).encode()
        self.transport.write(STATUS_LINE[status])
        self.transport.write(ERROR_HEADERS % len(body))
        self.transport.write(body)
        self.transport.close()


def install(before: Callable[[Any], Any], keep_alive_seconds: int) -> None:
    """Let the uvicorn of this process speak as `Protocol` does.

    Args:
        before: returns the application that stands before the one of BentoML.
        keep_alive_seconds: time after which an idle connection is closed.
    """
    Protocol.before = staticmethod(before)
    Protocol.keep_alive_seconds = keep_alive_seconds
    uvicorn.config.HTTP_PROTOCOLS["auto"] = Protocol  # type: ignore[assignment]
