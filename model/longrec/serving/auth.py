"""The door of a service: an ASGI middleware that lets in who shows the token, and lets no stack
trace out.

Open without a token, as clusters and browsers expect: health, metrics, the interface's description,
and the page (which holds no data).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from longrec.errors import ConfigError

log = logging.getLogger("bentoml.longrec.door")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

OPEN = frozenset(
    {
        "/",
        "/docs",
        "/docs.json",
        "/schema.json",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/favicon.ico",
    }
)
OPEN_FOLDERS = ("/static_content/",)
SHORTEST = 16
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class Tokens:
    """The tokens that open a service: LONGREC_TOKEN, or the lines of LONGREC_TOKEN_FILE, which is
    read again when it changes.

    Several lines are several tokens: a new one is let in before the old one is taken away.

    Raises:
        ConfigError: both variables are set, the file cannot be read, or a token is shorter than 16
            characters.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        named, text = environment.get("LONGREC_TOKEN_FILE"), environment.get("LONGREC_TOKEN")
        if named and text:
            raise ConfigError(
                "LONGREC_TOKEN and LONGREC_TOKEN_FILE are both set", expected="one of them"
            )
        self._path = Path(named) if named else None
        self._stamp: tuple[int, int, int] | None = None
        self._digests = _digests(text or "", "LONGREC_TOKEN") if text is not None else ()
        if self._path is not None:
            self._digests = self._read(self._path)

    @property
    def is_required(self) -> bool:
        """Whether a caller needs one."""
        return bool(self._digests)

    def allows(self, header: bytes) -> bool:
        """Returns whether an Authorization header shows one of the tokens; the time does not depend
        on how much of it is right.
        """
        self._refresh()
        kind, _, shown = header.partition(b" ")
        digest = hashlib.sha256(shown.strip()).digest()
        matches = [
            hmac.compare_digest(digest, known) for known in self._digests
        ]  # all of them, whichever it is
        return kind.lower() == b"bearer" and any(matches)

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            if _stamp(self._path) != self._stamp:
                self._digests = self._read(self._path)
        except (ConfigError, OSError) as error:  # half way through a rotation: the old ones hold
            log.error("the tokens are not read again: %s", error)

    def _read(self, path: Path) -> tuple[bytes, ...]:
        try:
            stamp, text = _stamp(path), path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "the file of LONGREC_TOKEN_FILE cannot be read", found=str(error)
            ) from error
        found = _digests(text, str(path))
        self._stamp = stamp
        return found


class Door:
    """The middleware.

    Args:
        app: what is behind it.
        tokens: None to read the environment now.
    """

    def __init__(self, app: App, tokens: Tokens | None = None) -> None:
        self._app, self._tokens = app, tokens or Tokens(os.environ)

    async def __call__(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._tokens.is_required and not _is_open(scope["path"]):
            shown = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(shown) != 1 or not self._tokens.allows(shown[0]):
                return await _answer(
                    send,
                    401,
                    "a token is needed: Authorization: Bearer TOKEN",
                    ((b"www-authenticate", b"Bearer"),),
                )
        return await self._guarded(scope, receive, send)

    async def _guarded(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        has_begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            log.exception("unexpected, at %s", scope["path"])
            if has_begun:
                raise
            await _answer(send, 500, "something went wrong here; it is in the log of the service")


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _digests(text: str, where: str) -> tuple[bytes, ...]:
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens or min(map(len, tokens)) < SHORTEST:
        raise ConfigError(
            f"{where} holds no good token",
            found=f"{len(tokens)} tokens, the shortest of {min(map(len, tokens), default=0)}",
            expected=f"tokens of {SHORTEST} characters or more, one a line",
            fix="Make one: openssl rand -hex 32",
        )
    return tuple(hashlib.sha256(token.encode()).digest() for token in tokens)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


async def _answer(
    send: Send, status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = json.dumps({"error": reason}).encode()
    length = str(len(body)).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", length),
                *headers,
                *HEADERS,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
