"""One form of all errors: an ASGI middleware that gives every refusal the JSON body of ErrorAnswer.

Starlette answers unknown paths and methods with plain text, and BentoML some errors with lists.
Starlette also sends a path with a slash at its end to an address made from the Host header: such a
path is unknown here.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from bento.errors import MAX_SHOWN_CHARACTERS
from longrec.serving.auth import App, Message, Scope, Send

Header = tuple[bytes, bytes]

FIRST_ERROR = 400
CONTENT_HEADERS = (b"content-type", b"content-length")


class JsonErrorsMiddleware:
    """ASGI middleware that sends errors as `{"error": reason}`.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["app"].router.redirect_slashes = False
        errors = _JsonErrors(scope, send)
        return await self._app(scope, receive, errors.send)


class _JsonErrors:
    """The answer to one request; an error is held back until its body is whole.

    Args:
        scope: of the request.
        send: sends to the client.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Send a message of the answer, an error in the form of all errors."""
        kind = message["type"]
        is_start = kind == "http.response.start"
        if is_start and message["status"] >= FIRST_ERROR:
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
        if is_whole:
            await self._send_error(self._start)

    async def _send_error(self, start: Message) -> None:
        reason = _reason_in(self._body)
        if not reason:
            reason = _reason_of(self._scope, start)
        body = json.dumps({"error": reason}).encode()
        length = str(len(body)).encode()
        headers = [
            *_other_headers(start),
            (b"content-type", b"application/json"),
            (b"content-length", length),
        ]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _other_headers(start: Message) -> list[Header]:
    """Return the headers that do not describe the body."""
    headers: list[Header] = start.get("headers", [])
    return [(name, value) for name, value in headers if name.lower() not in CONTENT_HEADERS]


def _reason_in(body: bytes) -> str:
    """Return the error in a JSON body, an object or a list of them; empty if there is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if isinstance(content, list):
        content = next(iter(content), None)
    if not isinstance(content, dict):
        return ""
    reason = content.get("error")
    return reason if isinstance(reason, str) else ""


def _reason_of(scope: Scope, start: Message) -> str:
    """Return the reason of an error that has none in its body."""
    status = start["status"]
    if status == HTTPStatus.NOT_FOUND:
        return _unknown_path(scope["path"])
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return _other_method(scope["method"], start)
    return HTTPStatus(status).phrase.lower()


def _unknown_path(path: str) -> str:
    shown = repr(path[:MAX_SHOWN_CHARACTERS])
    hint = "see /docs"
    if path.endswith("/"):
        hint = "no path ends with a slash"
    return f"there is nothing at {shown}; {hint}"


def _other_method(method: str, start: Message) -> str:
    headers = dict(start.get("headers", []))
    allowed = headers.get(b"allow", b"").decode()
    shown = method[:MAX_SHOWN_CHARACTERS]
    return f"the method {shown} is not allowed here; allowed: {allowed}"
