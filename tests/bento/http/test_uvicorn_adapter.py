"""HTTP as a connection speaks it, against a real uvicorn with a small application."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator

import httptools
import pytest
import uvicorn
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bento import uvicorn_adapter
from longrec.serving.admission.concurrency import ConcurrencyLimit
from longrec.serving.admission.gate import AdmissionGate

BODY = b'{"user_id": 1}'
KEEP_ALIVE_SECONDS = 0.4
MAX_REJECTION_SECONDS = 0.0003


async def echo(scope: dict, receive, send) -> None:
    """Answer with the method, the headers and the body of the request."""
    body = b""
    has_more = True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    names = [name.decode() for name, _ in scope["headers"]]
    facts = {"method": scope["method"], "headers": names, "body": body.decode()}
    content = json.dumps(facts).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that speaks as the service does.

    Args:
        address: host and port.
        thread: the thread of its event loop.
    """

    address: tuple[str, int]
    thread: threading.Thread

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the server so far."""
        clock = time.pthread_getcpuclockid(self.thread.ident)
        return time.clock_gettime(clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    before = uvicorn.config.HTTP_PROTOCOLS["auto"]
    uvicorn_adapter.install(lambda app: app, KEEP_ALIVE_SECONDS)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo, lifespan="off", log_config=None, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Server(listener.getsockname(), thread)
    server.should_exit = True
    thread.join()
    uvicorn.config.HTTP_PROTOCOLS["auto"] = before


@pytest.fixture(scope="module")
def address(server: Server) -> tuple[str, int]:
    return server.address


def message(*headers: str, method: str = "POST", body: bytes = BODY) -> bytes:
    """Return a request as it is sent."""
    lines = [f"{method} /rank HTTP/1.1", "Host: localhost", *headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Return status, headers and JSON of the next answer."""
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return status, headers, json.loads(stream.read(int(headers["content-length"])))


def ask(address: tuple[str, int], *parts: bytes) -> tuple[int, dict[str, str], dict]:
    """Send parts of a request one after another; return the answer."""
    with socket.create_connection(address, timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02 if len(parts) > 1 else 0)
        return read_answer(connection)


UPGRADES = (
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"),
    ("Connection: upgrade", "Upgrade: h2c"),
    ("Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0"),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"),
    ("Connection: upgrade",),
    ("Upgrade: h2c",),
)


@pytest.mark.parametrize("headers", UPGRADES)
def test_a_request_with_an_upgrade_has_the_answer_of_one_without(address, headers) -> None:
    status, _, answer = ask(address, message(*headers))
    assert status == 200
    assert answer["body"] == BODY.decode()
    assert answer["method"] == "POST"


def test_a_get_with_an_upgrade_is_answered(address) -> None:
    status, _, answer = ask(address, message(*UPGRADES[0], method="GET", body=b""))
    assert (status, answer["method"], answer["body"]) == (200, "GET", "")


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_an_upgrade_in_any_pieces_keeps_its_body(address, size: int) -> None:
    sent = message(*UPGRADES[0])
    parts = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert ask(address, *parts)[2]["body"] == BODY.decode()


def test_a_chunked_body_with_an_upgrade_is_kept(address) -> None:
    head = message(*UPGRADES[0], "Transfer-Encoding: chunked", body=b"")
    head = head.replace(b"Content-Length: 0\r\n", b"")
    status, _, answer = ask(address, head + b"3\r\nabc\r\n0\r\n\r\n")
    assert (status, answer["body"]) == (200, "abc")


def test_a_connection_goes_on_after_an_upgrade(address) -> None:
    large = b"x" * 300_000
    with socket.create_connection(address, timeout=10) as connection:
        for headers, body in ((UPGRADES[0], large), ((), BODY), (UPGRADES[1], BODY)):
            connection.sendall(message(*headers, body=body))
            assert read_answer(connection)[2]["body"] == body.decode()


