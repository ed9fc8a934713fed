"""Authentication: an ASGI middleware that requires a bearer token and hides stack traces.

These paths are open without a token, as clusters and browsers expect: health checks, metrics, the
description of the interface, and the page, which holds no data.
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
from longrec.serving.file_version import FileVersion, file_version

log = logging.getLogger("bentoml.longrec.auth")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

OPEN_PATHS = frozenset(
    {
        "/",
        "/docs",
        "/docs.json",
        "/schema.json",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/favicon.ico",
    }
)
OPEN_FOLDERS = ("/static_content/",)
MIN_TOKEN_CHARACTERS = 16
SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class Tokens:
    """Accepted tokens: LONGREC_TOKEN, or the lines of LONGREC_TOKEN_FILE.

    The file is read again when it changes. Each line is a token: during a rotation it holds the old
    and the new one.

    Args:
        environment: environment variables by name.

    Raises:
        ConfigError: both variables are set, the file cannot be read, or a token is too short.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("LONGREC_TOKEN_FILE")
        text = environment.get("LONGREC_TOKEN")
        if path and text:
            raise ConfigError(
                "LONGREC_TOKEN and LONGREC_TOKEN_FILE are both set",
                expected="one of them",
            )
        self._path = Path(path) if path else None
        self._version: FileVersion | None = None
        self._failure = ""
        self._digests: tuple[bytes, ...] = ()
        if text is not None:
            self._digests = _digests(text, "LONGREC_TOKEN")
        if self._path is not None:
            self._read(self._path)

    @property
    def is_required(self) -> bool:
        """Whether callers need a token."""
        return bool(self._digests)

    def allows(self, header: bytes) -> bool:
        """Return whether an Authorization header holds an accepted token.

        The time of the comparison does not depend on the number of right characters.
        """
        self._refresh()
        scheme, _, token = header.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        # Compare with every token: stopping early would tell callers which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)

    def _refresh(self) -> None:
        """Read the file again if it changed; keep the old tokens if it cannot be read."""
        if self._path is None:
            return
        try:
            if file_version(self._path) != self._version:
                self._read(self._path)
        except (ConfigError, OSError) as error:
            self._log_failure(str(error))

    def _log_failure(self, reason: str) -> None:
        """Log why the file cannot be read, once for each reason: every request reads it again."""
        if reason != self._failure:
            log.error("the token file cannot be read, the old tokens stay valid: %s", reason)
        self._failure = reason

    def _read(self, path: Path) -> None:
        try:
            version = file_version(path)
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "the file of LONGREC_TOKEN_FILE cannot be read", found=str(error)
            ) from error
        self._digests = _digests(text, str(path))
        self._version = version
        self._failure = ""


class AuthMiddleware:
    """ASGI middleware that checks tokens, adds security headers and answers errors with 500.

    Args:
        app: the application behind it.
        tokens: accepted tokens; None to read the environment now.
    """

    def __init__(self, app: App, tokens: Tokens | None = None) -> None:
        self._app = app
        self._tokens = tokens or Tokens(os.environ)

    async def __call__(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if not self._is_allowed(scope):
            return await send_error(
                send,
                401,
                "a token is needed: Authorization: Bearer TOKEN",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        return await self._call_app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._tokens.is_required or _is_open(scope["path"]):
            return True
        if scope["method"] == "OPTIONS":  # browsers ask so without a token (CORS)
            return True
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(headers) == 1 and self._tokens.allows(headers[0])

    async def _call_app(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = [*message.get("headers", []), *SECURITY_HEADERS]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            log.exception("unexpected error, at %s", scope["path"])
            if has_started:
                raise
            await send_error(send, 500, "internal error: see the log of the service")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def _digests(text: str, source: str) -> tuple[bytes, ...]:
    """Return the SHA-256 digest of each token, one a line."""
    lines = [line.strip() for line in text.splitlines()]
    tokens = [line for line in lines if line]
    shortest = min((len(token) for token in tokens), default=0)
    if shortest < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"{source} holds no valid token",
            found=f"{len(tokens)} tokens, the shortest of {shortest} characters",
            expected=f"tokens of {MIN_TOKEN_CHARACTERS} characters or more, one a line",
            fix="Make one: openssl rand -hex 32",
        )
    return tuple(hashlib.sha256(token.encode()).digest() for token in tokens)


async def send_error(
    send: Send,
    status: int,
    reason: str,
    headers: tuple[Header, ...] = (),
) -> None:
    """Send an error in the JSON form of every error."""
    body = json.dumps({"error": reason}).encode()
    length = str(len(body)).encode()
    content_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", length),
    ]
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [*content_headers, *headers, *SECURITY_HEADERS],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
