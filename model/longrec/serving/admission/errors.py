"""Reasons of a rejection."""

from __future__ import annotations

import math

from longrec.errors import LongrecError


class Overloaded(LongrecError):
    """The service has more work than it can finish in time.

    Args:
        what: the reason.
        retry_after_seconds: when the caller should try again.
    """

    def __init__(self, what: str, retry_after_seconds: float) -> None:
        super().__init__(what, fix=f"Try again in {math.ceil(retry_after_seconds)} s.")
        self.retry_after_seconds = retry_after_seconds


class TooManyRequests(Overloaded):
    """One caller has too many requests in progress."""


class DeadlineExceeded(LongrecError):
    """The deadline of the request has passed."""


class EngineClosed(LongrecError):
    """The engine accepts no more requests: another version replaced it, or the service stops."""