def test_requests_sent_together_are_answered_in_order(address) -> None:
    sent = message(*UPGRADES[0], body=b"1") + message(body=b"2") + message(*UPGRADES[1], body=b"3")
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        stream = b""
        while stream.count(b'"body"') < 3:
            stream += connection.recv(65_536)
    places = [stream.index(b'"body": "%d"' % number) for number in (1, 2, 3)]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /rank HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /rank HTTP/1.1\r\nHost: a\r\n bad\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 600_000, 431),
    ],
)
def test_what_is_no_request_is_refused_in_the_form_of_every_error(address, sent, status) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        for start in range(0, len(sent), 50_000):
            try:
                connection.sendall(sent[start : start + 50_000])
            except OSError:  # the server has closed the connection
                break
            time.sleep(0.01)
        found, headers, answer = read_answer(connection)
    assert found == status
    assert list(answer) == ["error"]
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"


def is_open_after(address: tuple[str, int], seconds: float) -> bool:
    """Return whether an idle connection is still open after a time."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(message())
        read_answer(connection)
        connection.settimeout(seconds)
        try:
            return connection.recv(1) != b""
        except TimeoutError:
            return True


def test_an_idle_connection_is_closed_after_the_time_of_the_settings(address) -> None:
    assert is_open_after(address, KEEP_ALIVE_SECONDS / 4)
    assert not is_open_after(address, 20 * KEEP_ALIVE_SECONDS)


def test_a_rejection_costs_little(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: the parser, the gate and the answer; the body of 2 KB is not decoded."""
    gate = AdmissionGate(ConcurrencyLimit(caller_requests=0))
    monkeypatch.setattr(uvicorn_adapter.Protocol, "before", staticmethod(gate.before))
    sent = message(body=b"1" * 2_000)
    num_requests = 1_000
    with socket.create_connection(server.address, timeout=10) as connection:
        before = server.cpu_seconds
        for _ in range(num_requests):
            connection.sendall(sent)
            answer = connection.recv(65_536)
        seconds = (server.cpu_seconds - before) / num_requests
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert seconds <= MAX_REJECTION_SECONDS


def make_protocol(**options: float) -> uvicorn_adapter.Protocol:
    uvicorn_adapter.Protocol.before = staticmethod(lambda app: app)
    uvicorn_adapter.Protocol.keep_alive_seconds = 120.0
    config = uvicorn.Config(echo, log_config=None, **options)
    state = uvicorn.Server(config).server_state
    loop = asyncio.new_event_loop()
    try:
        return uvicorn_adapter.Protocol(config, state, {}, loop)
    finally:
        loop.close()


def test_the_option_of_bentoml_goes_before_the_setting() -> None:
    default = uvicorn_adapter.UVICORN_KEEP_ALIVE_SECONDS
    assert make_protocol(timeout_keep_alive=default).timeout_keep_alive == 120.0
    assert make_protocol(timeout_keep_alive=30).timeout_keep_alive == 30


def test_the_internals_of_uvicorn_that_are_used_are_there() -> None:
    protocol = make_protocol()
    assert uvicorn.config.HTTP_PROTOCOLS["auto"]
    for name in ("app", "timeout_keep_alive", "parser", "transport"):
        assert hasattr(protocol, name), name
    for name in (
        "_unset_keepalive_if_required",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_message_complete",
        "send_400_response",
    ):
        assert callable(getattr(HttpToolsProtocol, name)), name
    protocol.on_message_begin()
    assert (protocol.url, protocol.headers) == (b"", [])


def test_the_reason_for_another_parser_of_upgrades_is_there_still() -> None:
    """When this fails, uvicorn or httptools has mended it: remove `_answer_without_upgrade`."""

    class Parsed:
        body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

    parsed = Parsed()
    parser = httptools.HttpRequestParser(parsed)
    with pytest.raises(httptools.HttpParserUpgrade):
        parser.feed_data(message(*UPGRADES[0]))
    assert parsed.body == b""


def test_the_default_of_bentoml_is_the_one_that_the_setting_replaces() -> None:
    from _bentoml_impl.worker import service

    (option,) = [each for each in service.main.params if each.name == "timeout_keep_alive"]
    assert option.default == uvicorn_adapter.UVICORN_KEEP_ALIVE_SECONDS
