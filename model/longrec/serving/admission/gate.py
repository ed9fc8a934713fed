"""Gate in front of an ASGI application: it rejects requests before their body is read.

It stands before BentoML's own middleware, which would cost a rejected request milliseconds: they
take the time of the answers when it is scarce. Only POST requests count; they alone make work.
"""

from __future__ import annotations

import contextvars
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from longrec.serving.admission.concurrency import ConcurrencyLimit
from longrec.serving.admission.errors import Overloaded, TooManyRequests
from longrec.serving.auth import App, Scope, Send, send_error

CALLER_HEADER = b"x-caller"
_arrived_at: contextvars.ContextVar[float] = contextvars.ContextVar("arrived_at")


def arrival_time() -> float:
    """Return the monotonic seconds at which the request of this task arrived; else now."""
    return _arrived_at.get(time.monotonic())


class AdmissionGate:
    """Gate of one worker.

    Args:
        concurrency: how many requests may be in progress.
    """

    def __init__(self, concurrency: ConcurrencyLimit) -> None:
        self._concurrency = concurrency
        self.count_rejected: Callable[[str], None] = _count_nothing
        """Is called with the reason of each rejection."""
        self.count_answer: Callable[[str, int], None] = _count_nothing
        """Is called with the path and the status of each rejection."""

    def before(self, app: App) -> App:
        """Return an application that lets requests pass to `app`."""
        return functools.partial(self._pass_or_reject, app)

    async def _pass_or_reject(
        self,
        app: App,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await app(scope, receive, send)
        caller = _caller_of(scope)
        try:
            self._concurrency.enter(caller)
        except Overloaded as error:
            return await self._reject(error, scope["path"], send)
        _arrived_at.set(time.monotonic())
        try:
            await app(scope, receive, send)
        finally:
            self._concurrency.leave(caller)

    async def _reject(
        self,
        error: Overloaded,
        path: str,
        send: Send,
    ) -> None:
        is_one_caller = isinstance(error, TooManyRequests)
        status = 429 if is_one_caller else 503
        self.count_answer(path, status)
        self.count_rejected("caller" if is_one_caller else "overload")
        seconds = str(math.ceil(error.retry_after_seconds)).encode()
        await send_error(
            send,
            status,
            str(error),
            headers=((b"retry-after", seconds),),
        )


def _caller_of(scope: Scope) -> str:
    """Return the header x-caller, else the address of the client."""
    for name, value in scope["headers"]:
        if name == CALLER_HEADER:
            return str(value, "latin-1")
    return scope["client"][0] if scope["client"] else ""


def _count_nothing(*_: Any) -> None:
    """Count no rejection: the worker is not ready."""
